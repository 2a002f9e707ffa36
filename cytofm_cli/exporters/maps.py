"""Attention and scores of the instances of a slide as GeoJSON, which QuPath opens.

One detection an instance: a square for a tile, a point or an outline for a cell; level-0 pixels,
from the corner of the part that was scanned, where QuPath counts from. Its
measurements carry the name of the class that they speak for, and attention also comes as
percentile within the slide, as its raw values are small and mean nothing across slides.
Legend: N instances, K columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.work.files import replacing

if TYPE_CHECKING:
    from cytofm_cli.mil.bag import Bag
    from cytofm_cli.mil.score import SlideScore

WHOLE_SLIDE = "attention"
Outline = Callable[[int], "NDArray[np.floating[Any]] | None"]


def write_geojson(
    folder: Path,
    bag: Bag,
    score: SlideScore,
    side_px0: float | None,
    *,
    origin_px0: tuple[float, float] = (0, 0),
    outline: Outline | None = None,
) -> Path:
    """Write `<folder>/<slide>.geojson`.

    Args:
        folder: made if it is not there.
        bag: for the coordinates.
        score: for the values.
        side_px0: side of a tile in level-0 pixels; None: instances are points.
        origin_px0: the point of level 0 that is (0, 0) in the file.
        outline: gives the outline of a row, (P, 2) level-0 pixels, or None for a point; None:
            cells are points.

    Raises:
        InputError: the bag has no coordinates.
        OutputError: the file cannot be written.
    """
    if bag.xy_px0 is None:
        raise InputError(
            f"{bag.slide_id}: its file holds no coordinates: no map can be drawn.",
            hint="score the stores, or h5 files with `coords`",
        )
    path = folder / f"{bag.slide_id}.geojson"
    about = {
        "slide_id": score.slide_id,
        "predicted": score.predicted,
        "models": score.n_models,
        "basis": score.basis,
        "origin_px0": list(origin_px0),
        "measurements": meanings(score),
    }
    corner = np.asarray(origin_px0)
    placed = bag.xy_px0.astype(np.float64) - corner
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as handle:
        handle.write('{"type":"FeatureCollection","cytofm":')
        json.dump(about, handle, ensure_ascii=False)
        handle.write(',"features":[')
        for row, feature in enumerate(features(placed, score, side_px0)):
            handle.write(",\n" if row else "\n")
            ring = None if outline is None else outline(row)
            if ring is not None:
                feature["geometry"] = _polygon(ring - corner)
            handle.write(json.dumps(feature, ensure_ascii=False, separators=(",", ":")))
        handle.write("\n]}\n")
    return path


def features(
    xy: NDArray[np.floating[Any]], score: SlideScore, side_px0: float | None
) -> Iterator[dict[str, Any]]:
    """Yield one GeoJSON Feature an instance, in the order of the bag."""
    columns = named_columns(score.columns, score.instances_NK)
    for row, (x, y) in enumerate(np.round(xy, 2).tolist()):
        yield {
            "type": "Feature",
            "geometry": _geometry(x, y, side_px0),
            "properties": {
                "objectType": "detection",
                "measurements": {n: float(f"{v[row]:.6g}") for n, v in columns.items()},
            },
        }


def named_columns(
    names: Sequence[str], values_NK: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.floating[Any]]]:
    """Return each column (N,) by the name that QuPath shows; attention also as percentile."""
    columns = dict(zip(map(measurement, names), values_NK.T, strict=True))
    for name in [name for name in columns if name.startswith("attention")]:
        columns[f"{name}, percentile"] = percentile(columns[name])
    return columns


def measurement(column: str) -> str:
    """Return the name that QuPath shows: which class the values speak for."""
    if column == WHOLE_SLIDE:
        return "attention for the slide's answer"
    kind, _, of = column.partition("_")
    return f"{kind} for {of}"


def meanings(score: SlideScore) -> dict[str, str]:
    """Say how to read each measurement."""
    found = {}
    for column in score.columns:
        if column == WHOLE_SLIDE:
            text = (
                "how much the instance weighs in the slide's answer, whichever that is "
                f"(here {score.predicted}); it speaks for no class; sums to 1"
            )
        elif column.startswith("attention_"):
            text = "how much the instance weighs in this class's own map; sums to 1"
        else:
            text = score.score_kind
        found[measurement(column)] = text
    return found


def percentile(values_N: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the share of instances (0–100) that are lower; equals count half."""
    ordered = np.sort(values_N)
    below = np.searchsorted(ordered, values_N, "left")
    return 50.0 * (below + np.searchsorted(ordered, values_N, "right")) / len(values_N)


def _geometry(x: float, y: float, side: float | None) -> dict[str, Any]:
    if side is None:
        return {"type": "Point", "coordinates": [x, y]}
    right, bottom = x + side, y + side
    return _polygon(np.array([[x, y], [right, y], [right, bottom], [x, bottom]]))


def _polygon(ring: NDArray[np.floating[Any]]) -> dict[str, Any]:
    points = np.round(ring.astype(np.float64), 2).tolist()
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}
