"""The handcrafted statistics of one image after the other, as they were first written.

What `cytofm_cli.encoders.handcrafted` measures on stacks is held against it.

Every statistic is unchanged by quarter turns and mirroring. To keep that exact where a
threshold could flip, images are halved and box-filtered in integers, in a symmetric way for
odd sizes too; only sums of floats depend on the order of the pixels.

Sources: optical density and stain vectors, Ruifrok & Johnston 2001; threshold, Otsu 1979;
local binary patterns, Ojala, Pietikäinen & Mäenpää 2002 (the rotation-invariant uniform kind).

Letters: H W pixels, C colours, K blobs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Table = dict[str, NDArray[np.float64]]
Features = dict[str, float]

_OD_STEP: Final = 0.008  # optical density of one grey level: 255 levels reach 2.04
_HALVED_WHITE: Final = 255 * 16  # `_halve_exactly` sums with weights that add up to 16
_PERCENTS: Final = (1, 25, 50, 75, 99)
_LBP_LEVELS: Final = 3
_LEVELS: Final = 5
_NOISE_OD: Final = 0.02  # smaller differences are sensor and JPEG noise, not texture
_SURROUNDS_PX: Final = {"narrow": 16, "wide": 32}  # halved pixels; 8 and 16 µm at 0.25 µm/px
_MIN_BLOB_PX: Final = 12  # halved pixels; at 0.25 µm/px 3 µm², under any nucleus
_BLOB_AREA_EDGES_PX: Final = (50, 100, 200, 400, 800)

# Rows: optical density of haematoxylin, eosin and their residual in R, G, B (Ruifrok).
_STAINS: Final = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIX: Final = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))
_HAEMATOXYLIN: Final = _UNMIX[:, 0].astype(np.float32)
_DENSITY: Final = (
    -np.log10((np.arange(_HALVED_WHITE + 1) + 16) / (_HALVED_WHITE + 16)) + 0.0
).astype(np.float32)


def describe(pixels_HWC: NDArray[np.uint8]) -> Features:
    """Return the named features of one RGB image, uint8 (H, W, 3), any size from 1 × 1.

    Every value is finite. Lengths and areas are in pixels of half the image's resolution.
    """
    halved_HWC = _halve_exactly(pixels_HWC)
    channels = _channels(halved_HWC)
    dark_HW = np.minimum(channels["dark"] / np.float32(_OD_STEP), 255).astype(np.uint8)
    features = _colour(halved_HWC, channels, dark_HW)
    features |= _finest_texture(pixels_HWC)
    return features | _texture(channels["dark"]) | _blobs(channels, dark_HW)


# --- colour -----------------------------------------------------------------------------------


def _halve_exactly(x_HWC: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Halve an image in both directions, as integers, 16 × the mean of what falls together.

    Even lengths take pairs; odd ones take every second pixel with its neighbours (1, 2, 1), so
    that a mirrored image gives the mirrored result.
    """
    wide_HWC = x_HWC.astype(np.uint16)
    for axis in (0, 1):
        x = np.moveaxis(wide_HWC, axis, 0)
        if len(x) % 2 == 0:
            x = (x[0::2] + x[1::2]) * np.uint16(2)
        else:
            padded = np.concatenate([x[:1], x, x[-1:]])
            x = padded[0:-2:2] + 2 * padded[1:-1:2] + padded[2::2]
        wide_HWC = np.moveaxis(x, 0, axis)
    return np.ascontiguousarray(wide_HWC)


def _channels(halved_HWC: NDArray[np.uint16]) -> dict[str, Array]:
    """Return optical-density channels, float32 (H, W) each.

    `dark` is the smallest density of the three colours: nuclei absorb all of them whatever the
    stain, cytoplasm (pink, orange, cyan) lets at least one pass.
    """
    red, green, blue = (_DENSITY[halved_HWC[..., c]] for c in range(3))
    dark = np.minimum(np.minimum(red, green), blue)
    r, g, b = _HAEMATOXYLIN
    return {
        "dark": dark,
        "purity": np.maximum(np.maximum(red, green), blue) - dark,
        "red_green": red - green,
        "blue_yellow": blue - np.float32(0.5) * (red + green),
        "haematoxylin": r * red + g * green + b * blue,
    }


def _colour(
    halved_HWC: NDArray[np.uint16], channels: dict[str, Array], dark_HW: NDArray[np.uint8]
) -> Features:
    features: Features = {}
    for c, name in enumerate("rgb"):
        counts = np.bincount((halved_HWC[..., c] >> 4).ravel(), minlength=256)
        features |= _histogram_statistics(f"colour.{name}", counts, low=0.0, step=1 / 255)
    # Cells differ from glass by any absorption at all, not only by being dark.
    strongest = channels["dark"] + channels["purity"]
    strongest_HW = np.minimum(strongest / np.float32(_OD_STEP), 255).astype(np.uint8)
    cut = max(_otsu(np.bincount(strongest_HW.ravel(), minlength=256)), 8)
    cells_HW = strongest_HW > cut
    features["colour.cells.fraction"] = float(cells_HW.mean())
    for name, x in channels.items():
        level_HW = np.clip(np.rint(x * np.float32(1 / _OD_STEP)) + 96, 0, 351).astype(np.int16)
        for where, values in (("all", level_HW.ravel()), ("cells", level_HW[cells_HW])):
            counts = np.bincount(values, minlength=352)
            found = _histogram_statistics(
                f"colour.{name}.{where}", counts, low=-96 * _OD_STEP, step=_OD_STEP
            )
            keep = ("mean", "std", "p50") if where == "cells" else tuple(_STATISTICS)
            features |= {key: v for key, v in found.items() if key.rsplit(".", 1)[1] in keep}
    features["colour.dark.otsu"] = _otsu(np.bincount(dark_HW.ravel(), minlength=256)) * _OD_STEP
    return features


_STATISTICS: Final = ("mean", "std", "skew", *(f"p{p}" for p in _PERCENTS))


def _histogram_statistics(
    name: str, counts: NDArray[np.intp], *, low: float, step: float
) -> Features:
    """Return mean, spread, skewness and percentiles of values counted in bins."""
    total = counts.sum()
    if total == 0:
        return {f"{name}.{key}": 0.0 for key in _STATISTICS}
    values = low + step * np.arange(len(counts))
    mean = float(counts @ values / total)
    offsets = values - mean
    std = float(np.sqrt(counts @ offsets**2 / total))
    skew = float(counts @ offsets**3 / total) / std**3 if std > step / 100 else 0.0
    reached = np.cumsum(counts)
    places = np.searchsorted(reached, np.array(_PERCENTS) / 100 * total)
    numbers = (mean, std, skew, *values[places].tolist())
    return {f"{name}.{key}": v for key, v in zip(_STATISTICS, numbers, strict=True)}


def _otsu(counts: NDArray[np.intp]) -> int:
    """Return the bin that splits a histogram with the largest variance between the parts."""
    below = np.cumsum(counts, dtype=np.float64)
    moment = np.cumsum(counts * np.arange(len(counts)), dtype=np.float64)
    above = below[-1] - below
    product = below * above
    spread = (moment[-1] * below - below[-1] * moment) ** 2
    between = np.divide(spread, product, out=np.zeros_like(spread), where=product > 0)
    return int(np.argmax(between))


# --- texture ----------------------------------------------------------------------------------


def _finest_texture(pixels_HWC: NDArray[np.uint8]) -> Features:
    """Return edge statistics at full resolution, from the green channel (sharpest optics)."""
    grey_HW = pixels_HWC[..., 1].astype(np.float32) / np.float32(255)
    return _edges("texture.green.0", grey_HW)


def _texture(x_HW: Array) -> Features:
    """Return edges and local patterns at ever coarser scales."""
    features: Features = {}
    for level in range(1, _LEVELS + 1):
        features |= _edges(f"texture.dark.{level}", x_HW)
        if level <= _LBP_LEVELS:
            shares = _local_binary_patterns(x_HW)
            features |= {f"lbp.{level}.{i}": float(share) for i, share in enumerate(shares)}
        x_HW = _halve(x_HW)
    return features


def _halve(x_HW: Array) -> Array:
    """Halve in both directions like `_halve_exactly`, as float32 means."""
    for axis in (0, 1):
        x = np.moveaxis(x_HW, axis, 0)
        if len(x) % 2 == 0:
            x = (x[0::2] + x[1::2]) * np.float32(0.5)
        elif len(x) > 1:
            padded = np.concatenate([x[:1], x, x[-1:]])
            x = (padded[0:-2:2] + padded[2::2]) * np.float32(0.25) + padded[1:-1:2] * np.float32(
                0.5
            )
        x_HW = np.moveaxis(x, 0, axis)
    return np.ascontiguousarray(x_HW)


def _edges(name: str, x_HW: Array) -> Features:
    """Return the strength of edges and spots, and how unevenly they are spread."""
    padded = np.pad(x_HW, 1, mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    spots = padded[1:-1, 2:] + padded[1:-1, :-2]
    spots += padded[2:, 1:-1]
    spots += padded[:-2, 1:-1]
    spots -= np.float32(4) * x_HW
    energy = across * across
    energy += down * down
    power = float(energy.mean(dtype=np.float64))
    slope = np.sqrt(energy)
    mean = float(slope.mean(dtype=np.float64))
    top = np.partition(slope.ravel(), _rank(slope.size, 0.95))[_rank(slope.size, 0.95)]
    return {
        f"{name}.edges": _log(power**0.5),
        f"{name}.uneven": mean / power**0.5 if power > 0 else 1.0,
        f"{name}.p95": _log(float(top)),
        f"{name}.spots": _log(float(np.sqrt(np.mean(spots * spots, dtype=np.float64)))),
        f"{name}.lean": float(np.cbrt(np.mean(spots * spots * spots, dtype=np.float64))),
    }


def _rank(size: int, share: float) -> int:
    return min(int(size * share), size - 1)


def _log(x: float) -> float:
    return float(np.log10(x + 1e-4))


def _local_binary_patterns(x_HW: Array) -> NDArray[np.float64]:
    """Return the shares of the ten rotation-invariant uniform patterns of the 8 neighbours."""
    height, width = x_HW.shape
    padded = np.pad(x_HW, 1, mode="edge")
    floor = x_HW + np.float32(_NOISE_OD)
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    above = [padded[y : y + height, x : x + width] > floor for y, x in ring]
    number = np.zeros(x_HW.shape, np.uint8)
    changes = np.zeros(x_HW.shape, np.uint8)
    for this, following in zip(above, above[1:] + above[:1], strict=True):
        number += this
        changes += this ^ following
    number[changes > 2] = 9
    return np.bincount(number.ravel(), minlength=10) / x_HW.size


# --- dark blobs: what a nucleus looks like in any stain -----------------------------------------


def _blobs(channels: dict[str, Array], dark_HW: NDArray[np.uint8]) -> Features:
    """Return statistics of compact dark spots at two sizes of surroundings.

    The narrow surroundings find small and crowded nuclei, the wide ones whole large nuclei.
    """
    features: Features = {}
    for name, reach_px in _SURROUNDS_PX.items():
        surround_HW = _surroundings(dark_HW, reach_px)
        excess_HW = np.maximum(dark_HW - surround_HW, 0)
        cut = max(_otsu(np.bincount(excess_HW.ravel(), minlength=256)), 8)
        planes = {
            "dark": channels["dark"],
            "excess": excess_HW * np.float32(_OD_STEP),
            "surround": surround_HW * np.float32(_OD_STEP),
        }
        if name == "wide":
            planes |= {key: channels[key] for key in ("red_green", "purity")}
        spots_HW = excess_HW > cut
        found = {"fraction": float(spots_HW.mean()), "cut": cut * _OD_STEP}
        found |= _summarise(_measure(spots_HW, planes), dark_HW.size / 2**20)
        features |= {f"blobs.{name}.{key}": value for key, value in found.items()}
    return features


def _surroundings(dark_HW: NDArray[np.uint8], reach_px: int) -> NDArray[np.int16]:
    """Return the mean of the square window of 2 `reach_px` + 1 around each pixel, exactly."""
    reach_px = min(reach_px, *(length - 1 for length in dark_HW.shape))
    size = 2 * reach_px + 1
    sums = np.pad(dark_HW.astype(np.int64), reach_px, mode="symmetric")
    for axis in (0, 1):
        total = np.moveaxis(np.cumsum(sums, axis=axis), axis, 0)
        moved = np.concatenate([total[size - 1 : size], total[size:] - total[:-size]])
        sums = np.moveaxis(moved, 0, axis)
    return (sums // size**2).astype(np.int16)


def _measure(spots_HW: Mask, planes: dict[str, Array]) -> Table:
    """Return size, means and shape of every connected spot that is large enough, (K,) each."""
    from scipy import ndimage

    labels_HW, n_labels = ndimage.label(spots_HW)
    ys, xs = np.nonzero(spots_HW)
    owner = labels_HW[ys, xs] - 1

    def total(weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
        return np.bincount(owner, weights=weights, minlength=n_labels).astype(np.float64)

    area = total()
    large = area >= _MIN_BLOB_PX
    area_safe = np.maximum(area, 1)
    padded = np.pad(spots_HW, 1)
    inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    rim = total(~inner[ys, xs])

    # Second moments; a pixel is a square, not a point: 1/12 is its own.
    x0, y0 = total(xs) / area_safe, total(ys) / area_safe
    dx, dy = xs - x0[owner], ys - y0[owner]
    xx, yy, xy = (total(v) / area_safe for v in (dx * dx, dy * dy, dx * dy))
    xx, yy = xx + 1 / 12, yy + 1 / 12
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    table = {name: total(plane[ys, xs]) / area_safe for name, plane in planes.items()}
    offset = planes["dark"][ys, xs] - table["dark"][owner]
    table |= {
        "area": area,
        "grain": np.sqrt(total(offset**2) / area_safe),
        "long": np.sqrt((xx + yy + spread) / (xx + yy - spread)),
        "ragged": rim**2 / (4 * np.pi * area_safe),
    }
    return {name: values[large] for name, values in table.items()}


def _summarise(table: Table, megapixels: float) -> Features:
    """Return counts by area, the spread of every measure, and area and darkness together.

    Abnormal nuclei are large and dark at once, and abnormal ones are few: hence the joint
    statistics of round spots, and high percentiles and maxima.
    """
    area, dark = table["area"], table["dark"]
    bins = np.searchsorted(_BLOB_AREA_EDGES_PX, area, side="right")
    counts = np.bincount(bins, minlength=len(_BLOB_AREA_EDGES_PX) + 1)
    features = {f"count.{i}": float(np.log1p(n / megapixels)) for i, n in enumerate(counts)}
    round_ = (table["ragged"] < 1.5) & (table["long"] < 2) & (area >= _BLOB_AREA_EDGES_PX[0])
    features["round.count"] = float(np.log1p(round_.sum() / megapixels))
    for name, values in table.items():
        shown = np.log2(values) if name == "area" else values
        features |= _spread(name, shown)
        if name in ("area", "dark", "grain", "surround"):
            features |= _spread(f"round.{name}", shown[round_])
    features["round.large"] = _share(round_ & (area >= 300), round_)
    features["round.large_dark"] = _share(round_ & (area >= 300) & (dark > 0.4), round_)
    total = area.sum()
    features["dark_by_area"] = float(area @ dark / total) if total else 0.0
    features["area_by_area"] = float(np.log2(area @ area / total)) if total else 0.0
    return features


def _spread(name: str, values: NDArray[np.float64]) -> Features:
    keys = ("mean", "std", "p90", "max")
    if len(values) == 0:
        return {f"{name}.{key}": 0.0 for key in keys}
    numbers = (values.mean(), values.std(), np.percentile(values, 90), values.max())
    return {f"{name}.{key}": float(v) for key, v in zip(keys, numbers, strict=True)}


def _share(part: Mask, whole: Mask) -> float:
    return float(part.sum() / max(whole.sum(), 1))
