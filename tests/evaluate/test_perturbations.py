"""Perturbations do to pixels what their units say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate import perturbations
from cytofm_cli.evaluate.perturbation_names import DEFAULT, Perturbation, parse, parse_all


def picture(height: int = 24, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(level: int, side: int = 9) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


@pytest.mark.parametrize("word", [*DEFAULT, "defocus:0.3", "resample:3", "stain:2", "jpeg:1"])
def test_perturb__keeps_size_and_gives_the_same_again(word: str) -> None:
    image, how = picture(), parse(word)
    before = image.copy()
    first = perturbations.perturb(image, how, mpp=0.25, seed=(3, 4))
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert np.array_equal(first, perturbations.perturb(image, how, mpp=0.25, seed=(3, 4)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("word", [w for w in DEFAULT if not w.startswith("stain")])
def test_perturb__leaves_even_grey_as_it_is(word: str) -> None:
    image = grey(128, 16)
    assert np.array_equal(perturbations.perturb(image, parse(word), mpp=0.25, seed=0), image)


def test_jpeg__of_less_quality_is_further_off() -> None:
    smooth = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    image = np.stack([smooth, smooth[::-1], smooth.T], -1)
    off = [
        np.abs(perturbations.jpeg(image, quality).astype(int) - image).mean()
        for quality in (95, 75, 30, 5)
    ]
    assert off == sorted(off)
    assert off[0] < 2 < off[-1]


def test_stain__doubles_the_density_of_pure_haematoxylin() -> None:
    axes = perturbations.stain_axes()
    image = np.rint(256 * np.exp(-0.5 * axes[:1]) - 1).astype(np.uint8).reshape(1, 1, 3)
    twice = perturbations.stain(image, np.array([2.0, 1.0, 1.0]))
    assert twice.ravel().tolist() == np.rint(256 * np.exp(-axes[0]) - 1).astype(int).tolist()
    eosin = perturbations.stain(image, np.array([1.0, 3.0, 1.0]))  # there is none
    assert np.abs(eosin.astype(int) - image).max() <= 1


def test_stain__of_one_factor_scales_every_density() -> None:
    # (63 + 1) / 256 is a quarter: half of its density is a half, 128 - 1.
    half = perturbations.stain(grey(63), np.full(3, 0.5))
    assert np.unique(half).tolist() == [127]


@given(st.integers(0, 255), st.integers(0, 99))
def test_stain__leaves_glass_and_with_factor_one_everything(level: int, seed: int) -> None:
    factors = perturbations.stain_factors(0.5, seed)
    assert np.array_equal(perturbations.stain(grey(255), factors), grey(255))
    assert np.array_equal(perturbations.stain(grey(level), np.ones(3)), grey(level))


def test_stain_factors__lie_within_the_strength_and_spare_the_rest() -> None:
    drawn = np.array([perturbations.stain_factors(0.25, (7, i)) for i in range(2000)])
    assert (drawn[:, 2] == 1).all()
    assert drawn[:, :2].min() == pytest.approx(0.8, abs=2e-3)
    assert drawn[:, :2].max() == pytest.approx(1.25, abs=2e-3)
    assert np.log(drawn[:, :2]).mean() == pytest.approx(0, abs=0.01)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.1


@pytest.mark.parametrize("radius", [0.0, 0.2, 0.5])
def test_disc__of_less_than_a_pixel_blurs_nothing(radius: float) -> None:
    assert perturbations.disc(radius).tolist() == [[1.0]]


def test_disc__counts_a_pixel_by_the_share_that_is_covered() -> None:
    # Of radius 1: the middle pixel is covered whole, by 1 of the disc's area of pi.
    assert perturbations.disc(1.0)[1, 1] == pytest.approx(1 / np.pi, rel=0.02)


@pytest.mark.parametrize("radius", [2.3, 4.0, 9.5])
def test_disc__has_the_spread_of_a_disc(radius: float) -> None:
    kernel = perturbations.disc(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(kernel, kernel.T)
    assert np.array_equal(kernel, kernel[::-1])
    at = np.arange(len(kernel)) - len(kernel) // 2
    # A disc has variance r² / 4 along an axis, a pixel 1 / 12 besides.
    assert (kernel.sum(0) * at**2).sum() == pytest.approx(radius**2 / 4 + 1 / 12, rel=0.04)
    assert len(kernel) == 2 * np.ceil(radius - 0.5) + 1


def test_defocus__spreads_a_point_over_the_disc_and_counts_in_um() -> None:
    image = grey(0, 11)
    image[5, 5] = 255
    blurred = perturbations.perturb(image, parse("defocus:0.5"), mpp=0.25, seed=0)  # 2 px
    expected = np.rint(255 * perturbations.disc(2.0)).astype(np.uint8)
    assert np.array_equal(blurred[3:8, 3:8, 0], expected)
    coarse = perturbations.perturb(image, parse("defocus:0.5"), mpp=1.0, seed=0)  # half a pixel
    assert np.array_equal(coarse, image)


def test_resample__by_two_wipes_a_chequerboard_out_and_keeps_a_ramp() -> None:
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    flat = perturbations.resample(np.stack([board] * 3, -1), 2.0)
    assert set(np.unique(flat)) <= {127, 128}
    ramp = np.broadcast_to((np.arange(32) * 8).astype(np.uint8)[None, :, None], (32, 32, 3))
    off = np.abs(perturbations.resample(ramp, 2.0).astype(int) - ramp)[:, 4:-4]
    assert off.max() <= 1


def test_turn__is_against_the_clock_and_back_after_four() -> None:
    image = picture(2, 3)
    turned = perturbations.turn(image, 90)
    assert turned.shape == (3, 2, 3)
    assert np.array_equal(turned[0, 0], image[0, 2])  # the right end of the top row goes up left
    for _ in range(3):
        turned = perturbations.turn(turned, 90)
    assert np.array_equal(turned, image)
    assert np.array_equal(perturbations.turn(image, 180), image[::-1, ::-1])


def test_parse__reads_what_it_writes() -> None:
    assert parse("jpeg:75") == Perturbation("jpeg", 75)
    assert [how.name for how in parse_all(DEFAULT)] == list(DEFAULT)


@pytest.mark.parametrize(
    "word", ["jpg:75", "jpeg", "jpeg:", "jpeg:0", "jpeg:75.5", "turn:45", "turn:360", "stain:0",
             "stain:nan", "defocus:-1", "resample:1"],
)  # fmt: skip
def test_parse__refuses_what_cannot_be(word: str) -> None:
    with pytest.raises(UsageError, match="perturbation"):
        parse(word)


@pytest.mark.parametrize("words", [(), ("jpeg:75", "jpeg:75.0")])
def test_parse_all__refuses_none_and_twice(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse_all(words)
