"""Nuclei as a table: place, class, confidence, measurements, attention."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.nuclei import Nuclei, NucleiPart, source_of
from cytofm_cli.exporters.product import Product
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.table_text import TableWriter
from cytofm_cli.work.files import replacing

_HEAD = ("slide_id", "x_px0", "y_px0", "class", "probability", "area_um2")


def products(request: ExportRequest) -> list[Product]:
    """Return the file of the nuclei of a store."""
    source = source_of(request)
    path = request.folder / f"{request.store.slide_id}.csv"
    write = functools.partial(_write_csv, path, source.read, request.store.slide_id)
    return [Product([path], source.settings, source.steps, write)]


def _write_csv(path: Path, read: Callable[[], Nuclei], slide_id: str) -> None:
    nuclei = read()
    slide = _words([slide_id])
    classes = [_words([name]) for name in nuclei.classes]
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        handle.write(_words([*_HEAD, *nuclei.shapes, *nuclei.scores]) + "\n")
        for part in nuclei.parts():
            handle.writelines(_lines(part, slide, classes))


def _lines(part: NucleiPart, slide: str, classes: Sequence[str]) -> Iterator[str]:
    """Yield the rows of some nuclei; what is not known is left empty."""
    table = part.table
    measured = [table.probability, table.area_um2, *part.shapes.values()]
    columns = [*table.xy_px0.T, *measured, *part.scores.values()]
    forms = ["%.2f", "%.2f", *map(_form, measured), *("%.6g" for _ in part.scores)]
    unknown = np.zeros(len(table), bool)
    for column in columns:
        unknown |= np.isnan(column)
    # A row is one formatting; the class, which is text, has its own form each.
    plain, rest = slide.replace("%", "%%"), ",".join(forms[2:])
    whole = [f"{plain},%.2f,%.2f,{name.replace('%', '%%')},{rest}\n" for name in classes]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for row, class_id, odd in zip(rows, table.class_id.tolist(), unknown.tolist(), strict=True):
        if odd:
            words = ["" if math.isnan(v) else f % v for f, v in zip(forms, row, strict=True)]
            yield ",".join([slide, *words[:2], classes[class_id], *words[2:]]) + "\n"
        else:
            yield whole[class_id] % row


def _form(column: NDArray[Any]) -> str:
    """Return how a measurement is written: whole numbers as such."""
    return "%.4f" if column.dtype.kind == "f" else "%d"


def _words(words: Sequence[str]) -> str:
    """Return a line of CSV without its end."""
    text = io.StringIO()
    TableWriter(text, end="").writerow(words)
    return text.getvalue()


PLUGIN = ExporterPlugin(
    make=products,
    summary="nuclei as CSV, a row a nucleus, with measurements",
    what=("nuclei",),
    options=("unit", "detector", "run", "classes", "measure"),
    sample=samples({}, {"unit": "cell", "measure": False}),
)
