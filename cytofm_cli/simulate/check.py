"""Whether the parts of a preset fit together."""

from __future__ import annotations

from collections.abc import Iterator

from cytofm_cli.errors import UsageError
from cytofm_cli.simulate.preset import Preset

_ROUNDING = 1e-6


def check_preset(preset: Preset, name: str) -> Preset:
    """Return a preset whose parts fit together.

    Args:
        preset: as read.
        name: as typed after `--preset`.

    Raises:
        UsageError: an unknown kind or dye, shares that do not add up, no diagnosis of one side.
    """
    for wrong in _wrong(preset):
        raise UsageError(f"--preset {name}: {wrong}.")
    return preset


def _wrong(preset: Preset) -> Iterator[str]:
    layout = preset.layout
    if not layout.background:
        yield "layout.background: names no kinds"
    yield from _wrong_kinds(preset)
    if sum(layout.atypical.values()) > 1:
        yield "layout.atypical: adds up to more than 1"
    if layout.cells_per_mm2 < 0 or layout.depth_um < 0 or not 0 <= layout.clumping <= 1:
        yield "layout: numbers must not be negative, clumping lies between 0 and 1"
    if not 0.02 <= preset.mpp <= 10:
        yield f"mpp = {preset.mpp:g}: must lie between 0.02 and 10 µm/px"
    usual = [one for one in preset.diagnoses.values() if one.weight > 0]
    if {one.label == preset.negative for one in usual} != {True, False}:
        yield f"diagnoses: some must have the label {preset.negative!r}, some another"
    if any(one.weight < 0 or one.share < 0 for one in preset.diagnoses.values()):
        yield "diagnoses: weight and share must not be negative"


def _wrong_kinds(preset: Preset) -> Iterator[str]:
    """Check the tables that name kinds of cells, and the kinds' dyes."""
    layout = preset.layout
    marked = {"layout.background": layout.background, "layout.atypical": layout.atypical}
    marked |= {f"diagnoses.{key}.kinds": one.kinds for key, one in preset.diagnoses.items()}
    for where, table in {**marked, "layout.bystanders": layout.bystanders}.items():
        if unknown := sorted(set(table) - set(preset.kinds)):
            yield f"{where}: no such kind of cell: {', '.join(unknown)}"
            return
        if any(value < 0 for value in table.values()):
            yield f"{where}: must not be negative"
        wanted = where in marked
        other = sorted(kind for kind in table if preset.kinds[kind].marked != wanted)
        if other:
            yield f"{where}: {'un' if wanted else ''}marked kinds: {', '.join(other)}"
        total = sum(table.values())
        is_whole = wanted and where != "layout.atypical"
        if is_whole and table and abs(total - 1) > _ROUNDING:
            yield f"{where}: shares add up to {total:g}, not to 1"
    if unknown := sorted(set(preset.dirt.dyes) - set(preset.dyes)):
        yield f"dirt.dyes: no such dye: {', '.join(unknown)}"
    for name, kind in preset.kinds.items():
        parts = [part for part in (kind.nucleus, kind.cytoplasm) if part is not None]
        dyes = {dye for part in parts for dye in part.density}
        if unknown := sorted(dyes - set(preset.dyes)):
            yield f"kinds.{name}: no such dye: {', '.join(unknown)}"
        if not parts:
            yield f"kinds.{name}: has neither nucleus nor cytoplasm"
        if kind.sheet < 1 or kind.crowding <= 0:
            yield f"kinds.{name}: sheet is at least 1, crowding more than 0"
