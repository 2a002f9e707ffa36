"""The size that is foretold is the size that is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide
from cytofm_cli.tiles.shown import FusedReader

from .stacks import stack_of, write_stack


def half_glass(path: Path) -> Path:
    """Write a JPEG-tiled slide: noise on the left half, clean glass on the right."""
    pixels = np.full((1024, 2048, 3), 240, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    pixels[:, :1024] = noise.repeat(8, axis=0).repeat(8, axis=1)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        compression="jpeg",
        photometric="rgb",
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.mark.parametrize("pixels", ["source", "lossless", "jpeg"])
def test_forecast__half_glass_takes_what_was_foretold(tmp_path: Path, pixels: str) -> None:
    slide = half_glass(tmp_path / "s.tif")
    config = TileConfig(tile_px=256, foreground="none", pixels=pixels)
    job = TileJob(slide_id="s", path=str(slide), mpp=None, stores=tmp_path, config=config)
    said: list[str] = []
    _, planned = tile_slide(replace(job, dry_run=True), lambda *_: None, said.append)
    _, done = tile_slide(job, lambda *_: None, said.append)
    assert planned["bytes"] == pytest.approx(done["pixel_bytes"], rel=0.15)
    raw = done["n_tiles"] * 256 * 256 * 3
    assert done["pixel_bytes"] < 0.5 * raw


def test_forecast__no_pixels_take_nothing_and_are_not_counted(tmp_path: Path) -> None:
    slide = half_glass(tmp_path / "s.tif")
    config = TileConfig(tile_px=256, foreground="none", pixels="none")
    job = TileJob(slide_id="s", path=str(slide), mpp=None, stores=tmp_path, config=config)
    said: list[str] = []
    _, planned = tile_slide(replace(job, dry_run=True), lambda *_: None, said.append)
    assert planned["bytes"] == 0
    assert said[0].endswith("no pixels")


def test_forecast__of_fused_planes_reads_one_of_them(tmp_path: Path, monkeypatch) -> None:
    planes = stack_of(512)
    noise = np.random.default_rng(0).integers(-9, 10, planes.shape)  # the camera's, as real planes
    planes = np.clip(planes + noise, 0, 255).astype(np.uint8)
    slide = write_stack(tmp_path / "s.ome.tif", planes)
    config = TileConfig(tile_px=128, foreground="none", focus="fuse")
    job = TileJob(slide_id="s", path=str(slide), mpp=None, stores=tmp_path, config=config)
    with monkeypatch.context() as patch:
        patch.setattr(FusedReader, "read", lambda *_: pytest.fail("fused for the forecast"))
        _, planned = tile_slide(replace(job, dry_run=True), lambda *_: None, lambda _: None)
    _, done = tile_slide(job, lambda *_: None, lambda _: None)
    assert planned["bytes"] == pytest.approx(done["pixel_bytes"], rel=0.25)
