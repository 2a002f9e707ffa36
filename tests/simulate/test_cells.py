"""Cells grow and are painted: areas, mass of dye, seeds, places, focus."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.simulate import canvas, noise, outlines
from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.paint import Patch, blur_px, paint
from cytofm_cli.simulate.preset import (
    Cytoplasm,
    Diagnosis,
    Dye,
    Kind,
    Layout,
    Nucleus,
    Optics,
    Preset,
    Spread,
    load_preset,
    presets,
)
from cytofm_cli.simulate.shapes import MAX_BLUR_UM, Shape, grow, reach_px

PAP = load_preset("pap")
KINDS = [(name, kind) for name in presets() for kind in load_preset(name).kinds]


def plain(**looks: Kind) -> Preset:
    """Return a preset of kinds, of one pixel a µm and two dyes."""
    return Preset(
        summary="test",
        negative="no",
        mpp=1.0,
        dyes={"first": Dye(od=(1, 1, 1)), "second": Dye(od=(0, 1, 0))},
        kinds=looks,
        diagnoses={"none": Diagnosis(label="no")},
        layout=Layout(cells_per_mm2=1, background={}),
        optics=Optics(psf_um=1.0, depth_um=2.0),
    )


SMOOTH = Cytoplasm(
    area_um2=Spread(median=2000, sd=0), density={"second": 0.5}, ragged=0, dome=0, rim=0,
    grain=0, tint=0,
)  # fmt: skip
NUCLEUS = Nucleus(area_um2=Spread(median=200, sd=0), density={"first": 2.0}, tint=0, offset=0)


def cell(kind: str, seed: int = 0, **more: float) -> Cell:
    return Cell(**({"x": 300.0, "y": 200.0, "angle": 0.0, "z_um": 0.0} | more),
                kind=kind, seed=seed)  # fmt: skip


def painted(preset: Preset, one: Cell, focus_um: float = 0.0) -> tuple[Shape, Patch]:
    shape = grow(one, preset)
    return shape, paint(one, shape, preset, focus_um=focus_um)


def area(outline: np.ndarray | None) -> float:
    assert outline is not None
    return outlines.area(outline.astype(np.float64))


def test_grow__gives_the_areas_that_the_kind_asks_for() -> None:
    preset = plain(cell=Kind(group="g", nucleus=NUCLEUS, cytoplasm=SMOOTH))
    for seed in range(20):
        shape = grow(cell("cell", seed), preset)
        assert area(shape.nuclei[0]) == pytest.approx(200, rel=0.01)
        assert area(shape.cytoplasm) == pytest.approx(2000, rel=0.01)


def test_grow__draws_areas_log_normally() -> None:
    nucleus = dataclasses.replace(NUCLEUS, area_um2=Spread(median=900, sd=0.3))
    preset = plain(bare=Kind(group="g", nucleus=nucleus))
    logs = np.log([area(grow(cell("bare", seed), preset).nuclei[0]) for seed in range(1500)])
    assert np.median(logs) == pytest.approx(math.log(900), abs=0.03)
    assert logs.std() == pytest.approx(0.3, abs=0.02)
    assert np.abs(logs - math.log(900)).max() < 0.3 * 2.5 + 0.01


def test_grow__turns_and_moves() -> None:
    preset = plain(bare=Kind(group="g", nucleus=dataclasses.replace(NUCLEUS, irregularity=0)))
    flat = grow(cell("bare"), preset).nuclei[0]
    upright = grow(cell("bare", angle=math.pi / 2), preset).nuclei[0]
    np.testing.assert_allclose(flat.mean(axis=0), [300, 200], atol=0.05)
    np.testing.assert_allclose(np.ptp(flat, axis=0), np.ptp(upright, axis=0)[::-1], atol=0.07)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.slow
def test_grow__more_nuclei_are_a_poisson_number(count: float) -> None:
    nucleus = dataclasses.replace(NUCLEUS, count=count / 10, area_um2=Spread(median=50, sd=0))
    preset = plain(cell=Kind(group="g", nucleus=nucleus, cytoplasm=SMOOTH))
    numbers = [len(grow(cell("cell", seed), preset).nuclei) for seed in range(1000)]
    assert np.mean(numbers) == pytest.approx(1 + count / 10, abs=0.06)
    assert max(numbers) <= 4


@pytest.mark.parametrize("name", ["hsil", "koilocyte", "parabasal", "superficial", "neutrophil"])
def test_grow__nuclei_lie_within_the_cell(name: str) -> None:
    # A ragged border may cut a nucleus by a pixel: nearly all of it must be covered.
    for seed in range(40):
        shape = grow(cell(name, seed), PAP)
        x0, y0, x1, y1 = shape.box
        assert shape.cytoplasm is not None
        body = canvas.filled(shape.cytoplasm, x0, y0, y1 - y0, x1 - x0) > 127
        for nucleus in shape.nuclei:
            inside = canvas.filled(nucleus, x0, y0, y1 - y0, x1 - x0) > 127
            assert (inside & body).sum() > 0.97 * inside.sum()


def test_filled__covers_the_area_at_its_place() -> None:
    for radius in (3.0, 8.0, 40.0):
        turns = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        ring = radius * np.stack([np.cos(turns), np.sin(turns)], axis=1) + [50.3, 60.7]
        for outline in (ring, ring[::-1]):
            mask = canvas.filled(outline.astype(np.float32), 0, 10, 100, 100) / 255
            assert math.sqrt(mask.sum() / math.pi) == pytest.approx(radius, abs=0.2)
            y, x = (axis + 0.5 for axis in np.indices(mask.shape))
            assert (mask * x).sum() / mask.sum() == pytest.approx(50.3, abs=0.05)
            assert (mask * y).sum() / mask.sum() == pytest.approx(50.7, abs=0.05)


def test_paint__mass_of_dye_is_area_times_density() -> None:
    preset = plain(
        body=Kind(group="g", cytoplasm=SMOOTH), bare=Kind(group="g", nucleus=NUCLEUS)
    )  # fmt: skip
    for seed in range(10):
        for focus in (0.0, 2.0):
            _, body = painted(preset, cell("body", seed), focus)
            assert body.amounts[1].sum() == pytest.approx(0.5 * 2000, rel=0.03)
            assert body.amounts[0].max() == 0
            _, bare = painted(preset, cell("bare", seed), focus)
            assert bare.amounts[0].sum() == pytest.approx(2.0 * 200, rel=2e-3)


@pytest.mark.parametrize(("preset_name", "kind"), KINDS)
def test_paint__mass_follows_the_outline_in_every_preset(preset_name: str, kind: str) -> None:
    # The nucleus holds its dye exactly, up to its own tint, however its chromatin is spread.
    preset = load_preset(preset_name)
    look = preset.kinds[kind].nucleus
    if look is None:
        pytest.skip("has no nucleus")
    bare = dataclasses.replace(
        preset, kinds={kind: Kind(group="g", nucleus=dataclasses.replace(look, tint=0))}
    )
    units = sum(look.density.values())
    for seed in range(4):
        shape, patch = painted(bare, cell(kind, seed))
        own = sum(area(part) for part in shape.nuclei)
        assert patch.amounts.sum() == pytest.approx(units * own, rel=2e-3)


@pytest.mark.parametrize(("preset_name", "kind"), KINDS)
def test_paint__is_the_same_at_every_whole_offset(preset_name: str, kind: str) -> None:
    preset = load_preset(preset_name)
    here = cell(kind, 5, x=300.28125, y=200.71, angle=1.0, z_um=0.4)
    shape, patch = painted(preset, here)
    for dx, dy in ((1, 0), (-513, 77), (99_001, 54_321)):
        moved = dataclasses.replace(here, x=here.x + dx, y=here.y + dy)
        other_shape, other = painted(preset, moved)
        assert (other.x0 - patch.x0, other.y0 - patch.y0) == (dx, dy)
        np.testing.assert_array_equal(other.amounts, patch.amounts)
        assert np.subtract(other_shape.box, shape.box).tolist() == [dx, dy, dx, dy]


def test_paint__depends_on_nothing_painted_before() -> None:
    cells = [cell(kind, seed) for seed, kind in enumerate(PAP.kinds)]
    forth = [painted(PAP, one)[1].amounts for one in cells]
    noise.fields.cache_clear()
    back = [painted(PAP, one)[1].amounts for one in cells[::-1]][::-1]
    for first, second in zip(forth, back, strict=True):
        np.testing.assert_array_equal(first, second)


def test_paint__seeds_make_cells_different() -> None:
    first, other = (painted(PAP, cell("intermediate", seed))[1].amounts for seed in (1, 2))
    assert first.shape != other.shape or np.abs(first - other).max() > 0.1


def test_paint__out_of_focus_keeps_the_mass_and_widens() -> None:
    near = painted(PAP, cell("parabasal", 3))[1]
    far = painted(PAP, cell("parabasal", 3), focus_um=4.0)[1]
    moved = painted(PAP, cell("parabasal", 3, z_um=4.0))[1]
    np.testing.assert_allclose(far.amounts.sum((1, 2)), near.amounts.sum((1, 2)), rtol=1e-3)
    assert far.amounts.max() < 0.95 * near.amounts.max()
    np.testing.assert_array_equal(painted(PAP, cell("parabasal", 3), -4.0)[1].amounts, far.amounts)
    np.testing.assert_array_equal(moved.amounts, far.amounts)


def test_paint__sharpened_keeps_the_mass_and_brightens_what_surrounds_a_nucleus() -> None:
    bare = Kind(group="g", nucleus=NUCLEUS)
    soft = dataclasses.replace(plain(bare=bare), mpp=0.25, optics=Optics(psf_um=0.25))
    sharp = dataclasses.replace(soft, optics=dataclasses.replace(soft.optics, sharpen=0.6))
    (shape, before), (_, after) = (painted(preset, cell("bare")) for preset in (soft, sharp))
    assert after.amounts.sum() == pytest.approx(before.amounts.sum(), rel=1e-3)
    assert before.amounts.min() >= 0 > after.amounts.min() > -0.6 * after.amounts.max()
    inside = [
        patch.amounts[0][
            canvas.filled(shape.nuclei[0], patch.x0, patch.y0, *patch.amounts.shape[1:]) > 127
        ].mean()
        for patch in (before, after)
    ]
    assert inside[1] > 1.01 * inside[0]


def test_blur_px__widens_by_root_two_at_the_depth() -> None:
    optics = Optics(psf_um=0.25, depth_um=1.5)
    assert blur_px(optics, 0.25, 0) == 1
    assert blur_px(optics, 0.25, 1.5) == pytest.approx(math.sqrt(2))
    assert blur_px(optics, 0.25, -1.5) == pytest.approx(math.sqrt(2))
    assert blur_px(optics, 0.25, 1e6) == MAX_BLUR_UM / 0.25


@settings(max_examples=60)
@given(
    name=st.sampled_from(KINDS),
    seed=st.integers(0, 2**62),
    x=st.floats(-1000, 1e5),
    angle=st.floats(0, 6.3),
    z_um=st.floats(-30, 30),
)
def test_reach_px__holds(
    name: tuple[str, str], seed: int, x: float, angle: float, z_um: float
) -> None:
    preset = load_preset(name[0])
    one = Cell(x, 50.5, name[1], angle, z_um, seed)
    shape, patch = painted(preset, one)
    x0, y0, x1, y1 = shape.box
    reach = reach_px(preset)
    assert max(one.x - x0, x1 - one.x, one.y - y0, y1 - one.y) <= reach
    assert patch.x0 >= x0
    assert patch.y0 >= y0
    assert patch.x0 + patch.amounts.shape[2] <= x1
    assert patch.y0 + patch.amounts.shape[1] <= y1


def test_centre__puts_its_dye_in_the_middle() -> None:
    body = dataclasses.replace(SMOOTH, density={"first": 1.0}, centre={"second": 1.0})
    preset = plain(cell=Kind(group="g", cytoplasm=body))
    for seed in range(5):
        shape, patch = painted(preset, cell("cell", seed))
        assert shape.cytoplasm is not None
        mask = canvas.filled(shape.cytoplasm, patch.x0, patch.y0, *patch.amounts.shape[1:])
        deep = canvas.depth(mask)
        edge, middle = (deep > 2) & (deep < 4), deep > 0.85 * deep.max()
        assert patch.amounts[1][middle].mean() > patch.amounts[1][edge].mean() + 0.1
        np.testing.assert_allclose(patch.amounts.sum(axis=0)[middle], 1, atol=0.02)


def test_halo__clears_around_the_nucleus_and_thickens_beyond() -> None:
    kind = PAP.kinds["koilocyte"]
    assert kind.cytoplasm is not None
    plain_kind = dataclasses.replace(kind, cytoplasm=dataclasses.replace(kind.cytoplasm, halo=0.0))
    without = dataclasses.replace(PAP, kinds={**PAP.kinds, "koilocyte": plain_kind})
    for seed in range(6):
        shape, patch = painted(PAP, cell("koilocyte", seed))
        assert shape.halo is not None
        assert grow(cell("koilocyte", seed), without).halo is None
        size = patch.amounts.shape[1:]
        halo = canvas.filled(shape.halo, patch.x0, patch.y0, *size) > 127
        nuclei = np.zeros(size, bool)
        for nucleus in shape.nuclei:
            nuclei |= canvas.filled(nucleus, patch.x0, patch.y0, *size) > 0
        assert shape.cytoplasm is not None
        body = canvas.filled(shape.cytoplasm, patch.x0, patch.y0, *size)
        deep = canvas.depth(body) > 8
        away = canvas.depth((255 * ~halo).astype(np.uint8))
        total = patch.amounts.sum(axis=0)
        clear = total[halo & deep & (canvas.depth((255 * ~nuclei).astype(np.uint8)) > 4)]
        rim = total[deep & (away > 2) & (away < 6)]
        if clear.size and rim.size:
            assert clear.mean() < 0.65 * rim.mean()


def test_fields__have_no_mean_unit_deviation_and_their_period() -> None:
    fields = noise.fields(0.25)
    assert fields.keys() == noise.SCALES_UM.keys()
    for name, field in fields.items():
        assert field.shape == (noise.SIDE, noise.SIDE)
        assert abs(field.mean()) < 1e-5
        assert field.std() == pytest.approx(1, abs=1e-4)
        power = np.abs(np.fft.fft2(field)) ** 2
        turns = np.hypot(*np.meshgrid(np.fft.fftfreq(noise.SIDE), np.fft.fftfreq(noise.SIDE)))
        period = 1 / math.exp((np.log(np.maximum(turns, 1e-9)) * power).sum() / power.sum())
        assert 0.45 < period * 0.25 / noise.SCALES_UM[name] < 1.6


def test_window__lies_in_the_field_and_wraps_where_it_is_larger() -> None:
    field = np.arange(noise.SIDE**2, dtype=np.float32).reshape(noise.SIDE, -1)
    small = noise.window(np.random.default_rng(0), field, 5, 7)
    assert small.shape == (5, 7)
    assert len(np.unique(small)) == 35
    large = noise.window(np.random.default_rng(0), field, noise.SIDE + 3, 7)
    np.testing.assert_array_equal(large[:3], large[noise.SIDE :])
