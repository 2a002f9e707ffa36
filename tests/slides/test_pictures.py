"""Which picture of a file is the slide, its levels, and its scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box

RGB = {"photometric": "rgb", "metadata": None}
APERIO = "Aperio Image Library v12.0.15 \r\n"
LABEL = np.full((150, 250, 3), (250, 240, 120), np.uint8)
LABEL[40:110, 60:200] = 20


@pytest.fixture(scope="session")
def slide_px() -> np.ndarray:
    """Return (512, 512, 3) uint8: dark discs on glass."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:512, :512]
    pixels = np.full((512, 512, 3), (243, 242, 240), np.float64)
    for cx, cy in rng.integers(20, 490, (40, 2)):
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < 300] = rng.uniform(40, 200, 3)
    return np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)


def half(pixels: np.ndarray, f: int) -> np.ndarray:
    h, w = (side // f for side in pixels.shape[:2])
    parts = pixels[: h * f, : w * f].reshape(h, f, w, f, 3)
    return parts.mean((1, 3)).round().astype(np.uint8)


def at(um: float) -> dict[str, object]:
    return {"resolution": (1e4 / um, 1e4 / um), "resolutionunit": "CENTIMETER"}


def write(path: Path, pages: list[tuple[np.ndarray, dict[str, object]]], **options: object) -> str:
    with tifffile.TiffWriter(path, **options) as out:
        for pixels, own in pages:
            out.write(pixels, **{**RGB, **own})
    return str(path)


TILED = {"tile": (64, 64), "compression": "deflate"}


def pyramid_pages(pixels: np.ndarray, order: tuple[int, ...], *, reduced: bool) -> list:
    return [
        (half(pixels, f), {**TILED, **at(0.25 * f), "subfiletype": int(reduced and f > 1)})
        for f in order
    ]


def assert_alike(got: np.ndarray, expected: np.ndarray) -> None:
    """Libvips and means over whole blocks differ at edges only."""
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < 3


def facts(path: str) -> tuple[list[tuple[int, int]], float | None]:
    slide = open_slide(path)
    slide.close()
    mpp = slide.info.mpp
    return [tuple(level.size_px) for level in slide.info.levels], mpp and round(mpp, 4)


WHOLE = ([(512, 512), (256, 256), (128, 128)], 0.25)


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("order", [(1, 2, 4), (4, 2, 1), (2, 1, 4)])
def test_order__of_directories_does_not_matter(tmp_path, slide_px, order, reduced) -> None:
    path = write(tmp_path / "a.tif", pyramid_pages(slide_px, order, reduced=reduced))
    assert facts(path) == WHOLE
    slide = open_slide(path)
    np.testing.assert_array_equal(slide.read(0, Box(0, 0, 512, 512)), slide_px)
    np.testing.assert_array_equal(slide.read(2, Box(0, 0, 128, 128)), half(slide_px, 4))


@pytest.mark.parametrize("own", [TILED, {}, {**TILED, "subfiletype": 1}], ids=str)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_label__is_never_the_slide_wherever_it_lies(tmp_path, slide_px, own, place) -> None:
    pages = pyramid_pages(slide_px, (1, 2, 4), reduced=True)
    pages.insert(place, (LABEL, {**own, **at(1.9)}))
    assert facts(write(tmp_path / "a.tif", pages)) == WHOLE


@pytest.mark.parametrize("name", ["label", "Macro", "thumbnail", "overview image", "label 900x900"])
def test_named_picture__is_not_the_slide_even_if_it_is_larger(tmp_path, slide_px, name) -> None:
    large = np.full((900, 900, 3), 200, np.uint8)
    pages = [(large, {**TILED, "description": name})]
    pages += pyramid_pages(slide_px, (1, 2, 4), reduced=True)
    assert facts(write(tmp_path / "a.tif", pages)) == WHOLE
    alone = write(tmp_path / "b.tif", pages[:1])
    with pytest.raises(SlideError, match=rf"holds only the {name.split()[0].lower()} of a slide"):
        open_slide(alone)


def test_level__of_another_picture_is_dropped_and_told(tmp_path, slide_px) -> None:
    other = half(slide_px[::-1, ::-1], 2)
    pages = [(slide_px, {**TILED, **at(0.25)}), (other, {**TILED, **at(0.25)})]
    path = write(tmp_path / "a.tif", pages)
    assert facts(path)[0] == [(512, 512)]
    assert any("show something else" in note for note in open_slide(path).info.notes)
    assert_alike(open_slide(path).overview(8), half(slide_px, 8))


def test_level__of_another_scale_is_dropped(tmp_path, slide_px) -> None:
    """Half the size at a quarter of the resolution is another crop."""
    pages = [(slide_px, {**TILED, **at(0.25)}), (half(slide_px, 2), {**TILED, **at(1.0)})]
    assert facts(write(tmp_path / "a.tif", pages))[0] == [(512, 512)]


@pytest.mark.parametrize("stated", [0.25, 0.5])
def test_level__may_repeat_the_resolution_of_the_base(tmp_path, slide_px, stated) -> None:
    pages = [(slide_px, {**TILED, **at(0.25)}), (half(slide_px, 2), {**TILED, **at(stated)})]
    assert facts(write(tmp_path / "a.tif", pages))[0] == [(512, 512), (256, 256)]


def test_level__of_sub_directories_and_pages_mixed(tmp_path, slide_px) -> None:
    path = write(
        tmp_path / "a.tif",
        [
            (slide_px, {**TILED, "subifds": 1, **at(0.25)}),
            (half(slide_px, 2), {**TILED, "subfiletype": 1}),
            (half(slide_px, 4), TILED),
        ],
    )
    assert facts(path) == WHOLE


def test_aperio__a_thumbnail_alone_is_refused(tmp_path, slide_px) -> None:
    thumb = {"compression": "jpeg", "rowsperstrip": 16}
    said = APERIO + "512x512 -> 128x128 - |AppMag = 40|MPP = 0.2500"
    path = write(tmp_path / "a.svs", [(half(slide_px, 4), {**thumb, "description": said})])
    told = r"holds only the thumbnail \(128 x 128 px\) of a slide of 512 x 512 px"
    with pytest.raises(SlideError, match=told):
        open_slide(path)


def test_aperio__a_reduced_copy_has_the_scale_of_its_own_pixels(tmp_path, slide_px) -> None:
    said = APERIO + "512x512 [0,0 512x512] (64x64) -> 128x128 JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"
    path = write(tmp_path / "a.svs", [(half(slide_px, 4), {**TILED, "description": said})])
    info = open_slide(path).info
    assert (info.mpp, info.mpp_source, info.objective) == (1.0, "aperio.MPP", 10.0)


@pytest.mark.parametrize("first", ["thumbnail", "slide"])
def test_aperio__facts_are_those_of_the_slides_own_page(tmp_path, slide_px, first) -> None:
    said = APERIO + "512x512 [0,0 512x512] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    thumb = APERIO + "512x512 -> 128x128 - |AppMag = 20|MPP = 0.4990"
    pages = [
        (slide_px, {**TILED, "description": said}),
        (half(slide_px, 4), {"compression": "jpeg", "description": thumb}),
        (LABEL, {"subfiletype": 1, "description": APERIO + "label 250x150"}),
    ]
    if first == "thumbnail":
        pages.reverse()
    info = open_slide(write(tmp_path / "a.svs", pages)).info
    assert (info.format, info.size_px0, info.mpp, info.objective) == (
        "aperio",
        (512, 512),
        0.499,
        20,
    )


@pytest.mark.parametrize("bar", ["|", "/"])
def test_motic__resolution_and_objective_stand_in_the_description(tmp_path, slide_px, bar) -> None:
    said = f"Motic V1.0.0 512x512 [0,0 512x512]{bar}AppMag = 40{bar}MPP = 0.257290"
    path = write(tmp_path / "a.svs", [(slide_px, {**TILED, "description": said})])
    info = open_slide(path).info
    assert (info.mpp, info.mpp_source, info.objective) == (0.25729, "motic.MPP", 40)


def test_imagej__counts_pixels_a_micrometre(tmp_path, slide_px) -> None:
    said = "ImageJ=1.54f\nunit=micron\nslices=1\n"
    own = {"resolution": (4, 4), "resolutionunit": "NONE", "description": said}
    info = open_slide(write(tmp_path / "a.tif", [(slide_px, own)])).info
    assert (info.mpp, info.mpp_source) == (0.25, "imagej.unit")


def ome_metadata(name: str, um: float | None = 0.25) -> dict[str, object]:
    size = {f"PhysicalSize{a}": um for a in "XY"} if um else {}
    return {"axes": "YXS", "Name": name, **size}


def ome_file(path: Path, images: list[tuple[str, np.ndarray, int]]) -> str:
    """Write Images with `n` SubIFD levels each."""
    with tifffile.TiffWriter(path, ome=True) as out:
        for name, pixels, n in images:
            options = {"photometric": "rgb", **TILED}
            out.write(pixels, subifds=n, metadata=ome_metadata(name), **options)
            for level in range(1, n + 1):
                out.write(half(pixels, 2**level), subfiletype=1, **options)
    return str(path)


def test_ome__pages_of_another_image_are_no_levels(tmp_path, slide_px) -> None:
    other = np.full((256, 256, 3), (10, 200, 10), np.uint8)
    path = ome_file(tmp_path / "a.ome.tif", [("field 1", slide_px, 0), ("field 2", other, 0)])
    assert facts(path) == ([(512, 512)], 0.25)
    assert "Of 2 pictures in the file, Image 0 ('field 1') is read." in open_slide(path).info.notes


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("name", "side"), [("label", 900), ("macro image", 900), ("", 300)])
def test_ome__the_slide_is_found_among_images(tmp_path, slide_px, swap, name, side) -> None:
    other = np.full((side, side, 3), 120, np.uint8)
    images = [(name, other, 0), ("slide", slide_px, 2)]
    path = ome_file(tmp_path / "a.ome.tif", images[::-1] if swap else images)
    assert facts(path) == WHOLE
    np.testing.assert_array_equal(open_slide(path).read(0, Box(0, 0, 512, 512)), slide_px)


def test_ome__a_label_alone_is_refused(tmp_path) -> None:
    with pytest.raises(SlideError, match="holds only the label of a slide"):
        open_slide(ome_file(tmp_path / "a.ome.tif", [("Label", LABEL, 0)]))


@pytest.mark.parametrize("codec", ["deflate", "zstd", "lzw", "lzma", "jpegxl", None])
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_ome__channels_hold_whichever_reader_decodes(tmp_path, slide_px, codec, tile) -> None:
    path = str(tmp_path / "a.ome.tif")
    metadata = {**ome_metadata("slide"), "axes": "CYX"}
    args = {"lossless": True} if codec == "jpegxl" else None
    tifffile.imwrite(
        path, np.moveaxis(slide_px, 2, 0), ome=True, photometric="minisblack", tile=tile,
        compression=codec, compressionargs=args, metadata=metadata,
    )  # fmt: skip
    slide = open_slide(path)
    assert slide.info.mpp == 0.25
    assert "Of 3 channels these are read: red = 0, green = 1, blue = 2." in slide.info.notes
    np.testing.assert_array_equal(slide.read(0, Box(100, 90, 300, 200)), slide_px[90:290, 100:400])
    assert_alike(slide.overview(4), half(slide_px, 4))
    slide.close()


@pytest.mark.parametrize("codec", ["lzw", "zstd", "deflate", "jpeg", "jpeg2000", "webp", None])
@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_ome__planes_and_levels_hold_whichever_reader_decodes(
    tmp_path, slide_px, codec, planar
) -> None:
    if (codec, planar) == ("webp", "separate"):
        pytest.skip("WebP has no single plane")
    path = str(tmp_path / "a.ome.tif")
    separate = planar == "separate"
    with tifffile.TiffWriter(path, ome=True) as out:
        for f in (1, 2, 4):
            pixels = half(slide_px, f)
            own = {"subfiletype": 1} if f > 1 else {"subifds": 2}
            out.write(
                np.moveaxis(pixels, 2, 0) if separate else pixels,
                photometric="rgb", planarconfig=planar, tile=(64, 64), compression=codec,
                metadata={**ome_metadata("a"), "axes": "SYX" if separate else "YXS"}, **own,
            )  # fmt: skip
    assert facts(path) == WHOLE
    got = open_slide(path).read(0, Box(0, 0, 512, 512)).astype(int)
    assert np.abs(got - slide_px).mean() < 6  # what JPEG loses of sharp discs
    if codec in ("lzw", "zstd", "deflate", None):
        np.testing.assert_array_equal(got, slide_px)


def test_ome__channels_called_by_colour_are_those_colours(tmp_path, slide_px) -> None:
    path = str(tmp_path / "a.ome.tif")
    metadata = {"axes": "CYX", "Channel": {"Name": ["Blue", "Green", "Red"]}}
    bgr = np.moveaxis(slide_px[..., ::-1], 2, 0)
    tifffile.imwrite(path, bgr, ome=True, photometric="minisblack", metadata=metadata)
    np.testing.assert_array_equal(open_slide(path).read(0, Box(0, 0, 512, 512)), slide_px)


def test_ome__objective_is_the_one_that_the_image_names(tmp_path, slide_px) -> None:
    path = ome_file(tmp_path / "a.ome.tif", [("a", slide_px, 0)])
    xml = tifffile.tiffcomment(path)
    lenses = "".join(
        f'<Objective ID="Objective:{i}" NominalMagnification="{m}"/>' for i, m in enumerate((4, 40))
    )
    xml = xml.replace("<Image ", f"<Instrument ID='Instrument:0'>{lenses}</Instrument><Image ", 1)
    xml = xml.replace("<Pixels ", '<ObjectiveSettings ID="Objective:1"/><Pixels ', 1)
    tifffile.tiffcomment(path, xml.encode())
    assert open_slide(path).info.objective == 40


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_reader__by_name_has_the_facts_of_the_file_or_refuses(
    tmp_path, slide_px, reader: str
) -> None:
    pages = pyramid_pages(slide_px, (1, 2, 4), reduced=True)
    slide = open_slide(write(tmp_path / "a.tif", pages), reader=reader)
    slide.close()
    assert (slide.info.mpp, slide.info.mpp_source) == (pytest.approx(0.25), "tiff.XResolution")
    path = str(tmp_path / "c.ome.tif")
    channels = np.moveaxis(slide_px, 2, 0)
    tifffile.imwrite(
        path, channels, ome=True, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX"}
    )
    with pytest.raises(SlideError, match="channels in separate pictures"):
        open_slide(path, reader=reader)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_slide__is_the_picture_that_states_a_microscopes_scale(tmp_path, slide_px, order) -> None:
    photo = (np.full((480, 700, 3), 210, np.uint8), TILED)  # larger, tiled, of no known name
    pages = [photo, (slide_px, {**TILED, **at(0.25)})]
    path = write(tmp_path / "s.tif", [pages[i] for i in order])
    assert facts(path) == ([(512, 512)], 0.25)
    levels = [(slide_px, TILED), (half(slide_px, 2), {**TILED, **at(0.5)})]
    assert facts(write(tmp_path / "l.tif", levels))[0] == [(512, 512), (256, 256)]


@pytest.mark.parametrize(
    ("mpp", "objective", "tag_um", "told"),
    [
        (0.25, 40, 0.25, []),
        (0.2425, 20, 0.2425, ["an objective of 20×, which has about 0.5"]),
        (0.5, 40, 0.5, ["an objective of 40×, which has about 0.25"]),
        (0.25, 40, 1.0, ["0.25 µm/px (aperio.MPP) and 1 (tiff.XResolution); the first is taken"]),
        (0.35, 40, 0.35, []),
    ],
)
def test_contradicting_scales__are_told(tmp_path, slide_px, mpp, objective, tag_um, told) -> None:
    text = f"{APERIO}512x512 (64x64) RAW|AppMag = {objective}|MPP = {mpp}"
    own = {**TILED, **at(tag_um), "description": text}
    slide = open_slide(write(tmp_path / "s.svs", [(slide_px, own)]))
    slide.close()
    assert slide.info.mpp == mpp
    assert len(slide.info.notes) == len(told)
    assert all(part in note for part, note in zip(told, slide.info.notes, strict=True))


@pytest.mark.parametrize(
    ("unit", "per_unit"), [("um", 4), ("mm", 4000), ("cm", 40_000), ("inch", 101_600)]
)
def test_imagej__unit_of_the_text_counts(tmp_path, slide_px, unit, per_unit) -> None:
    own = {"resolution": (per_unit, per_unit), "resolutionunit": "NONE"}
    own["description"] = f"ImageJ=1.53\nunit={unit}\n"
    assert facts(write(tmp_path / "s.tif", [(slide_px, own)])) == ([(512, 512)], 0.25)


@pytest.mark.parametrize("tag", [256, 257])
def test_picture_without_a_size__is_refused(tmp_path, slide_px, tag) -> None:
    path = Path(write(tmp_path / "s.tif", [(slide_px, TILED)]))
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags[tag].valueoffset
    raw[place : place + 4] = bytes(4)
    path.write_bytes(raw)
    with pytest.raises(SlideError, match="without a picture size"):
        open_slide(str(path))
