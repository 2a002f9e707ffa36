"""What every preset of `cytofm simulate` must do: ours, and a TOML file of one's own.

from cytofm_cli.testing.presets import check_preset
def test_mine():
    check_preset("mine.toml")
"""

from __future__ import annotations

import math

import numpy as np

from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.paint import paint
from cytofm_cli.simulate.preset import Preset, load_preset
from cytofm_cli.simulate.shapes import grow, reach_px


def check_preset(name_or_file: str) -> None:
    """Check a preset.

    Args:
        name_or_file: name of a preset, or a TOML file.

    Raises:
        AssertionError: it does not do what it must; says what.
        UsageError: it is not a preset.
    """
    preset = load_preset(name_or_file)
    names_are_known(preset)
    shares_add_up(preset)
    measures_are_in_range(preset)
    cells_grow_and_are_painted(preset)


def names_are_known(preset: Preset) -> None:
    """Kinds and dyes that are spoken of exist, and each kind is spoken of."""
    layout = preset.layout
    spoken = {*layout.background, *layout.bystanders, *layout.atypical}
    for diagnosis in preset.diagnoses.values():
        spoken |= set(diagnosis.kinds)
    assert spoken == set(preset.kinds), f"kinds {sorted(spoken ^ set(preset.kinds))}"
    for name, kind in preset.kinds.items():
        assert kind.group, f"{name}: group"
        assert kind.source, f"{name}: source"
        assert kind.nucleus or kind.cytoplasm, f"{name}: nothing to see"
        tables = [kind.nucleus.density] if kind.nucleus else []
        if kind.cytoplasm:
            tables += [kind.cytoplasm.density, kind.cytoplasm.centre, kind.cytoplasm.granule]
        for table in tables:
            assert set(table) <= set(preset.dyes), f"{name}: dyes {sorted(table)}"
            assert all(amount >= 0 for amount in table.values()), f"{name}: {table}"


def shares_add_up(preset: Preset) -> None:
    """Shares are of marked cells and add up to 1; each label has a diagnosis of some weight."""
    assert math.isclose(sum(preset.layout.background.values()), 1), "layout.background"
    for name, diagnosis in preset.diagnoses.items():
        if diagnosis.kinds:
            assert math.isclose(sum(diagnosis.kinds.values()), 1), f"diagnoses.{name}"
        assert diagnosis.weight > 0, f"diagnoses.{name}: weight"
        assert (diagnosis.label == preset.negative) == (not diagnosis.kinds), f"diagnoses.{name}"
    labels = {diagnosis.label for diagnosis in preset.diagnoses.values()}
    assert preset.negative in labels, "no diagnosis has the negative label"
    assert len(labels) > 1, "all diagnoses have the same label"
    assert 0 <= sum(preset.layout.atypical.values()) < 0.1, "layout.atypical"
    marked = {*preset.layout.background, *preset.layout.atypical}
    for diagnosis in preset.diagnoses.values():
        marked |= set(diagnosis.kinds)
    assert all(preset.kinds[name].marked for name in marked), "an unmarked kind has a share"
    assert not any(preset.kinds[name].marked for name in preset.layout.bystanders), "bystanders"


def measures_are_in_range(preset: Preset) -> None:
    """Areas are those of cells, a nucleus fits its cell, and shares are between 0 and 1."""
    assert 0.05 <= preset.mpp <= 1, "mpp"
    for name, kind in preset.kinds.items():
        nucleus, cytoplasm = kind.nucleus, kind.cytoplasm
        if nucleus:
            assert 1 <= nucleus.area_um2.median <= 2000, f"{name}: area of the nucleus"
            assert 0 <= nucleus.eccentricity <= 0.95, f"{name}: eccentricity"
            assert nucleus.nucleolus >= -1, f"{name}: nucleolus"
        if cytoplasm:
            assert 1 <= cytoplasm.area_um2.median <= 10_000, f"{name}: area"
            assert 0 <= cytoplasm.dome <= 1, f"{name}: dome"
            assert 0 <= cytoplasm.halo <= 1, f"{name}: halo"
        if nucleus and cytoplasm:
            assert nucleus.area_um2.median < cytoplasm.area_um2.median, f"{name}: N:C above 1"
        assert kind.sheet >= 1, f"{name}: sheet"
        assert kind.crowding > 0, f"{name}: crowding"


def cells_grow_and_are_painted(preset: Preset) -> None:
    """Cells of each kind lie within reach, in focus and out of it, and hold dye."""
    reach = reach_px(preset)
    for name in preset.kinds:
        for seed in range(6):
            cell = Cell(1000.3, 2000.7, name, 0.7 * seed, 0.0, seed)
            shape = grow(cell, preset)
            x0, y0, x1, y1 = shape.box
            assert min(x0 - 1000, y0 - 2001) >= -reach, f"{name}: beyond its reach"
            assert max(x1 - 1001, y1 - 2001) <= reach, f"{name}: beyond its reach"
            for focus in (0.0, 3.0):
                patch = paint(cell, shape, preset, focus_um=focus)
                assert np.isfinite(patch.amounts).all(), f"{name}: not finite"
                least = -preset.optics.sharpen * patch.amounts.max()
                assert patch.amounts.min() >= least, f"{name}: negative amounts of a dye"
                assert 0.02 < patch.amounts.max() < 12, f"{name}: amounts of its dyes"
