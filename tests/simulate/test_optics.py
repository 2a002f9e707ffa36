"""Stain, white, exposure and noise of simulated slides."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.simulate.lattice import clouds, clouds_at, uniform
from cytofm_cli.simulate.optics import Look, expose, look
from cytofm_cli.simulate.preset import Dye, Layout, Optics, Preset
from cytofm_cli.units import Box

DYES = {"blue": Dye(od=(1.0, 0.8, 0.3)), "orange": Dye(od=(0.05, 0.4, 1.0))}
QUIET = Optics(white=(240.0, 250.0, 230.0), white_sd=0.0, noise=0.0, stain_sd=0.0, batch_sd=0.0)
PLAIN = Look(
    dyes=np.array([[1.0, 0.8, 0.3], [0.05, 0.4, 1.0]]), white=np.array([240.0, 250.0, 230.0])
)


def preset(optics: Optics = QUIET, illumination: str = "bright-field") -> Preset:
    return Preset(
        summary="two dyes",
        negative="normal",
        dyes=DYES,
        kinds={},
        diagnoses={},
        layout=Layout(cells_per_mm2=1, background={}),
        illumination=illumination,  # type: ignore[arg-type]
        optics=optics,
    )


def nothing(h: int, w: int, channels: int = 3) -> np.ndarray:
    return np.broadcast_to(np.float32(0), (channels, h, w))


@pytest.mark.parametrize("blue", [0.0, 0.1, 0.7, 2.0])
@pytest.mark.parametrize("orange", [0.0, 0.5])
def test_expose__light_falls_by_beer_and_lambert(blue: float, orange: float) -> None:
    amounts = np.empty((2, 4, 5), np.float32)
    amounts[0], amounts[1] = blue, orange
    dirt = np.full((3, 4, 5), 0.2, np.float32)
    picture = expose(amounts, dirt, PLAIN, preset(), (0, 0, 5, 4), seed=1)
    want = PLAIN.white * np.exp(-(np.array([blue, orange]) @ PLAIN.dyes + 0.2))
    assert np.abs(picture - want).max() <= 0.5 + 240 / 1024  # rounding, and a step of the table


def test_expose__empty_glass_has_the_white() -> None:
    picture = expose(nothing(3, 4, 2), nothing(3, 4), PLAIN, preset(), (7, 9, 11, 12), seed=1)
    assert (picture == [240, 250, 230]).all()


def test_expose__dark_field_adds_what_dyes_and_dirt_emit() -> None:
    dark = Look(dyes=np.array([[0.0, 0.25, 1.0], [0.5, 0.0, 0.0]]), white=np.array([4.0, 5.0, 6.0]))
    amounts = np.empty((2, 2, 2), np.float32)
    amounts[0], amounts[1] = 0.4, 0.2
    dirt = np.full((3, 2, 2), 0.1, np.float32)
    picture = expose(amounts, dirt, dark, preset(illumination="dark-field"), (0, 0, 2, 2), 1)
    # 255 * (0.2 * 0.5 + 0.1) + 4, 255 * (0.4 * 0.25 + 0.1) + 5, 255 * (0.4 + 0.1) + 6
    assert (picture == [55, 56, 134]).all()


def test_expose__overexposed_glass_is_255_and_the_densest_dirt_is_black() -> None:
    bright = Look(dyes=PLAIN.dyes, white=np.full(3, 260.0))
    assert (expose(nothing(2, 2, 2), nothing(2, 2), bright, preset(), (0, 0, 2, 2), 1) == 255).all()
    wall = np.full((3, 2, 2), 50, np.float32)
    assert (expose(nothing(2, 2, 2), wall, PLAIN, preset(), (0, 0, 2, 2), 1) == 0).all()


def test_expose__a_part_is_the_whole_s_part_however_it_is_cut() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.random((2, 600, 700), dtype=np.float32)
    amounts[:, :300] = 0  # some squares are empty
    dirt = rng.random((3, 600, 700), dtype=np.float32) * np.float32(0.1)
    noisy = preset(dataclasses.replace(QUIET, noise=3.0, grain=0.1))
    x, y = -130, 411  # a slide's origin is no special place
    whole = expose(amounts, dirt, PLAIN, noisy, (x, y, x + 700, y + 600), seed=5)
    for left, top, w, h in [
        (0, 0, 1, 1),
        (101, 77, 517, 333),
        (256, 255, 257, 2),
        (699, 0, 1, 600),
    ]:
        part = np.s_[:, top : top + h, left : left + w]
        corners = (x + left, y + top, x + left + w, y + top + h)
        alone = expose(amounts[part], dirt[part], PLAIN, noisy, corners, seed=5)
        assert (alone == whole[part[1:]]).all()


def test_expose__noise_is_as_strong_as_said_and_smeared() -> None:
    noisy = preset(dataclasses.replace(QUIET, noise=4.0))
    white = Look(dyes=PLAIN.dyes, white=np.full(3, 200.0))
    lit = expose(nothing(1024, 1024, 2), nothing(1024, 1024), white, noisy, (0, 0, 1024, 1024), 3)
    green = lit[..., 1].astype(float) - lit[..., 1].mean()
    assert lit.mean() == pytest.approx(200, abs=0.1)
    assert green.std() == pytest.approx(np.sqrt((4 * 0.9) ** 2 + 1 / 12), rel=0.03)
    beside = [(green[:, d:] * green[:, :-d]).mean() / green.var() for d in (1, 2, 4)]
    # Gaussian taps 1, 0.360, 0.017: (2 * 0.360 + 2 * 0.006) / 1.260, (0.130 + 0.034) / 1.260
    assert beside == pytest.approx([0.58, 0.13, 0.0], abs=0.02)


def test_expose__in_dark_field_noise_grows_with_the_root_of_the_light() -> None:
    dark = preset(dataclasses.replace(QUIET, noise=4.0), "dark-field")
    black = Look(dyes=PLAIN.dyes, white=np.full(3, 51.0))
    side = (0, 0, 1024, 1024)
    faint, bright = (
        expose(
            nothing(1024, 1024, 2),
            np.full((3, 1024, 1024), light, np.float32),
            black,
            dark,
            side,
            3,
        )
        for light in (0.0, 0.6)
    )
    # variances 0.2 + 0.8 * 51 / 255 and 0.2 + 0.8 * 204 / 255
    ratio = np.sqrt(0.84 / 0.36)
    assert bright[..., 1].std() / faint[..., 1].std() == pytest.approx(ratio, rel=0.03)


def test_expose__each_dye_takes_unevenly_on_its_own() -> None:
    grainy = preset(dataclasses.replace(QUIET, grain=0.1))
    apart = Look(dyes=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), white=np.full(3, 255.0))
    amounts = np.full((2, 512, 512), 0.8, np.float32)
    picture = expose(amounts, nothing(512, 512), apart, grainy, (0, 0, 512, 512), 3)
    density = -np.log(picture[..., :2].reshape(-1, 2) / 255)
    assert density.mean(axis=0) == pytest.approx([0.8, 0.8], rel=0.01)
    assert density.std(axis=0) == pytest.approx([0.08, 0.08], rel=0.03)
    assert abs(np.corrcoef(density.T)[0, 1]) < 0.02
    assert (picture[..., 2] == 255).all()


def test_expose__slides_of_other_seeds_have_other_noise() -> None:
    noisy = preset(dataclasses.replace(QUIET, noise=4.0))
    one, other = (
        expose(nothing(99, 99, 2), nothing(99, 99), PLAIN, noisy, (0, 0, 99, 99), seed).astype(
            float
        )
        for seed in (1, 2)
    )
    assert abs(np.corrcoef(one[..., 0].ravel(), other[..., 0].ravel())[0, 1]) < 0.05


def test_look__without_variation_it_is_the_preset_s() -> None:
    still = preset(dataclasses.replace(QUIET, hue_sd=0.0))
    seen = look(still, seed=1, batch=2, patient=3)
    assert (seen.dyes == PLAIN.dyes).all()
    assert (seen.white == PLAIN.white).all()


def test_look__a_batch_shares_its_hue_and_patients_differ_in_amount() -> None:
    varied = preset(Optics(white_sd=3.0, stain_sd=0.2, batch_sd=0.3, hue_sd=0.1))
    first, second = look(varied, 1, 0, 0), look(varied, 1, 0, 1)
    ratio = first.dyes / second.dyes
    assert ratio == pytest.approx(ratio[:, :1].repeat(3, axis=1))  # one factor for each dye
    assert not np.allclose(ratio, 1)
    other = first.dyes / look(varied, 1, 1, 0).dyes
    assert not np.allclose(other, other[:, :1].repeat(3, axis=1))
    again = look(varied, 1, 0, 0)
    assert (again.dyes == first.dyes).all() and (again.white == first.white).all()


def test_look__varies_as_much_as_the_preset_says() -> None:
    varied = preset(
        Optics(white=(200, 200, 200), white_sd=3.0, stain_sd=0.2, batch_sd=0.3, hue_sd=0.1)
    )
    looks = [look(varied, 7, batch, 0) for batch in range(1500)]
    logs = np.log([seen.dyes for seen in looks])
    amount = logs.mean(axis=2)  # hue turns around the mean of the channels
    assert amount.std(axis=0) == pytest.approx([np.hypot(0.2, 0.3)] * 2, rel=0.08)
    hue = (logs - amount[..., None]).std(axis=0)
    assert hue == pytest.approx(np.full((2, 3), 0.1 * np.sqrt(2 / 3)), rel=0.08)
    blue = np.log([seen.noise[2] for seen in looks])
    assert blue.std() == pytest.approx(0.35, rel=0.08)
    assert np.std([seen.white for seen in looks], axis=0) == pytest.approx([3.0] * 3, rel=0.08)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(-5000, 5000), st.integers(-5000, 5000), st.integers(1, 90), st.integers(1, 90),
    st.integers(2, 70), st.integers(0, 2**63),
)  # fmt: skip
def test_clouds__of_a_part_and_of_points_are_the_whole_s(
    x: int, y: int, w: int, h: int, step: int, seed: int
) -> None:
    whole = clouds(seed, Box(x - 13, y - 8, w + 40, h + 30), step)
    part = clouds(seed, Box(x, y, w, h), step)
    assert (part == whole[8 : 8 + h, 13 : 13 + w]).all()
    assert part.min() >= 0 and part.max() < 1
    rows, columns = np.mgrid[y : y + h, x : x + w]
    alone = clouds_at(seed, rows.ravel(), columns.ravel(), step).reshape(h, w)
    assert alone == pytest.approx(part, abs=1e-6)


def test_uniform__is_even_and_neighbours_do_not_correlate() -> None:
    values = uniform(3, np.arange(-200, 200)[:, None], np.arange(300)[None])
    share = np.histogram(values, bins=10, range=(0, 1))[0] / values.size
    assert share == pytest.approx([0.1] * 10, abs=0.005)
    assert abs(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(values[1:].ravel(), values[:-1].ravel())[0, 1]) < 0.01
