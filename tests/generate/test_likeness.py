"""What stayed of a cell and how its colours changed: worked by hand, and on drawn cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytofm_cli.generate.likeness import (
    colour_distance,
    dice,
    in_colours_of,
    lab_of,
    nucleus_of,
    rgb_of,
)
from cytofm_cli.generate.restain import swapped

from .toys import Eyes


def of_colour(*rgb: int, n: int = 1) -> np.ndarray:
    return np.tile(np.array(rgb, np.uint8), (n, 8, 8, 1))


def test_lab__is_that_of_white_grey_and_red_and_comes_back() -> None:
    image = np.array([[[255, 255, 255], [119, 119, 119], [255, 0, 0]]], np.uint8)
    expected = [[100, 0, 0], [50.03, 0, 0], [53.24, 80.09, 67.20]]
    assert lab_of(image)[0] == pytest.approx(np.array(expected), abs=0.2)
    levels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    assert np.array_equal(rgb_of(lab_of(levels)), levels)


def test_colour_distance__is_the_mean_difference_of_two_colours() -> None:
    white, black = of_colour(255, 255, 255), of_colour(0, 0, 0, n=3)
    assert colour_distance(white, black) == pytest.approx(100 / 3, abs=1e-3)
    assert colour_distance(black, white) == colour_distance(white, black)
    assert colour_distance(white, white) == 0
    half = white.copy()
    half[:, :4] = 0  # as much black as white, wherever it is
    assert colour_distance(half, np.concatenate([white, black])) == pytest.approx(25 / 3, abs=0.1)


def test_in_colours_of__has_mean_and_spread_of_the_others() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal((150, 110, 130), 12, (4, 16, 16, 3)).clip(0, 255).astype(np.uint8)
    other = rng.normal((120, 130, 160), 6, (5, 16, 16, 3)).clip(0, 255).astype(np.uint8)
    moved = lab_of(in_colours_of(own, own, other)).reshape(-1, 3)
    wanted = lab_of(other).reshape(-1, 3)
    assert moved.mean(0) == pytest.approx(wanted.mean(0), abs=0.1)
    assert moved.std(0) == pytest.approx(wanted.std(0), abs=0.1)
    flat = in_colours_of(of_colour(9, 9, 9), of_colour(9, 9, 9), of_colour(200, 40, 90))
    assert np.array_equal(flat, of_colour(200, 40, 90))


def test_dice__by_hand() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    assert dice(a, a) == 1
    assert dice(a, b) == 0.5  # 2 · 4 / (8 + 8)
    assert dice(a, ~a) == 0
    assert dice(a, None) == 0


def drawn(radius: float, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a dark disk in pale cytoplasm, and where it is."""
    y, x = np.mgrid[:64, :64] + 0.5
    off = np.hypot(y - 32, x - 32 - shift)
    image = np.full((64, 64, 3), 235.0)
    image[np.hypot(y - 32, x - 32) < 28] = (190, 205, 215)
    image[off < radius] = (70, 50, 120)
    noisy = image + np.random.default_rng(0).normal(0, 3, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), off < radius


def test_nucleus__of_a_drawn_cell_is_the_disk() -> None:
    image, truth = drawn(14)
    for how in ("detector", "dark"):
        said = nucleus_of(image, 0.28, how)
        assert said is not None and dice(truth, said) > 0.9, how
    moved, _ = drawn(14, shift=10)
    overlap = dice(truth, nucleus_of(moved, 0.28, "dark"))
    assert 0.4 < overlap < 0.7  # two disks of radius 14, 10 apart: 0.56
    assert nucleus_of(of_colour(235, 235, 235)[0], 0.28, "dark") is None
    assert nucleus_of(np.full((64, 64, 3), 235, np.uint8), 0.28, "detector") is None


def test_swapped__moves_a_vector_by_the_difference_of_the_means() -> None:
    stream = torch.Generator().manual_seed(0)
    own, other = (torch.rand(n, 3, 8, 8, generator=stream) for n in (4, 6))
    eyes = Eyes()

    def vectors(images: torch.Tensor) -> np.ndarray:
        return eyes((images * 255).round() / 255).vector_BV.numpy()

    told = swapped(eyes, own, np.tile(vectors(own).mean(0), (4, 1)), other)
    wanted = vectors(own) - vectors(own).mean(0) + vectors(other).mean(0)
    assert told == pytest.approx(wanted, abs=1e-5)
    assert told.mean(0) == pytest.approx(vectors(other).mean(0), abs=1e-5)
