"""Cells of blocks: the same however they are asked for, as many as wanted, and apart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cytofm_cli.errors import UsageError
from cytofm_cli.simulate.layout import BLOCK, REACH, Placement

from .simulated import PRESET, slides


def placement(preset=PRESET, number=0, **settings) -> Placement:
    return Placement(slides(**{"slides_per_patient": 1, **settings})[1][number], preset)


def cells_of(place: Placement):
    n = range(place.n_blocks)
    return [cell for by in n for bx in n for cell in place.block(by, bx).cells]


def test_blocks__are_the_same_in_any_order() -> None:
    forward, backward = placement(size_px=3000, seed=2), placement(size_px=3000, seed=2)
    places = [(by, bx) for by in range(6) for bx in range(6)]
    late = {place: backward.block(*place).cells for place in reversed(places)}
    assert {place: forward.block(*place).cells for place in places} == late
    assert placement(size_px=3000, seed=2).block(3, 4).cells == late[3, 4]
    assert placement(size_px=3000, seed=3).block(3, 4).cells != late[3, 4]


def test_blocks__hold_what_lies_on_the_slide_near_them() -> None:
    place = placement(size_px=1700)
    for by in range(4):
        for bx in range(4):
            xy = place.block(by, bx).xy
            assert ((xy >= 0) & (xy < 1700)).all()
            corner = np.array([bx, by]) * BLOCK
            assert (xy >= corner - REACH).all() and (xy < corner + BLOCK + REACH).all()
    assert place.block(4, 0).cells == () == place.block(-1, 0).cells


def test_numbers__are_those_of_the_preset() -> None:
    # Without clumps and atypical cells; sheets of 8 of mean 8: variance 8 · (2 · 8 − 1) a sheet.
    layout = dataclasses.replace(PRESET.layout, clumping=0.0, atypical={})
    preset = dataclasses.replace(PRESET, layout=layout)
    _, cohort = slides(patients=1, slides_per_patient=1, size_px=4096, abnormal_share=0)
    place = Placement(cohort[0], preset)
    mm2 = (4096 * 0.25 / 1000) ** 2
    assert place.expected == pytest.approx(400 * mm2)
    kinds = [cell.kind for cell in cells_of(place)]
    for kind, mean in (("squame", 360 * mm2), ("neutrophil", 300 * mm2)):
        assert abs(kinds.count(kind) - mean) < 4 * math.sqrt(mean)
    mean = 40 * mm2
    assert abs(kinds.count("gland") - mean) < 4 * math.sqrt(mean / 8 * 8 * 15)


def test_nuclei__keep_apart_also_across_blocks() -> None:
    cells = cells_of(placement(size_px=4096, seed=1))
    xy = np.array([(cell.x, cell.y) for cell in cells])
    areas = [PRESET.kinds[cell.kind].nucleus.area_um2.median for cell in cells]
    radius = np.sqrt(np.array(areas) / np.pi) / PRESET.mpp
    a, b = cKDTree(xy).query_pairs(2 * radius.max(), output_type="ndarray").T
    ratio = np.hypot(*(xy[a] - xy[b]).T) / (radius[a] + radius[b])
    assert len(cells) > 400
    assert (ratio > 0.8).all()


def test_sheets__lie_around_their_parent() -> None:
    place = placement(size_px=4096, seed=1)
    sizes = []
    for by in range(8):
        for bx in range(8):
            block = place.block(by, bx)
            for sheet in set(block.sheets):
                rows = [i for i, other in enumerate(block.sheets) if other == sheet]
                kinds = {block.cells[i].kind for i in rows}
                assert len(kinds) == 1
                parent = block.xy[rows[0]]
                assert (np.hypot(*(block.xy[rows] - parent).T) <= REACH + 1e-9).all()
                assert (parent // BLOCK == (bx, by)).all()
                sizes += [len(rows)] if kinds == {"gland"} else []
    assert max(sizes) > 5
    assert len({cell.seed for cell in cells_of(place)}) == len(cells_of(place))


@pytest.mark.parametrize("side", [4200, 100_000])
def test_slides__are_covered_as_far_as_asked(side: int) -> None:
    place = placement(size_px=side, covered=0.3)
    n = range(place.n_blocks)
    covered = np.mean([place.is_covered(by, bx) for by in n for bx in n])
    assert 0.3 <= covered < 0.55  # blocks that are covered in part count whole
    assert place.expected == pytest.approx(400 * 0.3 * (side * 0.25e-3) ** 2, rel=0.3)
    empty = next((y, x) for y in n for x in n if not place.is_covered(y, x))
    assert place.block(*empty).cells == ()
    field = placement(size_px=2048)
    assert all(field.is_covered(by, bx) for by in range(4) for bx in range(4))


def test_monolayer__keeps_whole_cells_apart() -> None:
    layout = dataclasses.replace(PRESET.layout, monolayer=True, background={"squame": 1.0})
    layout = dataclasses.replace(layout, cells_per_mm2=100, atypical={}, clumping=0.0)
    preset = dataclasses.replace(PRESET, layout=layout)
    cells = cells_of(placement(preset, size_px=2048, abnormal_share=0))
    xy = np.array([(c.x, c.y) for c in cells if c.kind == "squame"])
    radius = math.sqrt(1200 / math.pi) / PRESET.mpp
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
    assert (nearest > 2 * radius).mean() > 0.9


def test_blocks__too_full_for_the_numbers_of_their_cells_are_refused() -> None:
    layout = dataclasses.replace(PRESET.layout, bystanders={"neutrophil": 6000.0}, clumping=0.0)
    place = placement(dataclasses.replace(PRESET, layout=layout, mpp=2.0), size_px=512)
    with pytest.raises(UsageError, match="cells within 512 px; at most 4095 have room"):
        place.block(0, 0)
