"""Settings of the tile step are compared by what they come to on a slide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cytofm_cli.store.records import SlideRecord, TileRecord
from cytofm_cli.tiles import settings
from cytofm_cli.tiles.config import TileConfig


def acting(n_foreground: int | None = 50, copies: bool = False, **given: Any) -> dict[str, Any]:
    return settings.resolved(
        settings.asked(TileConfig(**given), None),
        mpp=0.25,
        slide_mpp=0.25,
        reader="vips",
        copies_source=copies,
        n_foreground=n_foreground,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"mpp": 0.25},
        {"slide_mpp": 0.5},  # the slide's own is what counts, see `resolve_mpp`
        {"stride_px": 512},
        {"seed": 7},
        {"jpeg_quality": 50},
        {"pixels": "lossless"},  # nothing to copy: `source` is lossless
        {"select": "random", "max_tiles": 50, "seed": 3},  # no more than there are
        {"select": "densest", "max_tiles": 1000},
        {"mpp_tolerance": 0.1},
        {"reader": "vips"},
    ],
)
def test_settings__that_cannot_change_the_tiles_make_no_difference(given: dict[str, Any]) -> None:
    assert acting(**given) == acting()


@pytest.mark.parametrize(
    "given",
    [
        {"tile_px": 256},
        {"stride_px": 256},
        {"min_foreground": 0.1},
        {"foreground": "none"},
        {"pixels": "jpeg"},
        {"pixels": "none"},
        {"select": "random", "max_tiles": 49},
    ],
)
def test_settings__that_change_the_tiles_make_one(given: dict[str, Any]) -> None:
    assert acting(**given) != acting()


def test_settings__seed_quality_and_foreground_count_where_they_act() -> None:
    some = {"select": "random", "max_tiles": 10}
    assert acting(**some, seed=1) != acting(**some, seed=2)
    assert acting(select="densest", max_tiles=10, seed=1) == acting(
        select="densest", max_tiles=10, seed=2
    )
    assert acting(pixels="jpeg", jpeg_quality=80) != acting(pixels="jpeg")
    assert acting(foreground="none", min_foreground=0.5) == acting(foreground="none")
    assert acting(copies=True) != acting(copies=True, pixels="lossless")


def test_settings__a_resolution_counts_to_six_digits() -> None:
    def at(mpp: float) -> dict[str, Any]:
        return settings.resolved(
            acting(), mpp=mpp, slide_mpp=mpp / 2, reader="vips", copies_source=False, n_foreground=9
        )

    assert (at(10 / 40)["mpp"], at(0.5)["slide_mpp"]) == (0.25, 0.25)
    assert at(0.1 + 0.2) == at(0.3)
    assert at(0.300001) != at(0.3)


def test_settings__resolved_twice_are_the_same() -> None:
    for given in ({}, {"select": "random", "max_tiles": 9, "pixels": "jpeg", "stride_px": 100}):
        once = acting(**given)
        again = settings.resolved(
            once, mpp=0.25, slide_mpp=0.25, reader="vips", copies_source=False, n_foreground=50
        )
        assert again == once


def old_record(**given: Any) -> TileRecord:
    """Return the record of a store of version 0.1: the words, and no count of foreground."""
    words = {"tile_px": 512, "mpp": None, "mpp_tolerance": 0.05, "stride_px": None,
             "foreground": "auto", "min_foreground": 0.05, "select": "all", "max_tiles": None,
             "pixels": "source", "jpeg_quality": 90, "reader": "auto", "seed": 0,
             "manifest_mpp": None}  # fmt: skip
    return TileRecord(
        config=words | given, config_hash="h", input_fingerprint="f", n_tiles=50, tile_px=512,
        tile_px0=512.0, mpp=0.25, level=0, store_codec="zstd (lossless)",
    )  # fmt: skip


SLIDE = SlideRecord(slide_id="s", path="s.svs", reader="vips", size_px0=(9, 9), levels=(), mpp=0.25)


def test_settings__records_of_earlier_versions_are_recognised() -> None:
    assert settings.of_record(old_record(), SLIDE) == acting()
    assert settings.same_words(old_record(), SLIDE, settings.asked(TileConfig(), None))
    assert not settings.same_words(old_record(), SLIDE, settings.asked(TileConfig(mpp=0.25), None))
    copied = replace(old_record(), store_codec="source jpeg")
    assert settings.of_record(copied, SLIDE) == acting(copies=True)


def test_settings__an_old_record_tells_how_many_tiles_there_were_if_it_took_all() -> None:
    assert settings.count_of_foreground(old_record()) == 50
    assert settings.count_of_foreground(old_record(select="random", max_tiles=60)) == 50
    assert settings.count_of_foreground(old_record(select="random", max_tiles=50)) is None


def test_settings__focus_counts_where_a_slide_has_planes() -> None:
    stack = replace(SLIDE, n_focal_planes=5, focal_plane=2)
    assert settings.of_record(old_record(), stack)["focus"] == "plane:2"
    assert "focus" not in settings.of_record(old_record(), SLIDE)
    fused = replace(old_record(), focus="fuse")
    assert settings.of_record(fused, stack)["focus"] == "fuse"
    other = settings.asked(TileConfig(focus="fuse"), None)
    assert settings.same_words(old_record(), SLIDE, other)
    assert not settings.same_words(old_record(), stack, settings.asked(TileConfig(), None))
