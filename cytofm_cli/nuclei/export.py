"""Write the nuclei of a store for other tools: GeoJSON for QuPath, CSV with morphometrics."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei import geojson
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.features import CELL_RADIUS_UM, Morphometrics, measure
from cytofm_cli.nuclei.run import read_nuclei
from cytofm_cli.nuclei.stitch import with_halo
from cytofm_cli.store.io import Store, output_errors
from cytofm_cli.tiles.field import Field, open_field

COLUMNS = tuple(field.name for field in dataclasses.fields(Morphometrics))


def export_geojson(
    store: Store, folder: Path, *, detector: str | None, slides: Path | None = None
) -> list[Path]:
    """Write `<slide>.geojson`: outlines, classes and measurements; QuPath opens it as it is."""
    _, table = read_nuclei(store, detector)
    columns = _measured(store, table, slides)
    path = folder / f"{store.slide_id}.geojson"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as handle:
            geojson.write(handle, table, columns)
        partial.replace(path)
    return [path]


def export_csv(
    store: Store, folder: Path, *, detector: str | None, slides: Path | None = None
) -> list[Path]:
    """Write `<slide>.csv`: a row a nucleus, with its place, class and morphometrics."""
    _, table = read_nuclei(store, detector)
    columns = _measured(store, table, slides)
    path = folder / f"{store.slide_id}.csv"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            head = ("x_px0", "y_px0", "class", "probability", "area_um2")
            writer.writerow(["slide_id", *head, *COLUMNS])
            for row in range(len(table)):
                x, y = table.xy_px0[row]
                numbers = (table.probability[row], table.area_um2[row])
                measured = (columns[name][row] for name in COLUMNS)
                writer.writerow(
                    [store.slide_id, f"{x:.2f}", f"{y:.2f}", table.classes[table.class_id[row]]]
                    + [_number(value) for value in (*numbers, *measured)]
                )
        partial.replace(path)
    return [path]


def measure_all(table: NucleusTable, field: Field) -> dict[str, NDArray[np.float32]]:
    """Measure every nucleus on the pixels around it, tile by tile.

    Args:
        table: nuclei in level-0 pixels.
        field: the tiles as one image.

    Returns:
        One float32 (m,) column a measurement; NaN for a nucleus outside every tile.
    """
    columns = {name: np.full(len(table), np.nan, np.float32) for name in COLUMNS}
    placed = table.moved(scale=1 / field.downsample)
    left = np.ones(len(table), bool)
    for box in sorted(set(field.boxes)):
        x, y = placed.xy_px0.T
        inside = (x >= box.x) & (x <= box.x + box.w) & (y >= box.y) & (y <= box.y + box.h)
        rows = np.flatnonzero(inside & left)
        if not len(rows):
            continue
        left[rows] = False
        outer = with_halo(box, round(2 * CELL_RADIUS_UM / field.mpp), field.size_px)
        found = measure(placed.take(rows), field.read(outer), outer, field.mpp)
        for name in COLUMNS:
            columns[name][rows] = getattr(found, name)
    return columns


def _measured(
    store: Store, table: NucleusTable, slides: Path | None
) -> dict[str, NDArray[np.float32]]:
    with open_field(store, slides=slides) as field:
        return measure_all(table, field)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"
