"""Dark compact spots: what a nucleus looks like in any stain.

Letters: B images, H W halved pixels, K spots of all images, P pixels of all spots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.handcrafted import counts
from cytofm_cli.encoders.handcrafted.colour import OD_STEP
from cytofm_cli.encoders.handcrafted.counts import Features
from cytofm_cli.work.opencv import opencv

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_SURROUNDS_PX: Final = {"narrow": 16, "wide": 32}  # halved pixels; 8 and 16 µm at 0.25 µm/px
_MIN_BLOB_PX: Final = 12  # halved pixels; at 0.25 µm/px 3 µm², under any nucleus
_BLOB_AREA_EDGES_PX: Final = (50, 100, 200, 400, 800)
_LEAST_CUT: Final = 8
_CROSS: Final = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


@dataclass(frozen=True, eq=False)
class Spots:
    """Connected spots of a stack of images.

    Attributes:
        image_K: which image each lies in.
        table: measures, float64 (K,) each.
        n_images: B.
    """

    image_K: NDArray[np.int64]
    table: dict[str, Floats]
    n_images: int


def measure(planes: dict[str, Array], dark_BHW: NDArray[np.uint8]) -> Features:
    """Return statistics of compact dark spots at two sizes of surroundings.

    The narrow surroundings find small and crowded nuclei, the wide ones whole large nuclei.
    """
    features: Features = {}
    megapixels = dark_BHW[0].size / 2**20
    for name, reach_px in _SURROUNDS_PX.items():
        surround_BHW = surroundings(dark_BHW, reach_px)
        excess_BHW = np.maximum(dark_BHW, surround_BHW) - surround_BHW
        cut = np.maximum(counts.otsu(counts.count(excess_BHW, 256)), _LEAST_CUT)
        spots_BHW = excess_BHW > cut.astype(np.uint8)[:, None, None]
        grey = {"excess": excess_BHW, "surround": surround_BHW}
        coloured = {key: planes[key] for key in ("red_green", "purity")} if name == "wide" else {}
        spots = find_spots(spots_BHW, {"dark": planes["dark"]}, grey, coloured)
        found = {"fraction": spots_BHW.mean((1, 2), dtype=np.float64), "cut": cut * OD_STEP}
        found |= _summarise(spots, megapixels)
        features |= {f"blobs.{name}.{key}": value for key, value in found.items()}
    return features


def surroundings(dark_BHW: NDArray[np.uint8], reach_px: int) -> NDArray[np.uint8]:
    """Return the mean of the square window of 2 `reach_px` + 1 around each pixel, rounded down.

    Past the edge the image is mirrored; a window wider than that reaches as far as the image.
    """
    reach_px = min(reach_px, *(length - 1 for length in dark_BHW.shape[1:]))
    size = 2 * reach_px + 1
    cv2 = opencv()
    sums = np.empty(dark_BHW.shape, np.int32)
    for dark_HW, sum_HW in zip(dark_BHW, sums, strict=True):
        cv2.boxFilter(
            dark_HW,
            cv2.CV_32S,
            (size, size),
            dst=sum_HW,
            normalize=False,
            borderType=cv2.BORDER_REFLECT,
        )
    sums //= size**2
    return sums.astype(np.uint8)


def find_spots(
    spots_BHW: Mask,
    dark: dict[str, Array],
    grey: dict[str, NDArray[np.uint8]],
    coloured: dict[str, Array],
) -> Spots:
    """Return size, means and shape of every connected spot that is large enough.

    Args:
        spots_BHW: what belongs to spots; neighbours are those that share a side.
        dark: the plane whose spread within a spot is its grain.
        grey: planes in grey levels, shown as densities.
        coloured: further planes.
    """
    cv2 = opencv()
    n, height, width = spots_BHW.shape
    # One tall picture, a line of glass after each image: no spot reaches into the next.
    tall = np.zeros((n, height + 1, width), np.uint8)
    tall[:, :height] = spots_BHW
    picture = tall.reshape(-1, width)
    n_labels, labels = cv2.connectedComponents(picture, connectivity=4, ltype=cv2.CV_32S)
    inner = cv2.erode(picture, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    place_P = np.flatnonzero(spots_BHW)
    owner_P = _of_images(labels, tall.shape)[place_P] - 1
    rim_P = _of_images(inner, tall.shape)[place_P] == 0
    n_labels -= 1

    def total(weights: NDArray[Any] | None = None) -> Floats:
        return np.bincount(owner_P, weights=weights, minlength=n_labels).astype(np.float64)

    area = total()
    x_P, y_P = place_P % width, place_P // width
    long = _elongation(x_P, y_P, owner_P, area)
    values = {key: plane.ravel()[place_P] for key, plane in dark.items()}
    step = np.float32(OD_STEP)
    values |= {key: plane.ravel()[place_P] * step for key, plane in grey.items()}
    values |= {key: plane.ravel()[place_P] for key, plane in coloured.items()}
    table = {key: total(value) / area for key, value in values.items()}
    offset = values["dark"] - table["dark"][owner_P]
    rim = np.bincount(owner_P[rim_P], minlength=n_labels)
    table |= {
        "area": area,
        "grain": np.sqrt(total(offset**2) / area),
        "long": long,
        "ragged": rim**2 / (4 * np.pi * area),
    }
    image_K = np.zeros(n_labels, np.int64)
    image_K[owner_P] = place_P // (height * width)
    large = area >= _MIN_BLOB_PX
    return Spots(image_K[large], {key: value[large] for key, value in table.items()}, n)


def _of_images(picture: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tall picture without the lines between its images, flat."""
    return picture.reshape(shape)[:, :-1].ravel()


def _elongation(
    x_P: NDArray[np.int64], y_P: NDArray[np.int64], owner_P: NDArray[np.int32], area_K: Floats
) -> Floats:
    """Return the ratio of the axes of the ellipse with a spot's second moments."""

    def mean(weights: NDArray[Any]) -> Floats:
        return np.bincount(owner_P, weights=weights, minlength=len(area_K)) / area_K

    dx, dy = x_P - mean(x_P)[owner_P], y_P - mean(y_P)[owner_P]
    # A pixel is a square, not a point: 1/12 is its own.
    xx, yy, xy = mean(dx * dx) + 1 / 12, mean(dy * dy) + 1 / 12, mean(dx * dy)
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    return np.sqrt((xx + yy + spread) / (xx + yy - spread))


def _summarise(spots: Spots, megapixels: float) -> Features:
    """Return counts by area, the spread of every measure, and area and darkness together.

    Abnormal nuclei are large and dark at once, and abnormal ones are few: hence the joint
    statistics of round spots, and high percentiles and maxima.
    """
    table, image_K, n = spots.table, spots.image_K, spots.n_images

    def number(mask_K: Mask) -> Floats:
        return np.bincount(image_K[mask_K], minlength=n).astype(np.float64)

    area, dark = table["area"], table["dark"]
    bins = np.searchsorted(_BLOB_AREA_EDGES_PX, area, side="right")
    features = {
        f"count.{i}": np.log1p(number(bins == i) / megapixels)
        for i in range(len(_BLOB_AREA_EDGES_PX) + 1)
    }
    round_ = (table["ragged"] < 1.5) & (table["long"] < 2) & (area >= _BLOB_AREA_EDGES_PX[0])
    n_round = number(round_)
    features["round.count"] = np.log1p(n_round / megapixels)
    shown = table | {"area": np.log2(area)}
    of_all = spread(shown, image_K, n)
    some = {key: shown[key][round_] for key in ("area", "dark", "grain", "surround")}
    of_round = spread(some, image_K[round_], n)
    for name in table:
        features |= {f"{name}.{key}": value for key, value in of_all[name].items()}
        if name in some:
            features |= {f"round.{name}.{key}": value for key, value in of_round[name].items()}
    large = round_ & (area >= 300)
    features["round.large"] = number(large) / np.maximum(n_round, 1)
    features["round.large_dark"] = number(large & (dark > 0.4)) / np.maximum(n_round, 1)
    sums = [np.bincount(image_K, weights=w, minlength=n) for w in (area, area * dark, area * area)]
    total = np.where(sums[0] > 0, sums[0], 1.0)
    features["dark_by_area"] = sums[1] / total
    features["area_by_area"] = np.log2(np.where(sums[0] > 0, sums[2] / total, 1.0))
    return features


def spread(
    columns: dict[str, Floats], image_K: NDArray[np.int64], n_images: int
) -> dict[str, Features]:
    """Return mean, standard deviation, 90th percentile and maximum by image, 0 without spots.

    The percentile is NumPy's, interpolated. Values are summed in their order of size: the order
    of the spots does not count.
    """
    n_columns = len(columns)
    values = np.concatenate(list(columns.values()))
    group = (np.arange(n_columns)[:, None] * n_images + image_K).ravel()
    order = np.lexsort((values, group))
    values, group = values[order], group[order]
    number = np.bincount(group, minlength=n_columns * n_images)
    some = np.maximum(number, 1)
    mean = np.bincount(group, weights=values, minlength=len(number)) / some
    offset = values - mean[group]
    std = np.sqrt(np.bincount(group, weights=offset * offset, minlength=len(number)) / some)
    first = np.cumsum(number) - number
    padded = np.append(values, 0.0)  # an image without spots may start behind the last one
    place = first + 0.9 * (some - 1)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, first + some - 1)
    p90 = padded[below] + (padded[above] - padded[below]) * (place - below)
    numbers = {"mean": mean, "std": std, "p90": p90, "max": padded[first + some - 1]}
    table = {
        key: np.where(number > 0, value, 0.0).reshape(n_columns, n_images)
        for key, value in numbers.items()
    }
    return {
        name: {key: value[row] for key, value in table.items()} for row, name in enumerate(columns)
    }
