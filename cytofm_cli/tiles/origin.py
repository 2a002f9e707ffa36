"""Where the slide of a store lies now, and how its tiles were cut from it."""

from __future__ import annotations

from pathlib import Path

from cytofm_cli import urls
from cytofm_cli.errors import SlideError
from cytofm_cli.runs import provenance
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.read import ReadPlan


def plan_of(store: Store) -> ReadPlan:
    """Return how the tiles of a store were cut from its slide."""
    record = store.tile
    return ReadPlan(
        level=record.level,
        downsample=store.slide.levels[record.level].downsample,
        scale=record.scale,
        tile_px=record.tile_px,
        mpp=record.mpp,
        slide_mpp=store.slide.mpp,
    )


def find_slide(store: Store, slides: Path | None) -> str:
    """Return the path of a store's slide, looking in `slides` for a moved one.

    Raises:
        SlideError: it is at neither place, or another file lies there; or it is behind a URL that
            the user does not give again: a store may come from anybody.
    """
    path = store.slide.path
    if store.slide.is_remote:
        return _remote(store, slides)
    moved = [] if slides is None else [slides / Path(path).name]
    for candidate in [*moved, Path(path)]:
        if candidate.exists():
            if provenance.fingerprint(candidate) != store.slide.fingerprint:
                raise SlideError(
                    f"{candidate}: is not the slide that {store.path.name} was tiled from.",
                    hint="--slides must name the folder of the same files; else tile it anew.",
                )
            return str(candidate)
    raise SlideError(
        f"{path}: the slide of {store.path.name} is not there, and the store holds no pixels.",
        hint="--slides DIR says where it is now.",
    )


def refuse_changed(path: str, mark: str) -> None:
    """Refuse a slide that has become another one while it was read: pixels may be of both.

    One that is gone by now was read from the file that was opened.

    Args:
        path: of the slide, or its URL, which cannot be asked.
        mark: its fingerprint when it was opened.

    Raises:
        SlideError: it has.
    """
    if urls.is_url(path) or not Path(path).exists():
        return
    if provenance.fingerprint(Path(path)) != mark:
        raise SlideError(
            f"{path}: has changed while it was read.",
            hint="the same command reads it when nothing writes to it any more.",
        )


def _remote(store: Store, slides: Path | None) -> str:
    """Return the URL of a slide if the user, and not the store alone, says to go there."""
    stored = store.slide.path
    url = None if slides is None else urls.of_given(str(slides), stored)
    if url is None:
        raise SlideError(
            f"{store.path}: its slide is at {stored}, and the store holds no pixels.",
            hint="to read it from there, say so: --slides with that URL, or with its folder's.",
        )
    urls.check_url(url)
    return url
