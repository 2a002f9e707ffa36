"""Focal planes: a slide says how many it has and where, and reads each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.errors import SlideError, UsageError
from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.folders import find_slides
from cytofm_cli.slides.open import open_slide
from cytofm_cli.slides.readers.ndpi import NdpiPlugin
from cytofm_cli.testing.samples import slides as samples
from cytofm_cli.units import Box


@pytest.fixture
def stack() -> np.ndarray:
    """(Z=4, Y=70, X=90, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (4, 70, 90, 3), dtype=np.uint8)


def whole(slide: SlideReader, level: int = 0) -> np.ndarray:
    return slide.read(level, Box(0, 0, *slide.info.levels[level].size_px))


def write(path: Path, pixels: np.ndarray, metadata: dict | None = None, **options) -> str:
    metadata = {"axes": "ZYXS", **(metadata or {})}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata, photometric="rgb", **options)
    return str(path)


@pytest.mark.parametrize("compression", [None, "zlib", "zstd"])  # libvips, libvips, tifffile
def test_ome__every_plane_is_read(tmp_path, stack, compression) -> None:
    metadata = {"PhysicalSizeZ": 1.5, "PhysicalSizeZUnit": "µm"}
    path = write(tmp_path / "a.ome.tif", stack, metadata, tile=(32, 32), compression=compression)
    with open_slide(path) as slide:
        assert slide.info.reads_planes
        assert slide.info.planes_um == (0, 1.5, 3, 4.5)
        assert slide.at_plane(2) is slide
        for plane in (3, 0, 1):
            other = slide.at_plane(plane)
            assert other.info.focal_plane == plane
            np.testing.assert_array_equal(whole(other), stack[plane])
            np.testing.assert_array_equal(other.overview(1), stack[plane])
        np.testing.assert_array_equal(whole(slide), stack[2])


@pytest.mark.parametrize("order", ["XYZCT", "XYCZT", "XYTZC"])
def test_ome__any_order_of_dimensions(tmp_path, stack, order) -> None:
    pages = np.moveaxis(stack, -1, 1)  # Z C Y X
    slow = "ZC" if order.index("Z") > order.index("C") else "CZ"
    pixels = pages if slow == "ZC" else pages.transpose(1, 0, 2, 3)
    path = str(tmp_path / "a.ome.tif")
    tifffile.imwrite(
        path, np.ascontiguousarray(pixels), ome=True, metadata={"axes": f"{slow}YX"},
        photometric="minisblack", tile=(32, 32),
    )  # fmt: skip
    with open_slide(path) as slide:
        for plane in range(4):
            np.testing.assert_array_equal(whole(slide.at_plane(plane)), stack[plane])


def test_ome__levels_of_each_plane_are_its_own(tmp_path, stack) -> None:
    path = str(tmp_path / "a.ome.tif")
    options = {"tile": (32, 32), "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True) as out:
        out.write(stack, subifds=1, metadata={"axes": "ZYXS"}, **options)
        out.write(stack[:, ::2, ::2], subfiletype=1, **options)
    with open_slide(path) as slide:
        for plane in range(4):
            got = whole(slide.at_plane(plane), 1)
            np.testing.assert_array_equal(got, stack[plane, ::2, ::2])


def test_ome__levels_as_later_pages_are_those_of_their_plane(tmp_path, stack) -> None:
    smooth = np.repeat(np.repeat(stack[:, ::2, ::2], 2, 1), 2, 2)
    path = str(tmp_path / "a.ome.tif")
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="90" SizeY="70" SizeC="3" SizeZ="4" SizeT="1">'
        '<Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="4"/>'
        "</Pixels></Image></OME>"
    )
    options = {"tile": (32, 32), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as out:
        for plane in range(4):
            out.write(smooth[plane], description=None if plane else xml, **options)
        for plane in range(4):
            out.write(stack[plane, ::2, ::2], **options)
    with open_slide(path) as slide:
        assert len(slide.info.levels) == 2
        for plane in range(4):
            got = whole(slide.at_plane(plane), 1)
            np.testing.assert_array_equal(got, stack[plane, ::2, ::2])


def test_ome__heights_of_planes_are_their_positions(tmp_path, stack) -> None:
    where = {"PositionZ": [-3.0, -1.0, 0.5, 2.0], "PositionZUnit": ["µm"] * 4}
    path = write(tmp_path / "a.ome.tif", stack, {"Plane": where})
    assert open_slide(path).info.planes_um == (-3, -1, 0.5, 2)


def test_ome__without_a_stated_step_heights_are_unknown(tmp_path, stack) -> None:
    assert open_slide(write(tmp_path / "a.ome.tif", stack)).info.planes_um is None


def test_ome__a_plane_of_another_size_is_refused(tmp_path, stack) -> None:
    path = tmp_path / "a.ome.tif"
    write(path, stack, tile=(32, 32))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[3].tags["ImageWidth"].overwrite(80)
    with pytest.raises(SlideError, match="plane 3 is 80 x 70 px, plane 2 is 90 x 70 px") as told:
        open_slide(str(path))
    assert "\n" not in str(told.value)


def test_ome__a_plane_that_is_missing_is_refused(tmp_path, stack) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as out:
        xml = tifffile.OmeXml()
        xml.addimage("uint8", (4, 70, 90, 3), (4, 1, 1, 70, 90, 3), axes="ZYXS")
        text = xml.tostring()
        for plane in range(3):
            out.write(
                stack[plane], photometric="rgb", metadata=None, contiguous=False,
                description=None if plane else text,
            )  # fmt: skip
    with pytest.raises(SlideError, match="focal plane 3 of 4 is not in the file"):
        open_slide(str(path))


def test_at_plane__refuses_what_is_not_there(tmp_path, stack) -> None:
    with open_slide(write(tmp_path / "a.ome.tif", stack)) as slide:
        for plane in (-1, 4):
            with pytest.raises(UsageError, match=f"no focal plane {plane}; it has 4"):
                slide.at_plane(plane)


def test_at_plane__a_slide_of_one_plane_is_its_own(tmp_path, stack) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stack[0], photometric="rgb")
    with open_slide(str(tmp_path / "a.tif")) as slide:
        assert (slide.info.n_focal_planes, slide.info.reads_planes) == (1, False)
        assert slide.at_plane(0) is slide


def planes_in(folder: Path, stack: np.ndarray, names: list[str], **how) -> Path:
    folder.mkdir()
    for name, pixels in zip(names, stack, strict=False):
        tifffile.imwrite(folder / name, pixels, photometric="rgb", tile=(32, 32), **how)
    return folder


NAMES = {
    "zero-padded": [f"smear_z{k:02d}.tif" for k in range(4)],
    "from nine on": [f"smear-Z{k}.tif" for k in range(9, 13)],  # not in the order of letters
    "without a stem": [f"z{k}.tif" for k in range(4)],
    "in words": [f"smear plane {k}.tif" for k in range(1, 5)],
    "of OME": [f"smear.z{k}.ome.tif" for k in range(4)],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_folder__of_numbered_planes_is_one_slide(tmp_path, stack, names) -> None:
    folder = planes_in(tmp_path / "smear", stack, names)
    (folder / "notes.txt").write_text("seen")
    assert find_slides(str(tmp_path)) == [str(folder)]
    with open_slide(str(folder)) as slide:
        info = slide.info
        assert (info.path, info.n_focal_planes, info.focal_plane) == (str(folder), 4, 2)
        assert (info.reads_planes, info.planes_um) == (True, None)
        assert info.notes[0].startswith("The folder is read as one slide of 4 focal planes")
        for plane in range(4):
            np.testing.assert_array_equal(whole(slide.at_plane(plane)), stack[plane])
            assert slide.at_plane(plane).info.focal_plane == plane
        np.testing.assert_array_equal(slide.overview(1), stack[2])


def test_folder__a_manifest_says_order_and_heights(tmp_path, stack) -> None:
    folder = planes_in(tmp_path / "smear", stack, ["d.tif", "c.tif", "b.tif", "a.tif"])
    (folder / "planes.csv").write_text("path,z_um\nd.tif,-3\nc.tif,-1.5\na.tif,2\n")
    assert find_slides(str(tmp_path)) == [str(folder)]
    with open_slide(str(folder)) as slide:
        assert slide.info.planes_um == (-3, -1.5, 2)
        for plane, number in enumerate((0, 1, 3)):
            np.testing.assert_array_equal(whole(slide.at_plane(plane)), stack[number])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,z_um\nd.tif,1\nx.tif,2\n", "focal plane x.tif is not there"),
        ("path,z_um\nd.tif,1\n", "names no two focal planes"),
        ("file\nd.tif\nc.tif\n", "names no two focal planes"),
        ("path,z_um\nd.tif,2\nc.tif,1\n", "z_um does not rise from row to row"),
        ("path,z_um\nd.tif,2\nc.tif,\n", "z_um does not rise from row to row"),
    ],
)
def test_folder__a_manifest_that_cannot_be_used_is_refused(tmp_path, stack, text, told) -> None:
    folder = planes_in(tmp_path / "smear", stack, ["d.tif", "c.tif"])
    (folder / "planes.csv").write_text(text)
    with pytest.raises(SlideError, match=told):
        open_slide(str(folder))


def test_folder__a_plane_missing_in_the_middle_is_refused_by_name(tmp_path, stack) -> None:
    folder = planes_in(tmp_path / "smear", stack, NAMES["zero-padded"])
    (folder / "smear_z02.tif").unlink()
    assert find_slides(str(tmp_path)) == [str(folder)]
    told = "focal plane 2 is missing: there are 3 files from smear_z00.tif to smear_z03.tif"
    with pytest.raises(SlideError, match=told):
        open_slide(str(folder))


def test_folder__planes_of_other_sizes_are_refused_by_name(tmp_path, stack) -> None:
    folder = planes_in(tmp_path / "smear", stack, NAMES["zero-padded"])
    tifffile.imwrite(folder / "smear_z01.tif", stack[1, :, :80], photometric="rgb")
    told = "smear_z01.tif is 80 x 70 px, the middle one 90 x 70 px"
    with pytest.raises(SlideError, match=told):
        open_slide(str(folder))


def test_folder__a_plane_that_is_a_stack_itself_is_refused(tmp_path, stack) -> None:
    folder = planes_in(tmp_path / "smear", stack, NAMES["zero-padded"])
    write(folder / "smear_z03.tif", stack)
    with pytest.raises(SlideError, match=r"smear_z03.tif has 4 planes itself"):
        open_slide(str(folder))


@pytest.mark.parametrize(
    "names",
    [
        ["a_z0.tif", "b_z1.tif"],  # two slides
        ["a_z0.tif", "a_z1.tif", "b.tif"],
        ["a_z0.tif"],
        ["a_1.tif", "a_2.tif"],
        ["a_z1.tif", "a_z01.tif"],
    ],
)
def test_folder__of_other_files_is_no_stack(tmp_path, stack, names) -> None:
    folder = planes_in(tmp_path / "slides", stack, names)
    assert find_slides(str(tmp_path)) == sorted(str(folder / name) for name in names)


@pytest.fixture
def ndpi(tmp_path: Path) -> Path:
    """Three planes, in the file from the middle one outwards, two levels each."""
    return Path(samples.ndpi(tmp_path)[0].settings["path"])


def test_ndpi__every_plane_is_read_by_its_height(ndpi) -> None:
    with tifffile.TiffFile(ndpi) as file:
        decoded = [page.asarray() for page in file.pages]
    with open_slide(str(ndpi)) as slide, open_slide(str(ndpi), reader="openslide") as other:
        info = slide.info
        assert (info.reader, info.format, info.objective) == ("ndpi", "hamamatsu", 40)
        assert (info.planes_um, info.focal_plane) == ((-2, 0, 2), 1)
        assert info.mpp == pytest.approx(0.25)
        assert [level.size_px for level in info.levels] == [(512, 384), (128, 96)]
        for plane, page in ((0, 2), (1, 0), (2, 4)):
            for level in (0, 1):
                np.testing.assert_array_equal(
                    whole(slide.at_plane(plane), level), decoded[page + level]
                )
        np.testing.assert_array_equal(whole(slide), whole(other))


def test_ndpi__a_plane_of_another_size_is_refused(tmp_path, stack) -> None:
    pages = [(stack[k][:, : 90 - 10 * (k == 3)], 40.0, 1000 * k, 40_000) for k in range(4)]
    path = tmp_path / "a.ndpi"
    samples.write_ndpi(path, [(np.ascontiguousarray(pixels), *how) for pixels, *how in pages])
    for reader in ("auto", "ndpi"):  # OpenSlide would show one plane, and hide the others
        with pytest.raises(SlideError, match=r"plane 3 is 80 x 70 px with 1 levels, plane 2 90 x"):
            open_slide(str(path), reader=reader)


@pytest.mark.needs_shared("data/wsi/test3-DAPI-2-(387).ndpi")
def test_ndpi__parts_between_restart_markers_are_those_of_openslide() -> None:
    path = Path(__file__).resolve().parents[2].parent / "shared/data/wsi/test3-DAPI-2-(387).ndpi"
    assert NdpiPlugin().probe(str(path)) == "has one focal plane"
    with NdpiPlugin().open(str(path)) as slide, open_slide(str(path)) as other:
        assert other.info.reader == "openslide"
        assert slide.info.levels[0].size_px == other.info.levels[0].size_px
        for box in (Box(700, 1203, 333, 77), Box(3900, 4800, 68, 64), Box(0, 0, 50, 50)):
            np.testing.assert_array_equal(slide.read(0, box), other.read(0, box))
