"""What lies at a place of a simulated slide, by its label images."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from cytofm_cli.simulate.render import TILE
from cytofm_cli.simulate.run import TRUTH
from cytofm_cli.simulate.truth import COLUMNS

NUCLEUS: Final = "pieces of nuclei"
CYTOPLASM: Final = "cytoplasm"
ANUCLEATE: Final = "cells without a nucleus"
GLASS: Final = "dirt and film on glass"
GROUNDS: Final = (NUCLEUS, CYTOPLASM, ANUCLEATE, GLASS)


def grounds(folder: Path, slide_id: str, xy_px0: NDArray[np.float64]) -> list[str]:
    """Return what lies at places of a slide, one of `GROUNDS` each.

    Args:
        folder: of a finished cohort.
        slide_id: the slide.
        xy_px0: places (N, 2) on the slide, level-0 pixels.
    """
    truth = folder / TRUTH
    nuclei = labels_at(truth / f"{slide_id}.nuclei.tif", xy_px0)
    cells = labels_at(truth / f"{slide_id}.cytoplasm.tif", xy_px0)
    anucleate = _without_nucleus(truth / f"{slide_id}.csv")
    return [
        NUCLEUS if nucleus else GLASS if not cell else ANUCLEATE if cell in anucleate else CYTOPLASM
        for nucleus, cell in zip(nuclei.tolist(), cells.tolist(), strict=True)
    ]


def labels_at(path: Path, xy_px0: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the labels (N,) at places (N, 2); only the tiles that hold them are read."""
    labels = np.zeros(len(xy_px0), np.int64)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        xy = np.clip(np.floor(xy_px0).astype(np.int64), 0, page.imagewidth - 1)
        across = -(-page.imagewidth // TILE)
        tile_N = xy[:, 1] // TILE * across + xy[:, 0] // TILE
        for number in np.unique(tile_N).tolist():
            file.filehandle.seek(page.dataoffsets[number])
            data = zlib.decompress(file.filehandle.read(page.databytecounts[number]))
            tile = np.frombuffer(data, "<u4").reshape(TILE, TILE)
            here = np.flatnonzero(tile_N == number)
            labels[here] = tile[xy[here, 1] % TILE, xy[here, 0] % TILE]
    return labels


def _without_nucleus(path: Path) -> set[int]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, COLUMNS)  # of old cohorts the last two are missing: None
        return {int(row["cell"]) for row in rows if row["x_nucleus"] == ""}
