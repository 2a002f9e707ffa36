"""Dirt of simulated slides."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cytofm_cli.simulate import marks, sprites
from cytofm_cli.simulate.glass import is_clean, soil
from cytofm_cli.simulate.litter import REACH, glass, litter
from cytofm_cli.simulate.preset import Dirt, Dye, Layout, Preset
from cytofm_cli.simulate.strands import strand
from cytofm_cli.units import Box, Size

SIZE = (3000, 2600)
FILTHY = Dirt(
    debris_per_mm2=4000,
    bacteria_per_mm2=6000,
    mucus_per_mm2=60,
    bubbles=1.0,
    pen=1.0,
    coverslip=1.0,
    dust_per_mm2=40,
    streaks_per_mm2=40,
    fibres_per_mm2=20,
    film=0.1,
    gradient=0.1,
)


def preset(dirt: Dirt, illumination: str = "bright-field") -> Preset:
    return Preset(
        summary="dirty",
        negative="normal",
        dyes={"blue": Dye(od=(1.0, 0.8, 0.3)), "orange": Dye(od=(0.05, 0.4, 1.0))},
        kinds={},
        diagnoses={},
        layout=Layout(cells_per_mm2=1, background={}),
        illumination=illumination,  # type: ignore[arg-type]
        dirt=dirt,
    )


@pytest.mark.parametrize("illumination", ["bright-field", "dark-field"])
def test_soil__a_part_is_the_whole_s_part(illumination: str) -> None:
    dirty = preset(FILTHY, illumination)
    whole = soil(dirty, 3, SIZE, (700, 800, 1400, 1300))
    assert whole.shape == (3, 500, 700) and whole.dtype == np.float32
    for x0, y0, x1, y1 in [(700, 800, 701, 801), (900, 1000, 1300, 1100), (1023, 817, 1025, 1299)]:
        alone = soil(dirty, 3, SIZE, (x0, y0, x1, y1))
        assert (alone == whole[:, y0 - 800 : y1 - 800, x0 - 700 : x1 - 700]).all()


@pytest.mark.parametrize(
    "name",
    [field.name for field in dataclasses.fields(Dirt) if field.name not in {"gradient", "dyes"}],
)
def test_soil__each_sort_of_dirt_darkens_the_glass_alone(name: str) -> None:
    only = preset(dataclasses.replace(Dirt(), **{name: getattr(FILTHY, name)}))
    od = np.concatenate([soil(only, seed, (900, 800), (0, 0, 900, 800)) for seed in range(4)])
    assert od.max() > 0.02  # visible: 5 of 255 grey levels
    assert od.min() >= -0.5  # what refracts is bright, within the table of the exposure
    assert np.median(od) < 0.5 * od.max()


def test_soil__film_takes_up_the_dyes_that_the_preset_names() -> None:
    for name, dye in preset(Dirt()).dyes.items():
        soiled = preset(Dirt(film=0.3, dyes={name: 50.0}))
        od = soil(soiled, 1, (900, 800), (0, 0, 900, 800)).reshape(3, -1).mean(axis=1)
        np.testing.assert_allclose(od / od.max(), np.array(dye.od) / max(dye.od), atol=0.01)


def test_soil__nothing_costs_nothing() -> None:
    for od in (
        soil(preset(FILTHY), 3, SIZE, (0, 0, 3000, 2600), amount=0),
        soil(preset(Dirt()), 3, SIZE, (0, 0, 3000, 2600)),
    ):
        assert od.shape == (3, 2600, 3000) and not od.any()
        assert od.strides == (0, 0, 0)  # one number stands for all


def test_soil__amount_multiplies_rates_and_chances() -> None:
    dirt = Dirt(debris_per_mm2=3000, pen=0.2)
    few, many = (
        sum(len(litter(glass(preset(dirt), seed, amount), 0, 0).corners) for seed in range(40))
        for amount in (1.0, 3.0)
    )
    assert many == pytest.approx(3 * few, rel=0.15)
    inked = [
        sum(bool(marks.marks(dirt, seed, Size(*SIZE), 0.25, amount)) for seed in range(400))
        for amount in (1.0, 3.0, 5.0)
    ]
    assert inked == pytest.approx([80, 240, 400], rel=0.15)
    assert inked[2] == 400


def test_soil__rates_are_met_on_average_over_slides() -> None:
    dirt = Dirt(dust_per_mm2=2000)
    block_mm2 = (1024 * 0.25 / 1000) ** 2
    counts = [len(litter(glass(preset(dirt), seed, 1.0), 5, -2).corners) for seed in range(60)]
    assert np.mean(counts) == pytest.approx(2000 * block_mm2, rel=0.05)


def test_soil__uneven_light_alone_changes_by_what_it_says() -> None:
    od = soil(preset(Dirt(gradient=0.2)), 1, (1000, 800), (0, 0, 1000, 800))
    light = np.exp(-od[1])
    assert 0.3 * 0.2 < (light.max() - light.min()) / light.max() <= 0.2 * 1.1
    assert (od[0] == od[2]).all()  # grey
    assert np.abs(np.diff(od[0], axis=1)).max() < 0.2 / 500  # smooth


def test_is_clean__agrees_with_soil_and_overlooks_uneven_light() -> None:
    sparse = preset(Dirt(debris_per_mm2=30, mucus_per_mm2=3, bubbles=0.5, gradient=0.1))
    even = dataclasses.replace(sparse, dirt=dataclasses.replace(sparse.dirt, gradient=0.0))
    clean = set()
    for seed in range(4):
        for x in range(0, 2048, 256):
            box = (x, 512, x + 256, 768)
            clean.add(is_clean(sparse, seed, SIZE, box))
            if is_clean(sparse, seed, SIZE, box):
                assert not soil(even, seed, SIZE, box).any()
    assert clean == {True, False}


def test_is_clean__film_and_no_dirt() -> None:
    box = (0, 0, 2000, 2000)
    assert is_clean(preset(FILTHY), 1, SIZE, box, amount=0)
    assert not is_clean(preset(Dirt(film=0.1)), 1, SIZE, box)


def test_soil__dark_field_has_neither_ink_nor_shade() -> None:
    marked = preset(Dirt(pen=1.0, bubbles=1.0, coverslip=1.0, gradient=0.2), "dark-field")
    assert not soil(marked, 1, SIZE, (0, 0, *SIZE)).any()


def test_bubble__is_dark_at_its_border_and_bright_within() -> None:
    bubble = marks.Bubble(x=400.0, y=400.5, radius=300, ratio=1.0, angle=0.3)
    od = marks.density(bubble, Box(0, 400, 800, 1), 0.25)
    assert od is not None
    line = od[1, 0]
    assert line[100:112].max() > 1.5  # the border lies at x = 100
    assert abs(line[:80]).max() < 0.05 and abs(line[390:410]).max() < 0.05  # clear on both sides
    assert line[100 - 12 : 100 - 4].min() < -0.02  # a bright line outside
    assert line == pytest.approx(line[::-1], abs=1e-4)
    assert marks.density(bubble, Box(1000, 400, 50, 50), 0.25) is None


def test_stroke__covers_its_width_and_lets_its_own_colour_through() -> None:
    stroke = marks.Stroke(
        path=((0.0, 1000.0), (4000.0, 1000.0)), width=800.0, ink=(1.2, 0.7, 0.1), seed=4
    )
    od = marks.density(stroke, Box(2000, 0, 8, 2000), 0.25)
    assert od is not None
    inked = od[0].mean(axis=1) > 0.3
    assert inked.sum() == pytest.approx(800, abs=70)
    assert np.flatnonzero(inked).mean() == pytest.approx(1000, abs=25)
    inside = od[:, 800:1200].mean(axis=(1, 2))
    assert inside / inside[0] == pytest.approx([1, 0.7 / 1.2, 0.1 / 1.2], rel=1e-4)
    assert marks.density(stroke, Box(2000, 2200, 8, 8), 0.25) is None


def test_strand__lies_within_its_reach_in_the_direction_of_the_smear() -> None:
    directions = []
    for seed in range(40):
        left, top, drawn = strand("streak", seed, 0.5, 0.25)
        h, w = drawn.shape
        assert min(left, top) >= -REACH and left + w <= REACH + 1 and top + h <= REACH + 1
        assert not drawn[0].any() and not drawn[:, 0].any()  # nothing is cut off
        y, x = np.nonzero(drawn > drawn.max() // 2)
        (xx, xy), (_, yy) = np.cov(x, y)
        directions.append(0.5 * np.arctan2(2 * xy, xx - yy))
    assert np.median(directions) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("bank", [sprites.rods, sprites.specks, sprites.granules, sprites.dust])
@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_sprites__are_whole_and_of_the_size_they_say(bank: object, mpp: float) -> None:
    pictures = bank(mpp)  # type: ignore[operator]
    for picture in pictures:
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.abs(edge).max() < 0.06 * picture.max() + 0.02
    areas_um2 = [(picture > 0.5 * picture.max()).sum() * mpp**2 for picture in pictures]
    low, high = {
        sprites.rods: (0.3, 6),
        sprites.specks: (0.1, 16),
        sprites.granules: (0.2, 60),
        sprites.dust: (15, 500),
    }[bank]  # type: ignore[index]
    assert low < np.median(areas_um2) < high


def test_litter__of_a_slide_is_its_own() -> None:
    dirty = preset(Dirt(debris_per_mm2=3000, bacteria_per_mm2=3000))
    first = litter(glass(dirty, 1, 1.0), 0, 0)
    again = litter.__wrapped__(glass(dirty, 1, 1.0), 0, 0)
    assert (first.corners == again.corners).all() and (first.densities == again.densities).all()
    other = litter(glass(dirty, 2, 1.0), 0, 0)
    assert first.corners.shape != other.corners.shape or (first.corners != other.corners).any()
