"""Maps as pyramidal OME-TIFF."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tifffile

import cytofm_cli as cytofm
from cytofm_cli.maps.ome_tiff import Plane, ome_xml, write_ome_tiff
from cytofm_cli.pictures.pyramid import halved
from cytofm_cli.units import Box

NAME = "a <b> & \"c\" 'd' \ud83d\x00\x07 é"


def picture(height: int, width: int) -> np.ndarray:
    image = np.full((height, width, 3), 255, np.uint8)
    part = image[10:300, 20:500]
    part[:] = np.random.default_rng(0).integers(0, 256, part.shape)
    return image


def write(path: Path, image: np.ndarray, name: str = "s") -> Path:
    height, width = image.shape[:2]
    plane = Plane(width, height, 2.0, name, f"{name}: text")
    write_ome_tiff(path, plane, lambda top, rows: image[top : top + rows])
    return path


def test_file__holds_the_picture_and_its_halves(tmp_path: Path) -> None:
    image = picture(1300, 2001)
    path = write(tmp_path / "s.ome.tiff", image)
    assert [p.name for p in tmp_path.iterdir()] == ["s.ome.tiff"]
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and len(file.pages) == 1
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [
            (1300, 2001, 3), (650, 1001, 3), (325, 501, 3),
        ]  # fmt: skip
        assert all(page.is_tiled for level in levels for page in level.pages)
        np.testing.assert_array_equal(levels[0].asarray(), image)
        # A strip is halved by itself, 256 rows at a time: that is the whole picture halved.
        np.testing.assert_array_equal(levels[1].asarray(), halved(image))
        np.testing.assert_array_equal(levels[2].asarray(), halved(halved(image)))
        pixels = ET.fromstring(file.ome_metadata).find(".//{*}Pixels")
    assert pixels is not None
    assert (pixels.get("SizeX"), pixels.get("SizeY")) == ("2001", "1300")
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("2", "µm")


def test_file__opens_in_our_readers_and_openslide(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    image = picture(700, 900)
    path = write(tmp_path / "s.ome.tiff", image)
    with cytofm.open_slide(path) as slide:
        assert slide.info.mpp == pytest.approx(2.0) and len(slide.info.levels) == 2
        np.testing.assert_array_equal(slide.read(0, Box(5, 6, 300, 200)), image[6:206, 5:305])
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.dimensions == (900, 700)
        region = np.asarray(slide.read_region((5, 6), 0, (300, 200)))[..., :3]
    np.testing.assert_array_equal(region, image[6:206, 5:305])


def test_file__is_the_same_each_time(tmp_path: Path) -> None:
    image = picture(600, 600)
    first, second = (write(tmp_path / name, image).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (255, 256), (513, 512)])
def test_file__of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    image = picture(*size)
    with tifffile.TiffFile(write(tmp_path / "s.ome.tiff", image)) as file:
        np.testing.assert_array_equal(file.series[0].levels[0].asarray(), image)


def test_names__of_any_letters_stay_text(tmp_path: Path) -> None:
    root = ET.fromstring(ome_xml(Plane(1, 1, 1.0, NAME, NAME)))
    image = root.find("{*}Image")
    assert image is not None
    assert image.get("Name") == "a <b> & \"c\" 'd'     é"
    assert image.findtext("{*}Description") == image.get("Name")
    with tifffile.TiffFile(write(tmp_path / "s.ome.tiff", picture(4, 4), NAME)) as file:
        assert file.is_ome


def test_file__that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    def strip(top: int, rows: int) -> np.ndarray:
        if top:
            raise ZeroDivisionError
        return np.zeros((rows, 600, 3), np.uint8)

    with pytest.raises(ZeroDivisionError):
        write_ome_tiff(tmp_path / "s.ome.tiff", Plane(600, 600, 1.0, "s", "s"), strip)
    assert list(tmp_path.iterdir()) == []
