"""What is drawn: colours, letters, lines, bars and sheets."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytofm_cli.pictures import colours, files, scale_bar, shapes, sheet, text


def paper(height=60, width=80):
    return np.full((height, width, 3), 200, np.uint8)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("name", colours.MAPS)
def test_colour_map__grows_lighter_all_the_way(name):
    levels = [luminance(c) for c in colours.colour_map(name) / 255]
    assert np.all(np.diff(levels[::8]) > 0)


def test_shade__ends_and_what_lies_beyond():
    ends = colours.colour_map("viridis")[[0, 255]]
    drawn = colours.shade(np.array([[0.0, -3, np.nan], [1, 9, np.inf]]))
    assert drawn.shape == (2, 3, 3)
    assert (drawn == ends[:, None]).all()


def test_class_colour__is_each_other_and_grey_after_the_last():
    drawn = [colours.class_colour(i) for i in range(len(colours.CLASSES))]
    assert len(set(drawn)) == 7
    assert colours.class_colour(7) == colours.class_colour(99) == colours.OTHER
    assert colours.hex_of((0, 158, 115)) == "#009e73"


def test_printable__keeps_mu_and_takes_accents_off():
    assert text.printable("20 µm") == text.printable("20 μm") == "20 µm"
    assert text.printable("Gebärmutter × 2 – ²") == "Gebarmutter x 2 - 2"
    assert text.printable("細胞\n") == "?? "


def test_ink__of_mu_is_a_u_with_a_stem_below():
    u, mu = text.ink("u", 40), text.ink("µ", 40)
    assert u.shape == mu.shape
    more = np.argwhere(mu.astype(int) - u > 128)
    base = np.flatnonzero(u.any(1))[-1]
    assert more[:, 0].max() > base + 5  # below the line
    assert more[:, 1].max() < u.shape[1] / 3  # at the left


def test_write__is_ink_on_a_halo_and_is_cut_off_at_the_edge():
    canvas = np.zeros((30, 40, 3), np.uint8)
    text.write(canvas, "WWWWWW", 20, 5, (255, 0, 0), halo=True)
    assert (canvas == (255, 0, 0)).all(2).any()
    assert (canvas == colours.PAPER).all(2).any()
    assert not canvas[:, :18].any()


def test_rectangle__is_two_pixels_wide_inside():
    canvas = paper()
    shapes.rectangle(canvas, 10, 20, 30, 15, (1, 2, 3))
    drawn = (canvas == (1, 2, 3)).all(2)
    wanted = np.zeros_like(drawn)
    wanted[20:35, 10:40] = True
    wanted[22:33, 12:38] = False
    assert np.array_equal(drawn, wanted)


@pytest.mark.parametrize("at", [(0, 0), (-40, 3), (79, 59), (200, 200), (-3, -3)])
def test_cross__at_and_beyond_the_edge_changes_nothing_else(at):
    canvas = paper()
    shapes.cross(canvas, *at, (9, 9, 9))
    y, x = np.nonzero((canvas != 200).any(2))
    assert (np.abs(x - at[0]) <= 6).all() and (np.abs(y - at[1]) <= 6).all()


def test_edge__of_a_mask_of_half_the_size():
    canvas, mask = paper(40, 40), np.zeros((20, 20), bool)
    mask[5:, :] = True
    shapes.edge(canvas, mask, (0, 0, 0))
    assert np.flatnonzero((canvas == 0).all(2).any(1)).tolist() == [10]


def test_polygons__points_count_from_the_corner_of_the_first_pixel():
    canvas = paper(20, 20)
    square = np.array([[5.5, 5.5], [12.5, 5.5], [12.5, 9.5], [5.5, 9.5]])
    shapes.polygons(canvas, [square], (0, 0, 0))
    dark = np.argwhere(canvas.max(2) < 60)  # smooth lines are nowhere quite black
    assert dark.min(0).tolist() == [5, 5]
    assert dark.max(0).tolist() == [9, 12]


@given(st.floats(1e-6, 1e6))
def test_nice_length__is_a_round_number_that_fits(longest):
    length = scale_bar.nice_length_um(longest)
    digits = length / 10 ** math.floor(math.log10(length) + 1e-9)
    assert round(digits, 6) in (1, 2, 5)
    assert length <= longest * (1 + 1e-6) < 2.5 * length * (1 + 1e-6)


@pytest.mark.parametrize(
    ("width", "mpp", "um"), [(400, 0.25, 20), (400, 1.0, 100), (400, 20, 2000), (64, 0.5, 5)]
)
def test_scale_bar__is_as_long_as_it_says(width, mpp, um):
    canvas = paper(100, width)
    assert scale_bar.draw_scale_bar(canvas, mpp) == um
    rows = (canvas == colours.INK).all(2).sum(1)
    assert rows[-8] == round(um / mpp)  # a row of the bar


def test_scale_bar__label():
    assert scale_bar.label_of(0.5) == "0.5 µm"
    assert scale_bar.label_of(2000) == "2 mm"


@pytest.mark.parametrize(("shape", "mpp"), [((10, 80), 0.25), ((80, 10), 0.25), ((80, 80), 0)])
def test_scale_bar__none_where_there_is_no_room_or_no_scale(shape, mpp):
    canvas = paper(*shape)
    assert scale_bar.draw_scale_bar(canvas, mpp) is None
    assert (canvas == 200).all()


def test_labelled__writes_above_the_image_in_letters_that_fit():
    image = np.full((40, 96, 3), 7, np.uint8)
    short, long = (sheet.labelled(image, words) for words in ("7 local", "a label of many words"))
    for made in (short, long):
        assert made.shape == (58, 96, 3)
        assert np.array_equal(made[18:], image)
        assert made[:18].min() < 60  # ink on paper
    ink = [np.flatnonzero((made[:18] < 150).any((1, 2))) for made in (short, long)]
    assert ink[1][-1] - ink[1][0] < ink[0][-1] - ink[0][0]  # the long one is in small letters


def test_grid__rows_of_two():
    images = [np.full((10, 20, 3), i, np.uint8) for i in range(3)]
    drawn = sheet.grid(images, 2)
    assert drawn.shape == (10 + 2 * (10 + 10), 2 * (20 + 10) + 20, 3)
    assert (drawn[10:20, 10:30] == 0).all()
    assert (drawn[10:20, 40:60] == 1).all()
    assert (drawn[30:40, 10:30] == 2).all()
    assert (drawn[30:40, 40:60] == colours.PAPER).all()


def test_save_png__is_lossless_and_whole(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "a folder" / "a picture.png"
    files.save_png(path, picture)
    assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert [found.name for found in path.parent.iterdir()] == ["a picture.png"]


def test_data_uri__says_what_it_holds():
    picture = np.full((8, 8, 3), 90, np.uint8)
    assert files.data_uri(files.png_bytes(picture)).startswith("data:image/png;base64,iVBOR")
    encoded = files.jpeg_bytes(picture)
    assert files.data_uri(encoded).startswith("data:image/jpeg;base64,/9j/")
    assert np.abs(np.asarray(Image.open(io.BytesIO(encoded))).astype(int) - 90).max() <= 1


def test_png_bytes__keeps_alpha():
    picture = np.dstack([np.full((4, 4, 3), 9, np.uint8), np.full((4, 4), 128, np.uint8)])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files.png_bytes(picture)))), picture)
