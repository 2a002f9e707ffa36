"""Which values of a head are drawn, and how they are painted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.maps.heat import Painter, Places, choose_column, levels_of, title_of
from cytofm_cli.mil.base import MilModel, make_head, preset_settings, seeded
from cytofm_cli.mil.score import instance_columns
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.registry import mil_methods

CLASSES = ("NILM", "HSIL")


@pytest.mark.parametrize(
    ("columns", "what", "of_class", "chosen"),
    [
        (("attention",), "attention", None, "attention"),  # ABMIL, TransMIL
        (("attention_NILM", "attention_HSIL"), "attention", None, "attention_HSIL"),  # CLAM-MB
        (("attention_NILM", "attention_HSIL"), "attention", "NILM", "attention_NILM"),
        (("attention_HSIL", "score_NILM", "score_HSIL"), "score", None, "score_HSIL"),  # DSMIL
        (("attention", "score_NILM", "score_HSIL"), "score", "NILM", "score_NILM"),
        (("attention_0", "attention_1"), "attention", None, "attention_1"),  # LESS
    ],
)
def test_column__of_each_kind_of_head(
    columns: tuple[str, ...], what: str, of_class: str | None, chosen: str
) -> None:
    assert choose_column(columns, CLASSES, what, of_class, "x") == chosen


# What each head's map is of; None: `heatmap` refuses a head that weighs all instances alike.
MAPS = {
    "abmil": "attention", "clam_mb": "attention_HSIL", "clam_sb": "attention", "count": None,
    "dsmil": "attention_HSIL", "dtfd": "attention", "less": "attention", "max": "attention",
    "max_score": "attention", "mean": None, "transmil": "attention",
}  # fmt: skip


def test_column__of_every_head_that_there_is() -> None:
    for name in mil_methods.names():
        _, preset = preset_settings(name, "cytofm")
        with seeded(0), torch.inference_mode():
            head, _ = make_head(name, 6, 2, preset)
            out = MilModel(head.eval(), 6)(torch.randn(1, 5, 6), seeds=[0])
        columns, values_NK = instance_columns(out, CLASSES)
        assert values_NK.shape == (5, len(columns))
        if MAPS[name] is not None:
            chosen = choose_column(columns, CLASSES, "attention", None, name)
            assert chosen.startswith(MAPS[name]), (name, columns)


@pytest.mark.parametrize(
    ("columns", "what", "of_class", "message", "hint"),
    [
        (("attention",), "attention", "LSIL", "--class LSIL: the RUN knows NILM, HSIL.",
         "name one of them"),
        (("attention",), "score", None, "head 'x' gives no score of single instances.",
         "--what attention"),
        (("attention",), "attention", "HSIL",
         "--class HSIL: the attention of head 'x' speaks for the slide as a whole, for no class.",
         "leave --class away"),
        (("attention", "score_NILM", "score_HSIL"), "attention", "HSIL",
         "--class HSIL: the attention of head 'x' speaks for the slide as a whole, for no class.",
         "leave --class away, or --what score"),
        (("attention_HSIL",), "attention", "NILM",
         "--class NILM: the attention of head 'x' speaks for HSIL.", "--class HSIL"),
    ],
)  # fmt: skip
def test_column__that_is_not_there(
    columns: tuple[str, ...], what: str, of_class: str | None, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_column(columns, CLASSES, what, of_class, "x")
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_title__says_which_class() -> None:
    assert title_of("attention", "HSIL") == "attention for the slide's answer (HSIL)"
    assert title_of("score_NILM", "HSIL") == "score for NILM"


def test_levels__are_percentiles_or_linear() -> None:
    values = np.array([0.1, 0.2, 0.7], np.float32)
    ranked = levels_of(values, raw=False, where="s", what="attention")
    np.testing.assert_allclose(ranked.level_N, [1 / 6, 0.5, 5 / 6])
    assert (ranked.low, ranked.middle, ranked.high) == pytest.approx((0.1, 0.2, 0.7))
    linear = levels_of(values, raw=True, where="s", what="attention")
    np.testing.assert_allclose(linear.level_N, [0, 1 / 6, 1], atol=1e-6)
    assert (linear.low, linear.middle, linear.high) == pytest.approx((0.1, 0.4, 0.7))


def test_levels__that_are_all_alike_are_no_map() -> None:
    with pytest.raises(InputError, match="s: all 4 instances have the same attention"):
        levels_of(np.full(4, 0.25), raw=False, where="s", what="attention")
    assert levels_of(np.array([1.0]), raw=False, where="s", what="attention").level_N == [0.5]


def test_painter__tiles_by_hand_the_highest_on_top() -> None:
    places = Places(np.array([[0, 0], [16, 0], [8, 8]], np.int32), 16.0)
    painter = Painter(places, np.array([0.0, 1.0, 0.5]), 8.0)
    assert painter.paint(0, 4, 5).tolist() == [
        [1, 1, 255, 255, 0],
        [1, 128, 255, 255, 0],
        [0, 128, 128, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    shifted = Painter(places, np.array([0.0, 1.0, 0.5]), 8.0, (8, 8))
    assert shifted.paint(0, 2, 3).tolist() == [[128, 255, 255], [128, 128, 0]]


def test_painter__a_tile_smaller_than_a_pixel_is_seen() -> None:
    # Of 128 px: it must not fall off the right edge either.
    painter = Painter(Places(np.array([[100, 40]], np.int32), 16.0), np.array([1.0]), 64.0)
    assert painter.paint(0, 2, 2).tolist() == [[0, 255], [0, 0]]


def cells(n: int, seed: int) -> Places:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(20, 380, (n, 2))
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], 1)
    rings = [centre + circle * rng.uniform(4, 20) for centre in centres]
    rings[0] = rings[0][:0]  # a nucleus of which only the point is known: a disk
    table = make_table(centres, np.full(n, 9.0), polygons=rings)
    return Places(np.round(centres).astype(np.int32), None, table, 8.0)


@given(seed=st.integers(0, 1000), rows=st.integers(1, 60), downsample=st.sampled_from([1, 2, 3]))
@example(seed=288, rows=1, downsample=1)  # the lowest point of a cell, rounded to the row below it
def test_painter__strips_are_parts_of_the_whole(seed: int, rows: int, downsample: int) -> None:
    places = cells(12, seed)
    painter = Painter(places, np.random.default_rng(seed).random(12), float(downsample))
    side = -(-400 // downsample)
    whole = painter.paint(0, side, side)
    parts = [painter.paint(top, min(rows, side - top), side) for top in range(0, side, rows)]
    assert np.array_equal(np.concatenate(parts), whole)
    tiles = Places(places.xy_px0, 32.0)
    painter = Painter(tiles, np.random.default_rng(seed).random(12), float(downsample))
    parts = [painter.paint(top, min(rows, side - top), side) for top in range(0, side, rows)]
    assert np.array_equal(np.concatenate(parts), painter.paint(0, side, side))


def test_painter__cells_lie_where_their_outlines_do() -> None:
    ring = np.array([[40.0, 80], [80, 80], [80, 120], [40, 120]])
    table = make_table(np.array([[60.0, 100.0]]), np.array([1.0]), polygons=[ring])
    places = Places(np.array([[60, 100]], np.int32), None, table, 4.0)
    shown = Painter(places, np.array([1.0]), 4.0).paint(0, 50, 50) == 255
    y, x = np.nonzero(shown)
    # OpenCV paints the pixels that the outline touches, too: at most one more on each side.
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((10, 19, 20, 29), abs=1)
    assert shown[21:29, 11:19].all()
