"""Nuclei as a table: place, class, confidence, morphometrics, attention."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.nuclei import Nuclei, source_of
from cytofm_cli.exporters.product import Product
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.work.files import replacing


def products(request: ExportRequest) -> list[Product]:
    """Return the file of the nuclei of a store."""
    source = source_of(request)
    path = request.folder / f"{request.store.slide_id}.csv"
    write = functools.partial(_write_csv, path, source.read, request.store.slide_id)
    return [Product([path], source.settings, source.steps, write)]


def _write_csv(path: Path, read: Callable[[], Nuclei], slide_id: str) -> None:
    nuclei = read()
    table = nuclei.table
    numbers = (table.probability, table.area_um2, *nuclei.shapes.values())
    head = ("x_px0", "y_px0", "class", "probability", "area_um2")
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["slide_id", *head, *nuclei.shapes, *nuclei.scores])
        for row in range(len(table)):
            x, y = table.xy_px0[row]
            writer.writerow(
                [slide_id, f"{x:.2f}", f"{y:.2f}", table.classes[table.class_id[row]]]
                + [_number(column[row], ".4f") for column in numbers]
                + [_number(column[row], ".6g") for column in nuclei.scores.values()]
            )


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


PLUGIN = ExporterPlugin(
    make=products,
    summary="nuclei as CSV, a row a nucleus, with morphometrics",
    what=("nuclei",),
    options=("detector", "run"),
    sample=samples(),
)
