"""CZI, DICOM and OME-Zarr with scenes, focal planes, channels: the pixels, or a refusal by name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.api.inputs import are_stores
from cytofm_cli.errors import SlideError, UsageError
from cytofm_cli.slides import dicom
from cytofm_cli.slides.folders import find_slides, slide_id_of
from cytofm_cli.slides.open import open_slide
from cytofm_cli.testing.samples.scanners import (
    half,
    write_czi,
    write_dicom_planes,
    write_group,
    write_ngff,
)
from cytofm_cli.testing.samples.slides import draw
from cytofm_cli.units import Box, Size


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return draw(Size(512, 256))


@pytest.fixture(scope="module")
def planes(pixels) -> np.ndarray:
    return np.stack([pixels // 2, pixels, 255 - pixels])


def whole(path: Path, level: int = 0) -> np.ndarray:
    with open_slide(str(path)) as slide:
        return slide.read(level, Box(0, 0, *slide.info.levels[level].size_px))


def test_czi__scenes_lie_on_one_canvas_and_gaps_are_white(tmp_path, planes) -> None:
    pytest.importorskip("pylibCZIrw")
    path = tmp_path / "a.czi"
    write_czi(path, [((-100, 50), planes[:, :, :200]), ((300, 150), planes[:, :100, 200:])])
    scene = np.full((256, 712, 3), 255, np.uint8)
    scene[:, :200] = planes[1, :, :200]
    scene[100:200, 400:] = planes[1, :100, 200:]
    np.testing.assert_array_equal(whole(path), scene)
    with open_slide(str(path)) as slide:
        assert (slide.info.reader, slide.info.n_focal_planes) == ("czi", 3)
        assert slide.info.mpp == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["czi", "dicom", "ngff"])
def test_every_plane_is_read_at_its_height(tmp_path, planes, kind) -> None:
    path = tmp_path / {"czi": "a.czi", "dicom": "a.dcm", "ngff": "a.zarr"}[kind]
    if kind == "czi":
        pytest.importorskip("pylibCZIrw")
        write_czi(path, [((0, 0), planes)])
    elif kind == "dicom":
        pytest.importorskip("wsidicom")
        write_dicom_planes(path, list(planes))
    else:
        write_ngff(path, planes, axes="czyx")
    with open_slide(str(path)) as slide:
        assert slide.info.reads_planes
        assert slide.info.planes_um == pytest.approx((0, 2, 4))
        for plane in range(3):
            other = slide.at_plane(plane)
            assert (other.info.focal_plane, other.info.levels) == (plane, slide.info.levels)
            got = other.read(0, Box(40, 30, 200, 100))
            np.testing.assert_array_equal(got, planes[plane, 30:130, 40:240])
        with pytest.raises(UsageError, match="no focal plane 3; it has 3"):
            slide.at_plane(3)


def test_czi__more_than_8_bits_is_refused(tmp_path) -> None:
    czi = pytest.importorskip("pylibCZIrw.czi")
    with czi.create_czi(str(tmp_path / "a.czi")) as out:
        for z in range(2):
            out.write(np.zeros((64, 64, 1), np.uint16), plane={"C": 0, "Z": z})
    with pytest.raises(SlideError, match="has Gray16 pixels; only 8-bit ones are read"):
        open_slide(str(tmp_path / "a.czi"))


@pytest.mark.needs_shared("data/wsi_extra")
def test_czi__real_one_with_planes_needs_the_extra(shared, monkeypatch) -> None:
    for module in ("pylibCZIrw", "fastslide"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SlideError, match=r"openslide: .*subblock dimension") as caught:
        open_slide(str(shared / "wsi_extra" / "tiles_z.czi"))
    assert caught.value.hint == "pip install 'cytofm[czi]'"


@pytest.mark.needs_shared("data/wsi_extra")
def test_czi__real_one_with_planes_is_read(shared) -> None:
    pytest.importorskip("pylibCZIrw")
    with open_slide(str(shared / "wsi_extra" / "tiles_z.czi")) as slide:
        assert (tuple(slide.info.size_px0), slide.info.n_focal_planes) == ((510, 512), 2)
        assert slide.info.mpp == pytest.approx(0.83027, abs=1e-5)
        assert slide.info.objective == 40
        assert slide.read(0, Box(0, 0, 510, 512)).std() > 0


@pytest.mark.needs_shared("data/wsi_extra")
def test_czi__two_packages_agree_on_a_real_one(shared) -> None:
    for module in ("pylibCZIrw", "fastslide"):
        pytest.importorskip(module)
    path = str(shared / "wsi_extra" / "tiles_z.czi")
    with open_slide(path, reader="czi") as one, open_slide(path, reader="fastslide") as other:
        assert one.info.levels == other.info.levels
        assert one.info.mpp == pytest.approx(other.info.mpp)
        assert one.info.planes_um == other.info.planes_um == (0, 4)
        for plane in range(2):
            box = Box(0, 0, 510, 512)
            a, b = (slide.at_plane(plane).read(0, box) for slide in (one, other))
            assert (a != b).sum() <= 10  # where tiles overlap


def test_czi__colours_are_not_swapped_by_the_second_package(tmp_path, pixels) -> None:
    for module in ("pylibCZIrw", "fastslide"):
        pytest.importorskip(module)
    write_czi(tmp_path / "a.czi", [((0, 0), [pixels])])
    with open_slide(str(tmp_path / "a.czi"), reader="fastslide") as slide:
        np.testing.assert_array_equal(slide.read(0, Box(0, 0, 512, 256)), pixels)
        assert slide.info.notes == ()


def test_dicom__planes_are_counted_and_the_middle_one_is_read(tmp_path, planes) -> None:
    pytest.importorskip("wsidicom")
    write_dicom_planes(tmp_path / "a.dcm", list(planes))
    assert dicom.planes_and_paths(str(tmp_path / "a.dcm")) == (3, 1)
    with open_slide(str(tmp_path / "a.dcm")) as slide:
        facts = slide.info
        assert (facts.reader, facts.n_focal_planes, facts.focal_plane) == ("wsidicom", 3, 1)
        assert facts.mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(
            slide.read(0, Box(30, 40, 300, 200)), planes[1, 40:240, 30:330]
        )


def test_dicom__of_one_plane_stays_with_openslide() -> None:
    assert dicom.planes_and_paths(__file__) == (1, 1)


@pytest.mark.parametrize(("version", "axes"), [(2, "tczyx"), (3, "cyx"), (3, "czyx")])
def test_ngff__pixels_levels_and_planes(tmp_path, planes, version, axes) -> None:
    path = tmp_path / "a.ome.zarr"
    has_z = "z" in axes
    write_ngff(path, planes if has_z else planes[1], axes=axes, version=version, um=0.3)
    np.testing.assert_array_equal(whole(path), planes[1])
    np.testing.assert_array_equal(whole(path, 1), half(planes[1], 2))
    with open_slide(str(path)) as slide:
        facts = slide.info
        assert (facts.format, facts.mpp, facts.mpp_source) == ("ome-zarr", 0.3, "ngff.scale")
        assert (facts.n_focal_planes, facts.focal_plane) == ((3, 1) if has_z else (1, 0))


def test_ngff__folders_are_slides_and_stores_are_none(tmp_path, pixels) -> None:
    write_ngff(tmp_path / "in" / "a.ome.zarr", pixels)
    write_ngff(tmp_path / "in" / "b.zarr", pixels, version=2)
    write_group(tmp_path / "in" / "store.zarr", {})
    listed = find_slides(str(tmp_path / "in"))
    assert [slide_id_of(path) for path in listed] == ["a", "b"]
    assert find_slides(listed[0]) == [listed[0]]
    assert not are_stores([listed[0]])


def test_ngff__largest_image_of_a_collection_that_is_no_label_is_the_slide(
    tmp_path, pixels
) -> None:
    path = tmp_path / "a.zarr"
    write_ngff(path / "0", np.tile(pixels, (2, 2, 1)), name="macro image", version=2)
    write_ngff(path / "1", pixels, version=2)
    write_ngff(path / "2", pixels[:128, :128], version=2)
    write_group(path, {"bioformats2raw.layout": 3}, version=2)
    np.testing.assert_array_equal(whole(path), pixels)
    with open_slide(str(path)) as slide:
        assert "Of 3 pictures in the folder, '1' is read." in slide.info.notes


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"plate": {"wells": []}}, "is a plate of many fields, not a slide"),
        ({"multiscales": [{}], "image-label": {}}, "is a label image, not a slide"),
        ({"multiscales": [{"datasets": []}]}, "its attributes are no OME-Zarr"),
        ({"multiscales": [{"axes": ["y", "x", "q"], "datasets": [{"path": "0"}]}]}, "no OME-Zarr"),
        ({"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "7"}]}]}, "a.zarr"),
        ({"bioformats2raw.layout": 3}, "holds no image"),
    ],
)
def test_ngff__what_is_no_slide_is_refused_by_name(tmp_path, attributes, told) -> None:
    write_group(tmp_path / "a.zarr", attributes)
    with pytest.raises(SlideError, match=told):
        open_slide(str(tmp_path / "a.zarr"))


def test_ngff__more_than_8_bits_and_missing_chunks(tmp_path, pixels) -> None:
    path = tmp_path / "a.zarr"
    write_ngff(path, pixels)
    (path / "0" / "c" / "0" / "0" / "0").write_bytes(b"not a chunk")
    with open_slide(str(path)) as slide:
        with pytest.raises(SlideError, match="damaged at x=0 y=0"):
            slide.read(0, Box(0, 0, 10, 10))
        np.testing.assert_array_equal(slide.read(0, Box(200, 130, 9, 9)), pixels[130:139, 200:209])
    shutil.rmtree(path / "0" / "c")
    with pytest.raises(SlideError, match="claims 512 x 256 px but holds none"):
        open_slide(str(path))
    import zarr

    zarr.create_array(path / "0", data=np.zeros((3, 256, 512), np.uint16), overwrite=True)
    with pytest.raises(SlideError, match="has 16-bit samples; only 8-bit ones are read"):
        open_slide(str(path))


@pytest.mark.parametrize(
    ("shape", "chunks", "told"),
    [
        # 3 · 200 000² bytes of which one chunk of a few bytes is stored.
        ((3, 200_000, 200_000), (3, 256, 256), r"states to hold 120000000000 bytes, and \d+ are"),
        ((3, 40_000, 40_000), (3, 40_000, 40_000), "its chunks are of 4800000000 bytes"),
    ],
)
def test_ngff__an_array_that_claims_too_much_is_refused(tmp_path, pixels, shape, chunks, told):
    import zarr

    path = tmp_path / "a.zarr"
    write_ngff(path, pixels)
    array = zarr.create_array(
        path / "0", shape=shape, chunks=chunks, dtype=np.uint8, overwrite=True
    )
    if chunks != shape:
        array[:, :256, :256] = 7
    else:
        (path / "0" / "c" / "0" / "0").mkdir(parents=True)
        (path / "0" / "c" / "0" / "0" / "0").write_bytes(b"x")
    with pytest.raises(SlideError, match=f"array '0': .*{told}") as refused:
        open_slide(str(path))
    assert "\n" not in refused.value.one_line()
