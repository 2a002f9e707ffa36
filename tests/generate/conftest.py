"""Stores of drawn cells, dark and light ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.nuclei.given import keep_given
from cytofm_cli.slides.cell_images import ImagePlace
from cytofm_cli.tiles.cell_run import tile_cells
from cytofm_cli.tiles.cells import CellImage, CellsJob, Sheet
from cytofm_cli.tiles.config import TileConfig

CLASSES = ("dark", "light")
SIDE = 32  # pixels, at 0.25 µm/px: 8 µm


def draw_cell(seed: int) -> np.ndarray:
    """Return a disk on pale ground, dark where the seed is even."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.hypot(y - SIDE / 2, x - SIDE / 2) < rng.uniform(7, 11)
    image = np.full((SIDE, SIDE, 3), 230.0)
    image[inside] = (60, 40, 120) if seed % 2 == 0 else (190, 140, 200)
    return (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


def make_store(folder: Path, name: str, seeds: range, *, labelled: bool = True) -> Path:
    """Write a store of drawn cells."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    cells = []
    for seed in seeds:
        Image.fromarray(draw_cell(seed)).save(images / f"{seed}.png")
        place = ImagePlace(str(images / f"{seed}.png"))
        label = seed % 2 if labelled else None
        cells.append(CellImage(file=f"{seed}.png", place=place, mpp=0.25, label=label))
    job = CellsJob(
        slide_id=name,
        path="cells.csv",
        stores=folder,
        cells=tuple(cells),
        classes=CLASSES if labelled else (),
        sheet=Sheet(side_px=SIDE, mpp=0.25, tolerance=0.01, apart="border", fill=255),
        config=TileConfig(),
        mpp_source="table",
    )
    tile_cells(job, lambda done, total: None, lambda text: None)
    keep_given(folder / f"{name}.zarr", [cell.label for cell in cells], job.classes)
    return folder / f"{name}.zarr"


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of two stores of six cells each."""
    folder = tmp_path_factory.mktemp("cells")
    for name, seeds in (("a", range(6)), ("b", range(6, 12))):
        make_store(folder, name, seeds)
    return folder
