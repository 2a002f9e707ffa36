"""OME-TIFF: focal planes, channels, units, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import ome
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box

WHOLE = Box(0, 0, 90, 70)


@pytest.fixture
def stack() -> np.ndarray:
    """(C=4, Z=3, Y=70, X=90) uint8."""
    return np.random.default_rng(0).integers(0, 256, (4, 3, 70, 90), dtype=np.uint8)


def write(tmp_path, pixels: np.ndarray, axes: str, **options) -> str:
    path = str(tmp_path / "a.ome.tif")
    metadata = {"axes": axes, **options.pop("metadata", {})}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata, photometric="minisblack", **options)
    return path


def test_focal_planes__the_middle_one_is_read(tmp_path, stack) -> None:
    slide = open_slide(write(tmp_path, stack[0], "ZYX"))
    assert (slide.info.format, slide.info.n_focal_planes, slide.info.focal_plane) == (
        "ome-tiff",
        3,
        1,
    )
    assert any("focal planes" in note for note in slide.info.notes)
    np.testing.assert_array_equal(
        slide.read(0, WHOLE), np.repeat(stack[0, 1, ..., None], 3, axis=2)
    )


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_channels__the_first_three_are_red_green_blue(tmp_path, stack, axes, tile) -> None:
    pixels = stack if axes == "CZYX" else stack.transpose(1, 0, 2, 3)
    names = {"Channel": {"Name": ["DAPI", "FITC", "Cy3", "Cy5"]}}
    slide = open_slide(
        write(tmp_path, np.ascontiguousarray(pixels), axes, tile=tile, metadata=names)
    )
    np.testing.assert_array_equal(slide.read(0, WHOLE), np.moveaxis(stack[:3, 1], 0, -1))
    np.testing.assert_array_equal(slide.overview(1), np.moveaxis(stack[:3, 1], 0, -1))
    assert any("red = DAPI, green = FITC, blue = Cy3" in note for note in slide.info.notes)
    assert slide.native_jpeg(0) is None


def test_channels__two_leave_blue_black(tmp_path, stack) -> None:
    pixels = open_slide(write(tmp_path, stack[:2, 0], "CYX")).read(0, WHOLE)
    np.testing.assert_array_equal(pixels[..., :2], np.moveaxis(stack[:2, 0], 0, -1))
    assert not pixels[..., 2].any()


def test_pyramid__sub_directories_of_the_plane_are_its_levels(tmp_path, stack) -> None:
    path = str(tmp_path / "a.ome.tif")
    options = {"tile": (32, 32), "photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as out:
        out.write(stack[0], subifds=1, metadata={"axes": "ZYX"}, **options)
        out.write(stack[0, :, ::2, ::2], subfiletype=1, **options)
    slide = open_slide(path)
    assert [level.size_px for level in slide.info.levels] == [(90, 70), (45, 35)]
    got = slide.read(1, Box(0, 0, 45, 35))
    np.testing.assert_array_equal(got[..., 1], stack[0, 1, ::2, ::2])


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        (0.25, "µm", 0.25),
        (250.0, "nm", 0.25),
        (2.5e-4, "mm", 0.25),
        (30.0, "µm", None),
        (1.0, "pixel", None),
    ],
)
def test_resolution__units_and_plausibility(tmp_path, stack, size, unit, expected) -> None:
    metadata = {
        "PhysicalSizeX": size, "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size, "PhysicalSizeYUnit": unit,
    }  # fmt: skip
    info = open_slide(write(tmp_path, stack[0, 0], "YX", metadata=metadata)).info
    assert info.mpp == (expected and pytest.approx(expected))
    assert info.mpp_source == (expected and "ome.PhysicalSizeX")


def test_sixteen_bits__are_refused(tmp_path, stack) -> None:
    path = write(tmp_path, stack[0].astype(np.uint16), "ZYX")
    with pytest.raises(SlideError, match="has 16-bit samples; only 8-bit"):
        open_slide(path)


def test_planes_in_other_files__are_refused(tmp_path, stack) -> None:
    path = write(tmp_path, stack[0], "ZYX")
    files = "".join(
        f'<TiffData FirstZ="{z}" IFD="0"><UUID FileName="{z}.tif"/></TiffData>' for z in (0, 1)
    )
    tifffile.tiffcomment(path, XML.format(order="XYZCT", data=files).encode())
    with pytest.raises(SlideError, match="its planes are spread over 2 files"):
        open_slide(path)


def test_signed_pixels__negative_is_black(tmp_path) -> None:
    pixels = np.arange(-128, 128, dtype=np.int16).astype(np.int8).reshape(16, 16)
    slide = open_slide(write(tmp_path, pixels, "YX"))
    expected = np.maximum(pixels, 0).astype(np.uint8)
    np.testing.assert_array_equal(slide.read(0, Box(0, 0, 16, 16))[..., 0], expected)


@pytest.mark.needs_shared("data/wsi")
def test_real_z_series__of_signed_channels(shared) -> None:
    path = str(shared / "wsi" / "multi-channel-z-series.ome.tif")
    info = open_slide(path).info
    assert (info.n_focal_planes, info.focal_plane, info.mpp) == (5, 2, None)
    expected = np.maximum(tifffile.imread(path)[:, 2], 0).astype(np.uint8)
    got = open_slide(path).read(0, Box(0, 0, 439, 167))
    np.testing.assert_array_equal(got, np.moveaxis(expected, 0, -1))


XML = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels DimensionOrder="{order}" SizeC="2" SizeT="1" SizeZ="3" SizeX="9" SizeY="9" Type="uint8">
{data}</Pixels></Image></OME>"""


def test_pages__follow_the_dimension_order() -> None:
    by_z = ome.parse(XML.format(order="XYZCT", data="<TiffData/>"))[0].pages
    by_c = ome.parse(XML.format(order="XYCZT", data="<TiffData/>"))[0].pages
    assert (by_z[0, 1, 0], by_z[1, 0, 0], by_z[1, 2, 0]) == (1, 3, 5)
    assert (by_c[0, 1, 0], by_c[1, 0, 0], by_c[1, 2, 0]) == (2, 1, 5)
    data = '<TiffData IFD="4" FirstZ="1"/><TiffData IFD="0" FirstC="1" FirstZ="1" PlaneCount="2"/>'
    assert ome.parse(XML.format(order="XYZCT", data=data))[0].pages == {
        (0, 1, 0): 4, (1, 1, 0): 0, (1, 2, 0): 1,
    }  # fmt: skip


def test_parse__what_it_refuses() -> None:
    for xml, why in (
        ("<OME><Image>", "damaged"),
        ("<OME/>", "no Pixels"),
        (XML.format(order="XYQCT", data=""), "DimensionOrder"),
        (XML.format(order="XYZCT", data='<TiffData FirstZ="7"/>'), "does not exist"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><OME/>', "entities"),
    ):
        with pytest.raises(ValueError, match=why):
            ome.parse(xml)
