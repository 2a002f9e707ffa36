"""Which tiles lie in regions by which rule, and what label they get; worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.regions.base import Region, box_ring
from cytofm_cli.regions.chosen import Polygons
from cytofm_cli.regions.config import CENTRE, acting, rule_of
from cytofm_cli.regions.select import Wanted, judge_points, judge_tiles, label_tiles

# Tiles of 100 px in a row. Tumor covers the first and 60 px of the second; a spot of Stroma lies
# within Tumor, around the middle of the first; Artefact covers the right half of the third.
XY = np.array([[0, 0], [100, 0], [200, 0], [300, 0]])
DRAWN = (("Tumor", (0, 0), (160, 100)), ("Stroma", (40, 40), (60, 60)),
         ("Artefact", (250, 0), (300, 100)))  # fmt: skip


def wanted(share: float | None = None, **classes: tuple[str, ...] | None) -> Wanted:
    regions = tuple(Region(name=n, rings=(box_ring(a, b),), where=n) for n, a, b in DRAWN)
    named: dict = {"include": None, "exclude": (), "label": (), **classes}
    return Wanted(there=Polygons(regions, (400, 100)), path=None, digest="0", share=share, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "classes", "kept", "counts"),
    [
        (None, {"include": ("Tumor",)}, [1, 1, 0, 0], (2, 0)),  # middles at 50, 150, 250, 350
        (0.6, {"include": ("Tumor",)}, [1, 1, 0, 0], (2, 0)),
        (0.61, {"include": ("Tumor",)}, [1, 0, 0, 0], (3, 0)),
        (1.0, {"include": ("Tumor",)}, [1, 0, 0, 0], (3, 0)),
        (None, {"include": ("Tumor",), "exclude": ("Stroma",)}, [0, 1, 0, 0], (2, 1)),
        (0.97, {"include": ("Tumor",), "exclude": ("Stroma",)}, [0, 0, 0, 0], (3, 1)),
        (0.95, {"include": ("Tumor",), "exclude": ("Stroma",)}, [1, 0, 0, 0], (3, 0)),
        (0.5, {"exclude": ("Artefact",)}, [1, 1, 1, 1], (0, 0)),
        (0.51, {"exclude": ("Artefact",)}, [1, 1, 0, 1], (0, 1)),
        (0.5, {"label": ("Tumor",)}, [1, 1, 1, 1], (0, 0)),  # labels leave nothing out
    ],
)
def test_tiles__are_kept_by_the_rule(
    share: float | None, classes: dict, kept: list[int], counts: tuple[int, int]
) -> None:
    judged = judge_tiles(wanted(share, **classes), XY, 100.0)
    assert judged.kept_N.astype(int).tolist() == kept
    assert (judged.n_outside, judged.n_excluded) == counts


def test_label__by_centre_is_that_of_the_smallest_region() -> None:
    assert label_tiles(wanted(label=("Tumor", "Stroma")), XY, 100.0).tolist() == [1, 0, -1, -1]
    assert label_tiles(wanted(label=("Tumor",)), XY, 100.0).tolist() == [0, 0, -1, -1]
    assert label_tiles(wanted(), XY, 100.0).tolist() == [-1] * 4


def test_label__by_share_is_that_of_the_largest_share() -> None:
    both = ("Stroma", "Tumor", "Artefact")
    assert label_tiles(wanted(0.5, label=both), XY, 100.0).tolist() == [1, 1, 2, -1]
    assert label_tiles(wanted(0.6, label=both), XY, 100.0).tolist() == [1, 1, -1, -1]
    assert label_tiles(wanted(0.04, label=("Stroma",)), XY, 100.0).tolist() == [0, -1, -1, -1]


def test_nuclei__lie_where_their_centre_does() -> None:
    points = np.array([[50.0, 50], [10, 10], [159, 99], [161, 50], [275, 5]])
    judged = judge_points(wanted(0.9, include=("Tumor", "Artefact"), exclude=("Stroma",)), points)
    assert judged.kept_N.tolist() == [False, True, True, False, True]
    assert (judged.n_outside, judged.n_excluded) == (1, 1)


def test_rule__is_read_as_it_is_typed() -> None:
    assert rule_of("centre", "") is None
    for text in ("fraction>=0.5", "fraction >= 0.5", "fraction≥0.5", "fraction=.5", "fraction:0.5"):
        assert rule_of(text, "") == 0.5


def test_record__has_what_acts_and_the_digest_for_the_path() -> None:
    typed = {"regions": "a/b.xml", "region_rule": "fraction = 0.50", "region_unit": "auto",
             "region_include": ("a", "b"), "region_exclude": None, "tile_px": 3}  # fmt: skip
    assert acting(typed, "abc") == {
        "regions": "abc", "region_rule": "fraction>=0.5", "region_include": ["a", "b"],
    }  # fmt: skip
    assert acting(typed, None) == {}
    assert acting({"region_rule": CENTRE}, "d") == {"regions": "d", "region_rule": CENTRE}
