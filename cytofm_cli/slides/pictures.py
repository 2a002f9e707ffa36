"""Which directories of a TIFF are the slide and its levels, and which are other pictures.

A file may hold label, macro photograph, thumbnail, further fields and focal planes in any
order. The slide is the largest picture that is not named otherwise; among pictures of about
that size, the one with lower levels, then the tiled one, then one that states a microscope's
resolution. A level has the slide's aspect, samples and stated scale; whether it has its content
is checked where pixels are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cytofm_cli.slides import descriptions
from cytofm_cli.slides.base import SCALE_TOLERANCE, slide_error
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Size, is_plausible_mpp

# Sizes of levels are rounded, by some writers up to whole tiles of the level above.
_ROUNDING_PX: Final = 2
_MIN_STEP: Final = 1.2
# Pictures down to 1/8 of the largest's area can be the slide if they have levels.
_NEAR: Final = 8


@dataclass(frozen=True, kw_only=True)
class Slide:
    """The directories of the slide, and what else the file holds.

    Attributes:
        levels: finest first, at least one.
        notes: what a user should know about the choice.
    """

    levels: tuple[Directory, ...]
    notes: tuple[str, ...]


def find_slide(path: str, directories: Sequence[Directory]) -> Slide:
    """Choose the slide among the directories of a TIFF that says nothing of their order.

    Raises:
        SlideError: the file holds only a label, a thumbnail or the like.
    """
    others = {id(d): descriptions.other_picture(d) for d in directories}
    pictures = [d for d in directories if not others[id(d)] and min(d.size_px) > 0]
    names = sorted({name for name in others.values() if name})
    if not pictures and names:
        raise slide_error(
            path, f"holds only the {' and the '.join(names)} of a slide.", "copy the slide itself."
        )
    if not pictures:
        raise slide_error(path, "is a TIFF without a picture size.")
    of_size: dict[tuple[Size, int], Directory] = {}
    for directory in pictures:
        if directory.sub is None:
            of_size.setdefault((directory.size_px, directory.samples), directory)
    if not of_size:  # SubIFDs alone have a size
        raise slide_error(path, "is a TIFF without a picture size.")
    candidates = [levels_of(base, pictures) for base in of_size.values()]
    levels = candidates[choose(candidates, [any(map(_has_scale, each)) for each in candidates])]
    _refuse_thumbnail(path, levels[0])
    return Slide(levels=tuple(levels), notes=tuple(_notes(pictures, levels)))


def choose(pyramids: Sequence[list[Directory]], has_scale: Sequence[bool]) -> int:
    """Return which of some pictures with their levels is the slide; the first of equal ones.

    Args:
        pyramids: each picture with its levels, finest first.
        has_scale: whether each states a microscope's resolution; photographs of glass do not.
    """
    largest = max(_area(levels[0]) for levels in pyramids)
    near = [i for i, p in enumerate(pyramids) if _area(p[0]) * _NEAR >= largest]

    def rank(i: int) -> tuple[bool, bool, bool, int]:
        levels = pyramids[i]
        tiled = levels[0].tile_px is not None
        return len(levels) > 1, tiled, has_scale[i], _area(levels[0])

    return max(near, key=rank)


def levels_of(base: Directory, directories: Sequence[Directory]) -> list[Directory]:
    """Return `base` and the directories that can be its levels, finest first."""
    levels = [base]
    if base.tile_px is None:
        return levels
    candidates = [d for d in directories if d is not base and d.tile_px and _alike(d, base)]
    # SubIFDs are smaller copies by definition: they go before pages of the same size.
    for directory in sorted(candidates, key=lambda d: (-_area(d), d.sub is None)):
        if levels[-1].size_px.w >= _MIN_STEP * directory.size_px.w:
            levels.append(directory)
    return levels


def _has_scale(directory: Directory) -> bool:
    facts = descriptions.read(directory)
    return any(is_plausible_mpp(um) for um in (*facts.um, *directory.resolution_um()))


def _area(directory: Directory) -> int:
    return directory.size_px.w * directory.size_px.h


def _alike(directory: Directory, base: Directory) -> bool:
    """Tell whether a directory can be a smaller copy of `base`."""
    w, h = directory.size_px
    if w < 1 or h < 1 or directory.samples != base.samples:
        return False
    if directory.sub is not None:
        if directory.page != base.page:
            return False
    elif directory.planar != base.planar or not _same_scale(directory, base):
        return False
    scale = max(base.size_px.w / w, base.size_px.h / h)
    return (
        abs(base.size_px.w / scale - w) <= _ROUNDING_PX
        and abs(base.size_px.h / scale - h) <= _ROUNDING_PX
    )


def _same_scale(directory: Directory, base: Directory) -> bool:
    """Tell whether the stated resolutions fit the sizes; many writers repeat the base's."""
    stated = [d.resolution_um()[0] for d in (directory, base)]
    fine, coarse = stated[1], stated[0]
    if fine is None or coarse is None or not (is_plausible_mpp(fine) and coarse > 0):
        return True
    ratio, scale = coarse / fine, base.size_px.w / directory.size_px.w
    return any(abs(ratio / expected - 1) <= SCALE_TOLERANCE for expected in (1, scale))


def _refuse_thumbnail(path: str, base: Directory) -> None:
    """Refuse a file of which only the small copy in strips is left."""
    full = descriptions.read(base).reduced_from
    if full is not None and base.tile_px is None:
        w, h = base.size_px
        raise slide_error(
            path,
            f"holds only the thumbnail ({w} x {h} px) of a slide of {full.w} x {full.h} px.",
            "copy the slide again from its source.",
        )


def _notes(pictures: Sequence[Directory], levels: Sequence[Directory]) -> list[str]:
    base = levels[0]
    pages = [d for d in pictures if d.sub is None]
    notes = []
    tiled = base.tile_px is not None
    n_same = sum(d.size_px == base.size_px and (d.tile_px is not None) == tiled for d in pages)
    if n_same > 1:
        notes.append(f"The file has {n_same} pages of the same size; only the first is read.")
    sizes = {d.size_px for d in levels}
    rest = [d for d in pages if d.tile_px and d.size_px not in sizes]
    if rest:
        listed = ", ".join(dict.fromkeys(f"{d.size_px.w} x {d.size_px.h}" for d in rest[:3]))
        more = ", ..." if len(rest) > 3 else ""
        notes.append(
            f"Page {base.page} is read as the slide; {len(rest)} other pictures in the file are "
            f"not ({listed}{more} px)."
        )
    return notes
