"""The true nuclei of a cohort that was simulated, read back from its files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.simulate.run import TRUTH
from cytofm_cli.simulate.tables import CELLS_CSV, read_summary


@dataclass(frozen=True, eq=False)
class TrueNuclei:
    """Nuclei of one slide; all of length N.

    Attributes:
        xy_px0: float64 (N, 2), centroids, level-0 pixels.
        classes: class of each one's cell.
        marked: bool (N,), False for cells that are not classified, such as neutrophils.
        cell: int64 (N,), the cell's number on its slide; cells may have several nuclei.
    """

    xy_px0: NDArray[np.float64]
    classes: tuple[str, ...]
    marked: NDArray[np.bool_]
    cell: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.classes)


def read_nuclei(folder: Path) -> dict[str, TrueNuclei]:
    """Return the nuclei of every slide of a finished cohort, by slide; those whose middle shows.

    Raises:
        InputError: no such cohort there.
    """
    summary = read_summary(folder)
    if summary is None:
        raise InputError(
            f"{folder}: not a cohort that `cytofm simulate` finished.",
            hint="run `cytofm simulate` again",
        )
    marked: dict[str, set[int]] = {one["slide_id"]: set() for one in summary["slides"]}
    try:
        with (folder / CELLS_CSV).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["marked"] == "1":
                    marked[row["slide_id"]].add(int(row["cell"]))
        return {
            slide: _of_slide(
                (folder / TRUTH / f"{slide}.geojson").read_bytes(), some, summary["size_px"]
            )
            for slide, some in marked.items()
        }
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder}: its truth cannot be read: {error}.",
            hint="run `cytofm simulate` again, with --overwrite",
        ) from error


def points_table(nuclei: dict[str, TrueNuclei]) -> str:
    """Return the table `slide_id,x,y,label` of marked cells, one row each at its first nucleus."""
    lines = ["slide_id,x,y,label\n"]
    for slide, of in nuclei.items():
        first = np.unique(of.cell, return_index=True)[1]
        lines += [
            f"{slide},{of.xy_px0[i, 0]:.2f},{of.xy_px0[i, 1]:.2f},{of.classes[i]}\n"
            for i in sorted(first)
            if of.marked[i]
        ]
    return "".join(lines)


def _of_slide(geojson: bytes, marked: set[int], size_px: int) -> TrueNuclei:
    places, classes, cells = [], [], []
    for feature in orjson.loads(geojson)["features"]:
        properties = feature["properties"]
        geometry = feature.get("nucleusGeometry")
        if geometry is None:
            if properties["objectType"] != "detection":  # a cell without a nucleus
                continue
            geometry = feature["geometry"]
        polygons = geometry["coordinates"]
        for rings in [polygons] if geometry["type"] == "Polygon" else polygons:
            middle = _centroid(np.array(rings[0]))
            if not ((middle >= 0) & (middle < size_px)).all():
                continue
            places.append(middle)
            classes.append(properties["classification"]["name"])
            cells.append(int(properties["measurements"]["Cell"]))
    xy = np.array(places, np.float64).reshape(-1, 2)
    is_marked = np.array([cell in marked for cell in cells], bool)
    return TrueNuclei(xy, tuple(classes), is_marked, np.array(cells, np.int64))


def _centroid(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the middle of the area of a closed ring (n, 2)."""
    origin = ring[0]
    x, y = (ring - origin).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    area = cross.sum() / 2
    sums = [((axis[:-1] + axis[1:]) * cross).sum() for axis in (x, y)]
    return np.asarray(origin + np.array(sums) / (6 * area), np.float64)
