"""Hold the facts of an ordinary TIFF against what another library makes of the file.

OpenSlide and TiffSlide choose picture, levels and resolution by rules of their own and know no
OME-XML. For an ordinary TIFF they only decode: what they cannot decode as `pyramid` says, they
do not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cytofm_cli.slides import colour
from cytofm_cli.slides.base import SlideInfo, slide_error
from cytofm_cli.slides.content import Read, keep_same
from cytofm_cli.slides.pyramid import Pyramid
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Size


def refusal(pyramid: Pyramid, decodes: Callable[[colour.Model], bool]) -> str | None:
    """Say why a library that reads one directory a level should not read a TIFF.

    Args:
        pyramid: the slide.
        decodes: whether the library gives the right colours for a model.
    """
    directories = [d for level in pyramid.channels for d in level]
    if len(directories) > len(pyramid.levels):
        return "has its channels in separate pictures"
    if pyramid.planes:
        return "has focal planes, of which it reads one"
    if directories[0].planar:
        return "keeps its colours in separate planes"
    if not decodes(colour.model(directories[0])):
        return "has a colour model that is converted by another reader"
    return None


def with_facts(
    info: SlideInfo, pyramid: Pyramid, directories: Sequence[Directory], read: Read
) -> tuple[SlideInfo, tuple[int, ...]]:
    """Replace what a library found out about a TIFF by what the file says.

    Args:
        info: the library's facts.
        pyramid: the file's.
        directories: all of the file's.
        read: reads a level of the library.

    Returns:
        the facts, and for each of their levels the level of the library.

    Raises:
        SlideError: the library has another picture, or lacks levels.
    """
    known = {level.size_px: i for i, level in enumerate(info.levels)}
    sizes = [level.size_px for level in pyramid.levels]
    if any(size not in known for size in sizes) or info.size_px0 != sizes[0]:
        raise slide_error(info.path, f"{info.reader} takes another picture for the slide.")
    twice = [size for size in sizes if _n_tiled(directories, size) > 1]
    if twice:
        raise slide_error(
            info.path, f"{info.reader} cannot tell its pictures of {twice[0].w} px apart."
        )
    place = [known[size] for size in sizes]
    kept = keep_same(pyramid, lambda level, box: read(place[level], box))
    facts = replace(
        info,
        format=kept.format,
        levels=kept.levels,
        mpp=kept.mpp,
        mpp_source=kept.mpp_source,
        codec=kept.channels[0][0].codec,
        objective=kept.objective,
        n_focal_planes=kept.n_focal_planes,
        focal_plane=kept.focal_plane,
        notes=kept.notes,
    )
    return facts, tuple(known[level.size_px] for level in kept.levels)


def _n_tiled(directories: Sequence[Directory], size_px: Size) -> int:
    return sum(d.tile_px is not None and d.size_px == size_px for d in directories)
