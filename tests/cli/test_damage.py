"""Damaged slides: what is lost is blank, counted and told; too much is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr


@pytest.fixture
def damage(tmp_path: Path) -> Callable[..., Path]:
    """Write a JPEG slide of 25 tiles of 256 px and spoil the data of some of them."""

    def write(tiles: list[int], junk: bytes | None = b"\0") -> Path:
        rng = np.random.default_rng(0)
        pixels = rng.integers(60, 180, (80, 80, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        path = tmp_path / "slide.tif"
        tifffile.imwrite(
            path, pixels, tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None,
            resolution=(40_000, 40_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
        with tifffile.TiffFile(path) as tif:
            places = list(zip(tif.pages[0].dataoffsets, tif.pages[0].databytecounts, strict=True))
        with path.open("r+b") as handle:
            for index in tiles:
                offset, count = places[index]
                n = count // 2 - 2
                handle.seek(offset + count // 2)
                handle.write((junk * n)[:n])
        return path

    return write


@pytest.mark.parametrize("pixels", ["source", "lossless"])
@pytest.mark.parametrize("junk", [b"\0", b"\xff\xd9", b"\x5a"], ids=str)
def test_tile__a_damaged_jpeg_tile_is_blank_counted_and_told(
    cytofm, damage, tmp_path: Path, pixels: str, junk: bytes
) -> None:
    words = ("--tile-px", 256, "--foreground", "none", "--pixels", pixels)
    done = cytofm("tile", damage([5], junk), "-o", tmp_path / "s", *words)
    assert done.returncode == 0, done.stderr
    assert "warning: slide: 1 of 25 tiles are damaged in the file" in done.stderr
    group = zarr.open_group(tmp_path / "s" / "slide.zarr", mode="r")
    assert group.attrs["cytofm"]["steps"]["tile"]["n_damaged"] == 1
    tiles = group["tiles/pixels"][:]
    assert (tiles[5] == 255).all()
    assert all(tile.mean() < 180 for i, tile in enumerate(tiles) if i != 5)


def test_tile__a_larger_tile_loses_only_what_is_damaged(cytofm, damage, tmp_path: Path) -> None:
    words = ("--tile-px", 320, "--stride-px", 256, "--foreground", "none")
    done = cytofm("tile", damage([0]), "-o", tmp_path / "s", *words)
    assert done.returncode == 0, done.stderr
    group = zarr.open_group(tmp_path / "s" / "slide.zarr", mode="r")
    xy, tiles = group["tiles/xy_px0"][:], group["tiles/pixels"]
    first = xy.tolist().index([0, 0])
    assert (tiles[first][:256, :256] == 255).all()
    assert tiles[first][256:].mean() < 180
    assert group.attrs["cytofm"]["steps"]["tile"]["n_damaged"] == (xy < 256).all(1).sum() == 1


def test_tile__a_slide_of_which_too_much_is_damaged_is_refused(
    cytofm, damage, tmp_path: Path
) -> None:
    words = ("--tile-px", 256, "--foreground", "none")
    done = cytofm("tile", damage([0, 5, 24]), "-o", tmp_path / "s", *words)
    assert done.returncode == 3
    assert "3 of 25 tiles are damaged" in done.stderr
    assert not (tmp_path / "s" / "slide.zarr").exists()


def test_tile__a_whole_slide_counts_none(cytofm, damage, tmp_path: Path) -> None:
    words = ("--tile-px", 256, "--foreground", "none")
    done = cytofm("tile", damage([]), "-o", tmp_path / "s", *words)
    assert done.returncode == 0
    assert "damaged" not in done.stderr
    group = zarr.open_group(tmp_path / "s" / "slide.zarr", mode="r")
    assert group.attrs["cytofm"]["steps"]["tile"]["n_damaged"] == 0
