"""What `bench_realism.py` measures of one field and compares between two sets of fields.

A field is one picture, RGB. Optical density is base e against the field's own glass (`white`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cytofm_cli.nuclei.detectors.classical import ClassicalDetector

Floats = NDArray[np.floating]

TILE_PX = 64
TILES = 48  # a field, for the classifier
FOREGROUND_OD = 0.12
HISTOGRAM = np.linspace(-0.3, 3.0, 331)
MATCH_PX = 15
NUCLEUS_PX = 32  # half of the window around a mark
BANDS = ((1 / 64, 1 / 16), (1 / 16, 1 / 4), (1 / 4, 1 / 2))  # cycles a pixel
CHANNELS = ("red", "green", "blue")


@dataclass(frozen=True)
class Field:
    """Everything measured of one field.

    Attributes:
        name: of its file.
        histograms: counts of optical density, all, background, foreground: each (3, bins).
        numbers: single figures by name.
        nuclei: figures of marked nuclei by name, one value each.
        tiles: features (n, p) of tiles, for the classifier.
    """

    name: str
    histograms: dict[str, Floats]
    numbers: dict[str, float]
    nuclei: dict[str, list[float]]
    tiles: Floats


def measure(
    name: str, rgb: NDArray[np.uint8], marked: Floats, detector: ClassicalDetector, mpp: float
) -> Field:
    """Measure a field; `marked` (n, 2) are x, y of nuclei, px."""
    glass = white(rgb)
    density = optical_density(rgb, glass)
    is_foreground = cv2.GaussianBlur(density.max(axis=2), (0, 0), 2) > FOREGROUND_OD
    numbers = {"foreground share": float(is_foreground.mean())}
    numbers |= {f"glass {c}": float(v) for c, v in zip(CHANNELS, glass, strict=True)}
    numbers |= spectrum(density.mean(axis=2)) | noise(rgb, is_foreground)
    detected = detector.detect(rgb, mpp).xy_px0
    numbers["detections a field"] = float(len(detected))
    if len(marked):
        numbers["recall of marked nuclei"] = matched(marked, detected) / len(marked)
    histograms = {
        part: histogram(density[mask])
        for part, mask in (
            ("all", np.ones_like(is_foreground)),
            ("background", ~is_foreground),
            ("foreground", is_foreground),
        )
    }
    return Field(name, histograms, numbers, nuclei(density, marked, mpp), tiles(rgb, density, name))


def white(rgb: NDArray[np.uint8]) -> Floats:
    """Return the colour of empty glass: the median of the brightest twentieth."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    bright = rgb[grey >= np.percentile(grey, 95)]
    return np.asarray(np.median(bright, axis=0))


def optical_density(rgb: NDArray[np.uint8], glass: Floats) -> Floats:
    light = np.maximum(rgb.astype(np.float32), 1) / np.maximum(glass, 1).astype(np.float32)
    return np.asarray(-np.log(light))


def histogram(density: Floats) -> Floats:
    """Return counts (3, bins) of (n, 3) densities."""
    clipped = np.clip(density, HISTOGRAM[0], HISTOGRAM[-1] - 1e-4)
    return np.stack([np.histogram(clipped[:, c], bins=HISTOGRAM)[0] for c in range(3)])


def wasserstein(first: Floats, second: Floats) -> float:
    """Return the distance of two histograms (bins,), in optical density."""
    if not first.sum() or not second.sum():
        return float("nan")
    apart = np.cumsum(first / first.sum() - second / second.sum())
    return float(np.abs(apart).sum() * (HISTOGRAM[1] - HISTOGRAM[0]))


def spectrum(grey: Floats, size: int = 256) -> dict[str, float]:
    """Return slope and band energies (log10) of the radial power spectrum."""
    window = np.outer(np.hanning(size), np.hanning(size))
    power, n_windows = np.zeros((size, size)), 0
    for y in range(0, grey.shape[0] - size + 1, size):
        for x in range(0, grey.shape[1] - size + 1, size):
            part = grey[y : y + size, x : x + size]
            power += np.abs(np.fft.fft2((part - part.mean()) * window)) ** 2
            n_windows += 1
    power /= max(n_windows, 1)
    axis = np.fft.fftfreq(size)
    radius = np.hypot(axis[:, None], axis)
    edges = np.geomspace(1 / 64, 1 / 4, 12)
    ring = np.array(
        [power[(radius >= low) & (radius < high)].mean() for low, high in pairwise(edges)]
    )
    middle = np.sqrt(edges[:-1] * edges[1:])
    slope = np.polyfit(np.log(middle), np.log(ring + 1e-12), 1)[0]
    bands = {
        f"power 1/{round(1 / low)} to 1/{round(1 / high)} (log10)": float(
            np.log10(power[(radius >= low) & (radius < high)].mean() + 1e-12)
        )
        for low, high in BANDS
    }
    return {"spectral slope": float(slope)} | bands


def noise(rgb: NDArray[np.uint8], is_foreground: NDArray[np.bool_]) -> dict[str, float]:
    """Return sd and neighbours' correlation of noise where glass is quietest and not clipped."""
    size, found = 32, []
    grey = rgb.astype(np.float32)
    rest = grey - cv2.GaussianBlur(grey, (0, 0), 6)
    for y in range(0, grey.shape[0] - size + 1, size):
        for x in range(0, grey.shape[1] - size + 1, size):
            here = np.s_[y : y + size, x : x + size]
            if is_foreground[here].any() or (rgb[here] == 255).mean() > 0.02:
                continue
            part = rest[here]
            sd = part.std(axis=(0, 1))
            beside = (part[:, 1:] * part[:, :-1]).mean(axis=(0, 1)) / np.maximum(sd**2, 1e-6)
            found.append([sd.mean(), beside.mean()])
    if len(found) < 5:
        return {}
    blocks = np.array(found)
    quiet = blocks[blocks[:, 0] <= np.percentile(blocks[:, 0], 20)]
    return {
        "noise of glass, sd": float(quiet[:, 0].mean()),
        "noise, neighbours' correlation": float(quiet[:, 1].mean()),
    }


def matched(marked: Floats, detected: Floats) -> int:
    """Return how many marks have a detection of their own within `MATCH_PX`."""
    if not len(marked) or not len(detected):
        return 0
    distance = np.linalg.norm(marked[:, None] - detected[None], axis=2)
    cost = np.where(distance <= MATCH_PX, distance - 1000, 0)
    i, j = linear_sum_assignment(cost)
    return int((distance[i, j] <= MATCH_PX).sum())


def nuclei(density: Floats, marked: Floats, mpp: float) -> dict[str, list[float]]:
    """Return area, contrast and density of marked nuclei, by Otsu's threshold around the mark."""
    out: dict[str, list[float]] = {"nuclear area, µm²": [], "contrast, OD": [], "density, OD": []}
    red = cv2.GaussianBlur(np.ascontiguousarray(density[..., 0]), (0, 0), 1)
    r = NUCLEUS_PX
    for x, y in np.rint(marked).astype(int):
        if not (r <= x < red.shape[1] - r and r <= y < red.shape[0] - r):
            continue
        part = red[y - r : y + r + 1, x - r : x + r + 1]
        scaled = np.clip(part / max(float(part.max()), 1e-3) * 255, 0, 255).astype(np.uint8)
        _, mask = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        _, labels = cv2.connectedComponents(mask)
        middle = labels[r - 3 : r + 4, r - 3 : r + 4]
        if not middle.any():
            continue
        inside = labels == np.bincount(middle[middle > 0]).argmax()
        if inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any():
            continue  # not a nucleus alone
        around = cv2.dilate(inside.astype(np.uint8), np.ones((11, 11))) - inside
        out["nuclear area, µm²"].append(float(inside.sum() * mpp**2))
        out["contrast, OD"].append(float(part[inside].mean() - np.median(part[around > 0])))
        out["density, OD"].append(float(part[inside].mean()))
    return out


def tiles(rgb: NDArray[np.uint8], density: Floats, name: str) -> Floats:
    """Return features (n, p) of tiles with something on them, places chosen by the name."""
    rng = np.random.default_rng(sum(map(ord, name)))
    h, w = rgb.shape[:2]
    rows: list[list[float]] = []
    for _ in range(6 * TILES):
        y, x = int(rng.integers(h - TILE_PX + 1)), int(rng.integers(w - TILE_PX + 1))
        here = np.s_[y : y + TILE_PX, x : x + TILE_PX]
        if (density[here].max(axis=2) > FOREGROUND_OD).mean() > 0.1:
            rows.append(list(features(rgb[here], density[here]).values()))
        if len(rows) == TILES:
            break
    return np.array(rows).reshape(len(rows), -1)


def features(rgb: NDArray[np.uint8], density: Floats) -> dict[str, float]:
    """Return hand-made features of one tile, by name."""
    out: dict[str, float] = {}
    for c, name in enumerate(CHANNELS):
        for p in (5, 50, 95):
            out[f"{name} OD, {p} %"] = float(np.percentile(density[..., c], p))
        out[f"{name} OD, sd"] = float(density[..., c].std())
    grey = density.mean(axis=2)
    blurred = [grey, *(cv2.GaussianBlur(grey, (0, 0), s) for s in (0.7, 1.4, 2.8, 5.6, 11.2))]
    for i, scale in enumerate(("0.7", "1.4", "2.8", "5.6", "11")):
        band = blurred[i] - blurred[i + 1]
        sd = float(band.std()) + 1e-5
        out[f"log detail to {scale} px"] = float(np.log(sd))
        out[f"kurtosis of detail to {scale} px"] = float(np.log((band**4).mean() / sd**4 + 1e-3))
        out[f"skewness of detail to {scale} px"] = float((band**3).mean() / sd**3)
    chroma = density - grey[..., None]
    fine = chroma - cv2.GaussianBlur(chroma, (0, 0), 1.4)
    out["fine chroma noise"] = float(np.log(fine.std() + 1e-5))
    hue = chroma.reshape(-1, 3)
    out["spread of hue, red"], out["spread of hue, blue"] = hue[:, 0].std(), hue[:, 2].std()
    flat = density.reshape(-1, 3) + np.random.default_rng(0).normal(0, 1e-4, (grey.size, 3))
    together = np.corrcoef(flat.T)
    out["correlation red, green"] = float(together[0, 1])
    out["correlation green, blue"] = float(together[1, 2])
    gx, gy = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    steep = np.hypot(gx, gy)
    for p in (50, 90, 99):
        out[f"log gradient, {p} %"] = float(np.log(np.percentile(steep, p) + 1e-4))
    out["clipped share"] = float((rgb == 255).mean())
    return out


def classify(
    first: list[Field], second: list[Field]
) -> tuple[float, list[tuple[str, float]], list[tuple[str, float]]]:
    """Tell tiles of two sets apart by logistic regression, folds by field.

    Returns:
        AUC of tiles left out; the five features with the largest weights, and the five that
        alone have the AUC furthest from 0.5 (above: larger in the first set).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    both = [field for field in first + second if len(field.tiles)]
    x = np.concatenate([field.tiles for field in both])
    y = np.concatenate([np.full(len(f.tiles), any(f is g for g in first)) for f in both])
    field_of = np.concatenate([np.full(len(f.tiles), i) for i, f in enumerate(both)])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
    folds = GroupKFold(min(5, len(both)))
    score = cross_val_predict(model, x, y, groups=field_of, cv=folds, method="decision_function")
    names = list(features(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32)))
    weights = model.fit(x, y)[-1].coef_[0]
    alone = [float(roc_auc_score(y, x[:, i])) for i in range(len(names))]
    by_weight = sorted(zip(names, weights, strict=True), key=lambda item: -abs(item[1]))[:5]
    by_auc = sorted(zip(names, alone, strict=True), key=lambda item: -abs(item[1] - 0.5))[:5]
    return float(roc_auc_score(y, score)), by_weight, by_auc
