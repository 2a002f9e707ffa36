"""Scanners' own formats, made here: facts, pixels, and the same pixels in a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import zarr

from cytofm_cli.slides.open import open_slide
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide
from cytofm_cli.units import Box

from . import scanner_files as files
from .dicom_files import REDUCED, write_dicom


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """(512, 768, 3) uint8: blots of colour on glass, none like another."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:512, :768]
    picture = np.full((512, 768, 3), (243, 240, 236), np.float64)
    for cx, cy in rng.integers(0, (768, 512), (80, 2)):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < 400] = rng.uniform(40, 200, 3)
    return picture.astype(np.uint8)


class Made(NamedTuple):
    """What a file of a format says: its name, levels and corner in the slide, and which page."""

    write: Callable[[Path, np.ndarray], None]
    format: str
    mpp: float
    objective: float | None
    levels: list[tuple[int, int]]
    corner: tuple[int, int] = (0, 0)
    page: int = 0


FULL = (768, 512)
FORMATS = {
    "a.svs": Made(files.write_svs, "aperio", 0.252, 40, [FULL, (192, 128)]),
    # OpenSlide lets libjpeg scale whole streams down: there are more levels than directories.
    "a.ndpi": Made(
        files.write_ndpi, "hamamatsu", 0.23, 40, [(768 >> i, 512 >> i) for i in range(6)]
    ),
    "a.scn": Made(files.write_scn, "leica", 0.25, 40, [(1024, 768), (256, 192)], (128, 64)),
    "philips.tiff": Made(files.write_philips, "philips", 0.25, None, [FULL, (384, 256)]),
    "a.bif": Made(files.write_bif, "ventana", 0.25, 40, [FULL, (384, 256)], page=1),
    "trestle.tif": Made(files.write_trestle, "trestle", 0.25, 40, [FULL, (384, 256)]),
}


def tiled(path: Path, stores: Path, mpp: float = 0.25) -> zarr.Group:
    """Tile a slide as `cytofm tile --foreground none --pixels lossless` does."""
    config = TileConfig(tile_px=128, mpp=mpp, foreground="none", pixels="lossless")
    job = TileJob(slide_id="s", path=str(path), mpp=None, stores=stores, config=config)
    assert tile_slide(job, lambda *_: None, lambda _: None)[0] == "done"
    return zarr.open_group(stores / "s.zarr", mode="r")


def assert_tiles(store: zarr.Group, scene: np.ndarray, n: int) -> None:
    xy, tiles = store["tiles/xy_px0"][:], store["tiles/pixels"][:]
    assert len(xy) == len(tiles) == n
    for (x, y), tile in zip(xy, tiles, strict=True):
        np.testing.assert_array_equal(tile, scene[y : y + 128, x : x + 128])


@pytest.mark.parametrize("name", FORMATS)
def test_scanner_format__facts_pixels_and_store(name, pixels, tmp_path) -> None:
    made = FORMATS[name]
    made.write(tmp_path / name, pixels)
    shutil.copy(tmp_path / name, tmp_path / "plain.tif")  # tifffile goes by the suffix
    with tifffile.TiffFile(tmp_path / "plain.tif") as tif:
        decoded = tif.pages[made.page].asarray()
    assert np.abs(decoded.astype(int) - pixels).mean() < 3  # the file holds this picture
    scene = np.full((made.levels[0][1], made.levels[0][0], 3), 255, np.uint8)
    left, top = made.corner
    scene[top : top + 512, left : left + 768] = decoded
    slide = open_slide(str(tmp_path / name))
    info = slide.info
    assert (info.format, info.codec, info.objective) == (made.format, "jpeg", made.objective)
    assert info.mpp == pytest.approx(made.mpp)
    assert [tuple(level.size_px) for level in info.levels] == made.levels
    np.testing.assert_array_equal(slide.read(0, Box(0, 0, *made.levels[0])), scene)
    np.testing.assert_array_equal(
        slide.read(0, Box(left + 211, top + 97, 300, 200)), decoded[97:297, 211:511]
    )
    slide.close()
    store = tiled(tmp_path / name, tmp_path, made.mpp)
    assert store.attrs["cytofm"]["slide"]["mpp"] == pytest.approx(made.mpp)
    assert_tiles(store, scene, scene.size // 3 // 128**2)


def test_svs__reads_alike_through_every_reader(pixels, tmp_path) -> None:
    path = tmp_path / "a.svs"
    files.write_svs(path, pixels)
    slides = [open_slide(str(path), reader=reader) for reader in ("vips", "openslide", "tiffslide")]
    assert len({slide.info.levels for slide in slides}) == 1
    assert [slide.info.mpp for slide in slides] == [0.252] * 3
    for level, box in (
        (0, Box(0, 0, 768, 512)),
        (0, Box(250, 131, 77, 200)),
        (1, Box(9, 0, 99, 128)),
    ):
        first, *others = (slide.read(level, box) for slide in slides)
        assert first.std() > 5
        for other in others:
            np.testing.assert_array_equal(other, first)
    for slide in slides:
        slide.close()


def test_dicom__levels_of_several_instances_are_one_pyramid(pixels, tmp_path) -> None:
    halves = files.smaller(pixels, 2)
    write_dicom(tmp_path / "base.dcm", pixels, um=0.25)
    write_dicom(tmp_path / "half.dcm", halves, um=0.5, image_type=REDUCED)
    slide = open_slide(str(tmp_path / "base.dcm"))
    assert (slide.info.format, slide.info.codec, slide.info.objective) == ("dicom", "none", 40)
    assert slide.info.mpp == pytest.approx(0.25)
    assert [tuple(level.size_px) for level in slide.info.levels] == [(768, 512), (384, 256)]
    np.testing.assert_array_equal(slide.read(0, Box(100, 50, 300, 200)), pixels[50:250, 100:400])
    np.testing.assert_array_equal(slide.read(1, Box(10, 5, 300, 200)), halves[5:205, 10:310])
    slide.close()
    assert_tiles(tiled(tmp_path / "base.dcm", tmp_path), pixels, 24)


def test_dicom__sparse_frames_lie_where_they_say_and_the_rest_is_white(pixels, tmp_path) -> None:
    order = np.random.default_rng(2).permutation(96)[:90]  # of 8 x 12 frames of 64 px
    write_dicom(tmp_path / "sparse.dcm", pixels, frames=order.tolist())
    scene = np.full_like(pixels, 255)
    for frame in order:
        y, x = 64 * (frame // 12), 64 * (frame % 12)
        scene[y : y + 64, x : x + 64] = pixels[y : y + 64, x : x + 64]
    slide = open_slide(str(tmp_path / "sparse.dcm"))
    assert slide.info.mpp == pytest.approx(0.25)
    np.testing.assert_array_equal(slide.read(0, Box(0, 0, 768, 512)), scene)
    slide.close()
    assert_tiles(tiled(tmp_path / "sparse.dcm", tmp_path), scene, 24)


def test_ome_pyramid__of_colour_and_of_focal_planes(pixels, tmp_path) -> None:
    um = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    um |= {"PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    layout = {"tile": (128, 128), "compression": "deflate", "photometric": "rgb"}
    path = tmp_path / "rgb.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as out:
        out.write(pixels, subifds=1, metadata={"axes": "YXS", **um}, **layout)
        out.write(files.smaller(pixels, 2), subfiletype=1, **layout)
    slide = open_slide(str(path))
    assert (slide.info.format, slide.info.mpp) == ("ome-tiff", pytest.approx(0.25))
    assert [tuple(level.size_px) for level in slide.info.levels] == [(768, 512), (384, 256)]
    np.testing.assert_array_equal(slide.read(0, Box(3, 5, 700, 500)), pixels[5:505, 3:703])
    slide.close()
    assert_tiles(tiled(path, tmp_path), pixels, 24)
    planes = np.stack([pixels // 2, pixels, 255 - pixels])
    path = tmp_path / "z" / "planes.ome.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path, ome=True) as out:
        out.write(planes, subifds=1, metadata={"axes": "ZYXS", **um}, **layout)
        halves = np.stack([files.smaller(plane, 2) for plane in planes])
        out.write(halves, subfiletype=1, **layout)
    slide = open_slide(str(path))
    assert (slide.info.n_focal_planes, slide.info.focal_plane) == (3, 1)
    np.testing.assert_array_equal(slide.read(1, Box(0, 0, 384, 256)), halves[1])
    slide.close()
    assert_tiles(tiled(path, path.parent), pixels, 24)  # the plane in the middle
