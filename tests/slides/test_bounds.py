"""The scanned part of a slide: read, kept in the store, and missed where an old store lacks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.nuclei.place import place_of
from cytofm_cli.slides.readers.openslide import _bounds
from cytofm_cli.store.io import Store
from cytofm_cli.store.records import SlideRecord
from cytofm_cli.units import Box, Size


def properties(*numbers: object) -> dict[str, str]:
    names = ("x", "y", "width", "height")
    pairs = zip(names, numbers, strict=False)
    return {f"openslide.bounds-{name}": str(number) for name, number in pairs}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((4000, 2000, 1024, 512), Box(4000, 2000, 1024, 512)),
        ((0, 0, 1024, 512), Box(0, 0, 1024, 512)),
        ((0, 0, 9000, 8000), None),  # all of it
        ((8500, 0, 1024, 512), None),  # leaves the slide: QuPath does not crop either
        ((4000, 2000), None),
        ((), None),
        (("x", 0, 10, 10), None),
    ],
)
def test_bounds__of_the_properties(numbers: tuple[object, ...], expected: Box | None) -> None:
    assert _bounds(properties(*numbers), Size(9000, 8000)) == expected


def store(**slide: object) -> Store:
    facts = {"slide_id": "s", "size_px0": [9000, 8000], "levels": [], "mpp": 0.25, **slide}
    facts |= {"path": "gone.scn", "reader": "openslide"}
    return Store(path=Path("s.zarr"), slide=SlideRecord.from_json(facts), steps={})


def test_place__says_where_an_old_store_does_not_know() -> None:
    notes: list[str] = []
    known = place_of(store(format="leica", bounds_px0=[4000, 2000, 10, 20]), notes.append)
    assert known.frame("bounds") == Box(4000, 2000, 10, 20)
    assert known.frame("slide") == Box(0, 0, 9000, 8000)
    whole = place_of(store(format="leica", bounds_px0=None), notes.append)
    assert whole.frame("bounds") == Box(0, 0, 9000, 8000)
    place_of(store(format="aperio"), notes.append)
    assert notes == []
    old = place_of(store(format="leica"), notes.append)
    assert old.bounds_px0 is None
    assert len(notes) == 1 and notes[0].startswith("warning: s: this store does not say")
