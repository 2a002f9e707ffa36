"""The page of a gallery, its sheets and its table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from cytofm_cli.report import orders
from cytofm_cli.report.chosen import Chosen, Gallery
from cytofm_cli.report.config import GalleryConfig
from cytofm_cli.report.crops import CellPicture
from cytofm_cli.report.page import Pictures, render
from cytofm_cli.report.sheets import file_name, sheets
from cytofm_cli.report.shown import ShownCell, show_cell
from cytofm_cli.table_text import TableWriter

PAGE = "index.html"
TABLE = "cells.csv"
PICTURES = "pictures"
_TEMPLATE = "gallery.html.j2"


def gallery_files(
    galleries: Sequence[Gallery],
    pictures: Mapping[tuple[str, int], CellPicture],
    config: GalleryConfig,
    *,
    n_stores: int,
    warnings: Sequence[str],
) -> dict[str, bytes]:
    """Return the files of a gallery by their names: page, table, sheets, pictures.

    Args:
        galleries: what is shown.
        pictures: by slide and row.
        config: settings.
        n_stores: stores that were looked at.
        warnings: what is missing.
    """
    files: dict[str, bytes] = {}
    on_page = Pictures(
        PICTURES, sum(len(pictures[key].jpeg) for key in _shown(galleries, pictures))
    )
    sections = []
    for number, gallery in enumerate(galleries, start=1):
        names = []
        for page, png in enumerate(sheets(gallery, pictures), start=1):
            names.append(file_name(number, gallery, page))
            files[names[-1]] = png
        sections.append(_section(gallery, pictures, on_page, names, config))
    html = render(
        _TEMPLATE,
        {
            "title": "Gallery of cells",
            "lead": _lead(config, n_stores),
            "galleries": sections,
            "warnings": warnings,
        },
    )
    files[PAGE] = html.encode("utf-8", "backslashreplace")
    files[TABLE] = table(galleries).encode("utf-8", "backslashreplace")
    return files | {f"{PICTURES}/{name}": data for name, data in on_page.files.items()}


def _lead(config: GalleryConfig, n_stores: int) -> str:
    first = "lowest" if config.lowest else "highest"
    sure = f" of a confidence of {config.min_probability:g} or more" * bool(config.min_probability)
    return (
        f"Nuclei{sure} of {n_stores} slide(s), the {first} of each order first. Positions are "
        "level-0 pixels."
    )


def table(galleries: Sequence[Gallery]) -> str:
    """Write `order,group,rank,slide_id,row,x_px0,y_px0,value`: a row a cell and order."""
    text = io.StringIO()
    writer = TableWriter(text)
    writer.writerow(["order", "group", "rank", "slide_id", "row", "x_px0", "y_px0", "value"])
    for gallery in galleries:
        for cell in gallery.cells:
            writer.writerow(
                [gallery.name, gallery.group, cell.rank, cell.slide_id, cell.row, cell.x_px0,
                 cell.y_px0, f"{cell.value:.6g}"]
            )  # fmt: skip
    return text.getvalue()


def _shown(
    galleries: Sequence[Gallery], pictures: Mapping[tuple[str, int], CellPicture]
) -> list[tuple[str, int]]:
    keys = [(cell.slide_id, cell.row) for gallery in galleries for cell in gallery.cells]
    return [key for key in keys if key in pictures]


def _section(
    gallery: Gallery,
    pictures: Mapping[tuple[str, int], CellPicture],
    on_page: Pictures,
    sheet_names: Sequence[str],
    config: GalleryConfig,
) -> dict[str, Any]:
    kind = "attention or score" if gallery.name == orders.ATTENTION else gallery.name
    at_most = f", at most {config.per_slide} of a slide" if config.per_slide else ""
    return {
        "title": gallery.title,
        "says": gallery.says[:1].upper() + gallery.says[1:],
        "line": f"{len(gallery.cells)} of {gallery.n} nuclei{at_most}.",
        "sheets": sheet_names,
        "cells": [_show(cell, pictures, on_page, kind) for cell in gallery.cells],
    }


def _show(
    cell: Chosen,
    pictures: Mapping[tuple[str, int], CellPicture],
    on_page: Pictures,
    kind: str,
) -> ShownCell:
    return show_cell(
        pictures.get((cell.slide_id, cell.row)),
        on_page,
        rank=cell.rank,
        value=f"{cell.value:.3g}",
        at=(cell.x_px0, cell.y_px0),
        slide=cell.slide_id,
        alt=f"cell {cell.rank}, of {cell.slide_id}: {kind} {cell.value:.3g}",
    )
