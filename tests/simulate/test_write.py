"""Files of slides: a region is the whole's, levels are means of levels, readers agree."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import openslide
import pydicom
import pytest
import pyvips
import tifffile
import tiffslide
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cytofm_cli.pictures.pyramid import Level, halved, level_sizes, padded
from cytofm_cli.simulate.dicom import write_dicom
from cytofm_cli.simulate.parts import PART, Part, PartMaker, encode_jpeg, tasks_of
from cytofm_cli.simulate.preset import Dirt, Optics
from cytofm_cli.simulate.render import Scene, render, tiles_of
from cytofm_cli.simulate.write import (
    Film,
    rows_of,
    tiles_in_order,
    with_jpeg_density,
    with_png_density,
    write_ome,
    write_svs,
)
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box

from .simulated import PRESET, slides

# Little is painted, on a slide of 3 by 3 parts of which most is left out.
SPARSE = dataclasses.replace(
    PRESET, layout=dataclasses.replace(PRESET.layout, cells_per_mm2=25, bystanders={})
)


def slide(**more):
    return slides(**{"patients": 1, "slides_per_patient": 1, **more})[1][0]


def write(path, one, preset, *, how=write_ome):
    scene = Scene(one, preset)
    make = PartMaker(scene, tiled=True)
    film = Film(mpp=preset.mpp, blank=scene.blank, optics=preset.optics)
    how(path, rows_of(map(make, tasks_of(one)), one.size_px), one, film)
    return scene


@settings(max_examples=12, deadline=None)
@given(st.tuples(*(st.integers(0, 900) for _ in range(2))), st.integers(1, 300))
def test_region__alone_is_that_of_the_whole(corner, side) -> None:
    one = slide(size_px=1200, seed=3)
    (x, y), whole = corner, render(one, PRESET, (0, 0, 1200, 1200))
    box = (x, y, min(x + side, 1200), min(y + side, 1200))
    assert (render(one, PRESET, box) == whole[y : box[3], x : box[2]]).all()


def test_region__alone_is_that_of_the_whole_with_all_that_a_camera_does() -> None:
    optics = Optics(grain=0.1, sharpen=0.6, fringe=0.004)
    preset = dataclasses.replace(
        PRESET, optics=optics, dirt=Dirt(debris_per_mm2=400, film=0.3, gradient=0.1)
    )
    one = slide(size_px=1200, seed=3)
    whole = render(one, preset, (0, 0, 1200, 1200))
    for x, y, w, h in ((0, 0, 31, 1200), (255, 511, 2, 3), (1100, 900, 100, 300)):
        part = render(one, preset, (x, y, x + w, y + h))
        assert (part == whole[y : y + h, x : x + w]).all()


def test_fringe__moves_red_outwards_and_blue_inwards_of_fields_alone() -> None:
    sharp = dataclasses.replace(PRESET, optics=Optics(noise=0.0))
    wide = dataclasses.replace(PRESET, optics=Optics(noise=0.0, fringe=0.005))
    one, box = slide(size_px=1200, seed=1), (1000, 540, 1200, 660)
    plain, moved = (render(one, preset, box).astype(float) for preset in (sharp, wide))
    np.testing.assert_array_equal(plain[..., 1], moved[..., 1])
    assert np.ptp(plain) > 50
    for channel, px in ((0, 2.5), (2, -4)):  # 0.005 and -0.008 times 500 px from the middle

        def apart(by: int, channel=channel) -> float:
            return float(np.abs(np.roll(plain, by, 1) - moved)[:, 20:-20, channel].mean())

        assert min(range(-6, 7), key=apart) in {int(np.floor(px)), int(np.ceil(px))}
    scanned = slide(size_px=4200, seed=3)
    assert (render(scanned, wide, box) == render(scanned, sharp, box)).all()


@pytest.mark.parametrize(("colour", "sides"), [("4:4:4", (1, 1)), ("4:2:2", (2, 1))])
def test_ome__colour_is_as_fine_as_the_preset_says(tmp_path, colour: str, sides) -> None:
    preset = dataclasses.replace(PRESET, optics=Optics(jpeg_colour=colour))
    path, one = tmp_path / "a.ome.tiff", slide(size_px=700)
    write(path, one, preset)
    pixels = render(one, preset, (0, 0, 700, 700)).astype(int)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].tags["YCbCrSubSampling"].value == sides
        assert np.abs(file.asarray() - pixels).mean() < 2
    with open_slide(path) as reader:
        assert np.abs(reader.read(0, Box(0, 0, 700, 700)) - pixels).mean() < 2


def test_dirt__is_a_factor_and_moves_no_cell() -> None:
    soiled = dataclasses.replace(PRESET, dirt=Dirt(debris_per_mm2=400, gradient=0.1))
    box = (0, 0, 600, 600)
    clean, usual, filthy = (
        render(slide(size_px=600, seed=1, dirt=dirt), soiled, box).astype(float)
        for dirt in (0.0, 1.0, 4.0)
    )
    assert clean.mean() > usual.mean() > filthy.mean()
    spotless = dataclasses.replace(PRESET, dirt=Dirt())
    np.testing.assert_array_equal(clean, render(slide(size_px=600, seed=1), spotless, box))


def test_planes__differ_in_focus_alone() -> None:
    one = slide(size_px=600, planes=3, plane_um=4.0, seed=1)
    low, middle, high = (render(one, PRESET, (0, 0, 600, 600), k).astype(float) for k in range(3))
    detail = [np.abs(np.diff(plane, axis=1)).mean() for plane in (low, middle, high)]
    assert detail[1] > detail[0] and detail[1] > detail[2]
    assert [one.focus_um(k) for k in range(3)] == [-4, 0, 4]


@given(st.integers(1, 9), st.integers(1, 9))
def test_halved__is_the_mean_of_four(h, w) -> None:
    image = np.random.default_rng(h * 10 + w).integers(0, 256, (h, w, 3), np.uint8)
    even = np.pad(image, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge").astype(float)
    mean = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    assert np.abs(halved(image) - mean).max() <= 0.5


def test_levels__of_strips_are_those_of_the_whole(tmp_path) -> None:
    side = 1500
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    sizes = level_sizes(side)
    assert sizes == [1500, 750, 375]
    level = Level(sizes, lambda tile: tile.tobytes(), tmp_path, 512)
    for top in range(0, side, 1024):
        level.add(image[top : top + 1024])
    level.finish()
    for one, size in zip(level.levels(), sizes, strict=True):
        tiles = [np.frombuffer(data, np.uint8).reshape(512, 512, 3) for data in one.tiles()]
        wanted = [padded(image[y:b, x:a], 512) for x, y, a, b in tiles_of((0, 0, size, size))]
        assert len(tiles) == len(wanted)
        assert all((a == b).all() for a, b in zip(tiles, wanted, strict=True))
        image = halved(image)
    level.close()


def test_tiles__of_parts_are_in_the_order_of_the_slide() -> None:
    side = PART + 600  # 6 tiles across: 4 of the first part, 2 of the second
    order = [[f"{p}{k}".encode() for k in range(n)] for p, n in (("a", 8), ("b", 4))]
    expected = [b"a0", b"a1", b"a2", b"a3", b"b0", b"b1", b"a4", b"a5", b"a6", b"a7", b"b2", b"b3"]
    assert list(tiles_in_order(order, side)) == expected
    parts = [Part([], None, None, {}, str(k), b"", {}, 0) for k in range(4)]
    assert [[p.rows for p in row] for row in rows_of(iter(parts), side)] == [["0", "1"], ["2", "3"]]


def test_ome__is_read_as_written(tmp_path) -> None:
    path, one = tmp_path / "a.ome.tiff", slide(size_px=1300, seed=2)
    write(path, one, PRESET)
    pixels = render(one, PRESET, (0, 0, 1300, 1300))
    with tifffile.TiffFile(path) as file:
        assert [level.shape for level in file.series[0].levels] == [
            (1300, 1300, 3), (650, 650, 3), (325, 325, 3)
        ]  # fmt: skip
        assert np.abs(file.asarray().astype(int) - pixels).mean() < 2
        below = file.series[0].levels[1].asarray().astype(int)
        assert np.abs(below - halved(pixels)).mean() < 2
    with open_slide(path) as reader:
        assert reader.info.mpp == pytest.approx(0.25)
        assert [level.size_px.w for level in reader.info.levels] == [1300, 650, 325]
        part = reader.read(0, Box(512, 512, 256, 256))
        assert np.abs(part.astype(int) - pixels[512:768, 512:768]).mean() < 2
    with openslide.OpenSlide(path) as slow:
        assert float(slow.properties["openslide.mpp-x"]) == pytest.approx(0.25)
    with tiffslide.TiffSlide(path) as quick:
        assert quick.properties["tiffslide.mpp-x"] == pytest.approx(0.25)
    image = pyvips.Image.new_from_file(str(path))
    assert (image.width, 1e3 / image.xres) == (1300, pytest.approx(0.25))


def test_ome__planes_are_a_z_stack(tmp_path) -> None:
    path, one = tmp_path / "a.ome.tiff", slide(size_px=700, planes=3, plane_um=2.5)
    write(path, one, PRESET)
    with tifffile.TiffFile(path) as file:
        assert [level.shape for level in file.series[0].levels] == [
            (3, 700, 700, 3), (3, 350, 350, 3)
        ]  # fmt: skip
        assert 'PhysicalSizeZ="2.5"' in file.ome_metadata
        for plane in range(3):
            pixels = render(one, PRESET, (0, 0, 700, 700), plane)
            assert np.abs(file.pages[plane].asarray().astype(int) - pixels).mean() < 2
            below = file.series[0].levels[1].asarray()[plane].astype(int)
            assert np.abs(below - halved(pixels)).mean() < 2
    with open_slide(path) as reader:
        assert (reader.info.n_focal_planes, reader.info.focal_plane) == (3, 1)


def test_svs__is_what_openslide_takes_for_an_aperio_slide(tmp_path) -> None:
    path, one = tmp_path / "a.svs", slide(size_px=1300, seed=2)
    write(path, one, PRESET, how=write_svs)
    with openslide.OpenSlide(path) as file:
        assert file.properties["openslide.vendor"] == "aperio"
        assert file.properties["openslide.mpp-x"] == "0.25"
        assert file.properties["openslide.objective-power"] == "40"
        assert file.level_dimensions == ((1300, 1300), (325, 325))
        assert set(file.associated_images) == {"thumbnail"}
        pixels = render(one, PRESET, (600, 600, 900, 900)).astype(int)
        read = np.asarray(file.read_region((600, 600), 0, (300, 300)).convert("RGB"))
        assert np.abs(read - pixels).mean() < 2
    with open_slide(path) as reader:
        assert (reader.info.format, reader.info.mpp) == ("aperio", pytest.approx(0.25))


def test_dicom__is_read_as_written(tmp_path) -> None:
    folder, one = tmp_path / "a", slide(size_px=1300, seed=2)
    folder.mkdir()
    preset = dataclasses.replace(PRESET, optics=Optics(jpeg_colour="4:2:2"))
    write(folder, one, preset, how=write_dicom)
    pixels = render(one, preset, (0, 0, 1300, 1300))
    names = [f"level-{level}.dcm" for level in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == names
    parts = [pydicom.dcmread(folder / name) for name in names]
    assert [part.TotalPixelMatrixRows for part in parts] == [1300, 650, 325]
    assert [part.NumberOfFrames for part in parts] == [9, 4, 1]
    assert len({part.SeriesInstanceUID for part in parts}) == 1
    assert len({part.SOPInstanceUID for part in parts}) == 3
    for part in parts:
        tags = [element.tag for element in part]
        assert tags == sorted(tags)
        for element in part:
            if element.VR in {"CS", "SH", "LO", "UI", "DA", "TM", "DT", "DS", "IS"}:
                for value in element.value if element.VM > 1 else [element.value]:
                    pydicom.valuerep.validate_value(element.VR, str(value), pydicom.config.RAISE)
    frames = list(pydicom.encaps.generate_frames(parts[0].PixelData, number_of_frames=9))
    tile = np.asarray(Image.open(io.BytesIO(frames[4]))).astype(int)
    assert np.abs(tile - pixels[512:1024, 512:1024]).mean() < 2
    with openslide.OpenSlide(folder / names[1]) as file:
        assert file.level_dimensions == ((1300, 1300), (650, 650), (325, 325))
        assert float(file.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        read = np.asarray(file.read_region((600, 600), 0, (300, 300)).convert("RGB")).astype(int)
        assert np.abs(read - pixels[600:900, 600:900]).mean() < 2
    with open_slide(folder) as reader:
        assert (reader.info.format, reader.info.mpp) == ("dicom", pytest.approx(0.25))
        below = reader.read(1, Box(0, 0, 650, 650)).astype(int)
        assert np.abs(below - halved(pixels)).mean() < 2


def test_slide__leaves_empty_glass_out(tmp_path) -> None:
    path, one = tmp_path / "a.ome.tiff", slide(size_px=4200, covered=0.2, seed=1)
    scene = write(path, one, SPARSE)
    boxes = tiles_of((0, 0, 4200, 4200))
    blank = [box for box in boxes if scene.is_blank(box)]
    assert 0 < len(blank) < len(boxes)
    whole = tifffile.imread(path, level=0)
    for x0, y0, x1, y1 in blank:
        assert np.abs(whole[y0:y1, x0:x1].astype(int) - scene.blank).max() <= 1
    x0, y0, x1, y1 = blank[0]
    assert (render(one, SPARSE, (x0 + 5, y0, x0 + 9, y0 + 3)) == scene.blank).all()


def test_density__of_pictures_is_read_back() -> None:
    tile = np.full((16, 16, 3), 200, np.uint8)
    plain = encode_jpeg(tile, PRESET.optics)
    jpeg = with_jpeg_density(plain, 0.25)
    image = pyvips.Image.new_from_buffer(jpeg, "")
    assert 1e3 / image.xres == pytest.approx(0.25)
    assert with_jpeg_density(plain, 0.1) == plain  # does not fit
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "png")
    image = pyvips.Image.new_from_buffer(with_png_density(buffer.getvalue(), 0.1), "")
    assert 1e3 / image.xres == pytest.approx(0.1)
    assert (image.numpy() == tile).all()
