"""A slide that becomes another one while it is read leaves no store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.errors import InputError, SlideError
from cytofm_cli.slides.cell_images import ImagePlace
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.cell_run import CellsJob, tile_cells
from cytofm_cli.tiles.cells import CellImage, Sheet
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide
from cytofm_cli.tiles.shown import open_shown


def save(path: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.mark.parametrize("goes", [False, True])
def test_tile__a_slide_that_changes_is_refused_and_one_that_goes_is_whole(
    tmp_path: Path, goes: bool
) -> None:
    slide, other = save(tmp_path / "s.png", 0), save(tmp_path / "other.png", 1)
    config = TileConfig(tile_px=32, foreground="none", pixels="lossless")
    job = TileJob(slide_id="s", path=str(slide), mpp=0.25, stores=tmp_path / "out", config=config)
    job.stores.mkdir()

    def change(*_: int) -> None:
        if other.exists() or goes:
            slide.unlink(missing_ok=True) if goes else other.replace(slide)

    if goes:
        assert tile_slide(job, change, lambda _: None)[0] == "done"
        return
    with pytest.raises(SlideError, match="has changed while it was read"):
        tile_slide(job, change, lambda _: None)
    assert not list(job.stores.iterdir())
    assert tile_slide(job, lambda *_: None, lambda _: None)[0] == "done"


def test_open_shown__a_slide_that_changes_while_a_step_reads_it_is_refused(tmp_path: Path) -> None:
    slide, other = save(tmp_path / "s.png", 0), save(tmp_path / "other.png", 1)
    config = TileConfig(tile_px=32, foreground="none", pixels="none")
    job = TileJob(slide_id="s", path=str(slide), mpp=0.25, stores=tmp_path / "out", config=config)
    job.stores.mkdir()
    tile_slide(job, lambda *_: None, lambda _: None)
    store = open_store(job.stores / "s.zarr")
    with open_shown(store) as reader:
        assert reader.info.path == str(slide)
    with pytest.raises(SlideError, match="has changed while it was read"), open_shown(store):
        other.replace(slide)


def test_tile__images_of_cells_that_change_are_refused(tmp_path: Path) -> None:
    image, other = save(tmp_path / "c.png", 0), save(tmp_path / "other.png", 1)
    job = CellsJob(
        slide_id="s",
        path="cells.csv",
        stores=tmp_path / "out",
        cells=(CellImage(file="c.png", place=ImagePlace(str(image)), mpp=0.25, label=None),),
        classes=(),
        sheet=Sheet(side_px=64, mpp=0.25, tolerance=0.01, apart="border", fill=255),
        config=TileConfig(),
        mpp_source="table",
    )
    job.stores.mkdir()
    with pytest.raises(InputError, match="have changed while they were read"):
        tile_cells(job, lambda *_: other.exists() and other.replace(image), lambda _: None)
    assert not list(job.stores.iterdir())
