"""Choosing a reader, and what a user is told when nothing can be read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile

from cytofm_cli.errors import CytofmError, SlideError, UsageError
from cytofm_cli.registry import readers
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box, Size

BROKEN = {
    "broken.svs": "is a text file, not a slide",
    "crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif": "is truncated: 23 of 23 strips",
    "crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif": "is truncated: a TIFF directory",
    "libtiff_segfault.tif": "claims 65535 x 900 px but lists 1 of 23 strips",
    "sample-get-lzw-stuck.tiff": "16-bit|is truncated",
    "seek_too_large.tif": "is truncated: a TIFF directory",
    "unopenable.tiff": "TIFF compression 'tiff-52479'",
    "unreadable.svs": "damaged JPEG tile at column 0, row 0",
}
# reader, format, codec, size, levels, µm/px, objective
WHOLE = {
    "boxes.tiff": ("vips", "generic-tiff", "deflate", (300, 250), 4, None, None),
    "cells-2z.ome.tif": ("vips", "ome-tiff", "none", (93, 131), 1, 0.25, None),
    "cmu-1-small-region.svs": ("vips", "aperio", "jpeg", (2220, 2967), 1, 0.499, 20),
    "dicom_boxes": ("openslide", "dicom", "jpeg", (16, 16), 1, 0.499, 20),
    "dicom_boxes/boxes_1.dcm": ("openslide", "dicom", "jpeg", (16, 16), 1, 0.499, 20),
    "dicom_jpeg": ("openslide", "dicom", "jpeg", (957, 715), 1, None, None),
    "multi-channel-z-series.ome.tif": ("vips", "ome-tiff", "none", (439, 167), 1, None, None),
    "small.svs": ("vips", "aperio", "jpeg", (16, 16), 1, 0.499, 20),
    "test3-DAPI-2-(387).ndpi": ("openslide", "hamamatsu", "jpeg", (3968, 4864), 7, 0.2281751, 40),
    "yb10kx5k.zstd.tiff": ("openslide", "generic-tiff", "zstd", (10_000, 5_000), 5, None, None),
    "😐.svs": ("vips", "aperio", "jpeg", (16, 16), 1, 0.499, 20),
}


def failure(path: str | Path, **options: str) -> str:
    """Open and read; return the one line that the user gets."""
    with pytest.raises(SlideError) as caught:
        slide = open_slide(str(path), **options)
        slide.read(0, Box(0, 0, 1, 1))
    line = caught.value.one_line()
    assert "\n" not in line
    assert len(line) < 700
    assert caught.value.exit_code == 3
    return line


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.needs_shared("data/broken")
def test_open__broken_file_says_what_and_where(shared, name) -> None:
    line = failure(shared / "broken" / name)
    assert line.startswith(str(shared / "broken" / name))
    assert re.search(BROKEN[name], line), line
    assert "Hint:" in line


@pytest.mark.needs_shared("data/broken")
def test_open__no_broken_file_is_untested(shared) -> None:
    whole = {"RGB-8bit.czi"}  # OpenSlide does not read it, the package of its maker does
    assert {path.name for path in (shared / "broken").iterdir()} == set(BROKEN) | whole


@pytest.mark.needs_shared("data/broken")
def test_open__what_openslide_does_not_read_another_reader_may(shared) -> None:
    path = str(shared / "broken" / "RGB-8bit.czi")
    with pytest.raises(SlideError, match="subblock"):
        open_slide(path, reader="openslide")
    if importlib.util.find_spec("pylibCZIrw") is None:
        assert "cytofm[czi]" in failure(Path(path))
        return
    with open_slide(path) as reader:
        assert (reader.info.reader, reader.info.size_px0) == ("czi", (924, 624))
        red, green, blue = reader.overview(1.0).mean((0, 1))
        assert green > 1.5 * max(red, blue)  # plant cells that shine green


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.needs_shared("data/wsi")
def test_open__real_file_is_read_right(shared, name) -> None:
    reader, kind, codec, size, n_levels, mpp, objective = WHOLE[name]
    slide = open_slide(str(shared / "wsi" / name))
    info = slide.info
    assert (info.reader, info.format, info.codec) == (reader, kind, codec)
    assert info.size_px0 == Size(*size)
    assert len(info.levels) == n_levels
    assert info.mpp == (mpp and pytest.approx(mpp))
    assert info.objective == objective
    for level, facts in enumerate(info.levels):
        pixels = slide.read(level, Box(0, 0, min(500, facts.size_px.w), min(400, facts.size_px.h)))
        assert pixels.any()
    slide.close()


@pytest.mark.needs_shared("data/wsi")
def test_open__zstd_colour_is_right_though_libvips_lacks_it(shared) -> None:
    slide = open_slide(str(shared / "wsi" / "yb10kx5k.zstd.tiff"))
    np.testing.assert_array_equal(slide.read(0, Box(5, 5, 2, 2)), [[[0, 0, 255]] * 2] * 2)
    slide.close()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"is empty \(0 bytes\)"),
        ("Dies ist keine Folie – nur Text\n".encode() * 9, "is a text file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"BM" + bytes(range(256)), "BMP picture.*PNG or TIFF"),
        (b"%PDF-1.7\n" + bytes(200), "PDF"),
        (bytes(range(256)) * 4, "vips: not a TIFF.*openslide: .*tiffslide: "),
    ],
    ids=["empty", "text", "lfs", "bmp", "pdf", "bytes"],
)
def test_open__what_is_no_slide_is_named(tmp_path, content, told) -> None:
    path = tmp_path / "slide.svs"
    path.write_bytes(content)
    line = failure(path)
    assert re.search(told, line), line


def test_open__a_table_of_slides_is_no_slide(tmp_path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text("slide_id,path\na,a.svs\n")
    assert re.search("is a text file, not a slide.*cytofm tile --manifest", failure(path))


@pytest.mark.parametrize(
    ("layout", "name", "kind"),
    [
        ("dz", "x.dzi", "Deep Zoom"),
        ("zoomify", "x/ImageProperties.xml", "Zoomify"),
        ("iiif3", "x/info.json", "IIIF"),
    ],
)
def test_open__what_describes_a_zoomable_picture_is_no_slide(tmp_path, layout, name, kind) -> None:
    image = pyvips.Image.black(300, 300, bands=3).cast("uchar")
    image.dzsave(str(tmp_path / "x"), layout=layout)
    line = failure(tmp_path / name)
    assert re.search(rf"describes .* zoomable picture \({kind}\).*give the slide that it", line)


def test_open__missing_paths_folders_and_devices(tmp_path) -> None:
    assert "no such file or folder" in failure(tmp_path / "nowhere.svs")
    assert "is a folder without a DICOM slide" in failure(tmp_path)
    assert "is no plain file" in failure("/dev/null")
    os.mkfifo(tmp_path / "pipe.svs")
    assert "is a pipe, which can be read only once" in failure(tmp_path / "pipe.svs")
    assert "no such file" in failure("memory://nowhere/slide.svs")
    assert "unknown" in failure("unknown://a/slide.svs")
    with pytest.raises(UsageError, match="no reader is called 'opnslide'"):
        open_slide(str(tmp_path), reader="opnslide")


@pytest.mark.needs_shared("data/wsi")
def test_open__folder_with_two_dicom_series_is_ambiguous(shared, tmp_path) -> None:
    shutil.copytree(shared / "wsi" / "dicom_boxes", tmp_path / "two")
    shutil.copy(shared / "wsi" / "dicom_jpeg" / "jpeg.dicom", tmp_path / "two" / "other.dcm")
    assert "holds 2 DICOM slides" in failure(tmp_path / "two")


@pytest.mark.needs_shared("data/wsi")
def test_open__dicom_that_claims_more_than_its_frames(shared, tmp_path) -> None:
    data = bytearray((shared / "wsi" / "dicom_jpeg" / "jpeg.dicom").read_bytes())
    for tag, claim in ((b"\x48\x00\x06\x00UL", 54_000), (b"\x48\x00\x07\x00UL", 39_000)):
        place = data.index(tag) + 8
        data[place : place + 4] = claim.to_bytes(4, "little")
    (tmp_path / "lie.dcm").write_bytes(data)
    line = failure(tmp_path / "lie.dcm")
    assert "claims 54000 x 39000 px" in line or "DICOM" in line, line


def test_open__slide_that_claims_more_than_its_tile(save, patch) -> None:
    one_tile = save("one.tif", np.zeros((100, 100, 3), np.uint8), compression="jpeg", pyramid=False)
    lie = patch(patch(one_tile, "ImageWidth", 0, 54_000), "ImageLength", 0, 39_000)
    for reader in ("auto", "vips", "openslide", "tiffslide"):
        assert "claims 54000 x 39000 px but lists 1 of 128710 tiles" in failure(lie, reader=reader)


def test_open__urls_and_file_urls(save) -> None:
    import fsspec

    path = save("a b.tif", compression="jpeg")
    slide = open_slide(Path(path).as_uri())
    assert slide.info.reader == "vips"
    with fsspec.open("memory://slides/a.tif", "wb") as handle:
        handle.write(Path(path).read_bytes())
    remote = open_slide("memory://slides/a.tif")
    assert remote.info.reader == "tifffile"
    np.testing.assert_array_equal(
        remote.read(1, Box(13, 17, 200, 100)), slide.read(1, Box(13, 17, 200, 100))
    )
    remote.close()


def test_open__mirax_is_not_taken_for_the_jpeg_it_begins_with(save, tmp_path) -> None:
    shutil.copy(save("a.jpg"), tmp_path / "slide.mrxs")
    assert "MIRAX" in failure(tmp_path / "slide.mrxs")


def test_open__wrong_extension_does_not_matter(save, tmp_path) -> None:
    shutil.copy(save("a.png"), tmp_path / "slide.svs")
    assert open_slide(str(tmp_path / "slide.svs")).info.format == "png"


@pytest.mark.parametrize(
    ("description", "vendor"),
    [
        ('<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">', "leica"),
        ("<?xml?><Argos.Scan.Metadata>", "argos"),
    ],
)
def test_probe__vendor_layouts_are_left_to_openslide(
    tmp_path, picture, description, vendor
) -> None:
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, picture, tile=(64, 64), description=description, metadata=None)
    refusal = readers.load("vips").make().probe(path)
    assert refusal == f"a {vendor} slide has a layout of its own"


@pytest.mark.needs_shared("data/wsi")
def test_open__label_and_macro_are_never_levels(shared, tmp_path, picture) -> None:
    assert len(open_slide(str(shared / "wsi" / "cmu-1-small-region.svs")).info.levels) == 1
    path = str(tmp_path / "a.tif")
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as out:
        out.write(picture, **options)
        out.write(picture[::2, ::2], subfiletype=1, **options)
        out.write(picture[:200, :120], description="label", **options)  # another shape
    sizes = [level.size_px for level in open_slide(path).info.levels]
    assert sizes == [(701, 523), (351, 262)]


def test_open__all_reasons_are_kept_and_errors_pickle(tmp_path) -> None:
    import pickle

    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(CytofmError) as caught:
        open_slide(str(path))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.one_line() == caught.value.one_line()
    assert all(f"{name}: " in copy.message for name in ("vips", "openslide", "tiffslide"))


def test_import__loads_no_reader_library() -> None:
    code = "import sys, cytofm_cli.slides.open; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"pyvips", "openslide", "tiffslide", "tifffile", "zarr", "PIL", "torch"}
