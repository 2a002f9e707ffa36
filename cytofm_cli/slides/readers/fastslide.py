"""fastslide: Olympus .vsi with its .ets, and Zeiss .czi that neither OpenSlide nor libCZI reads.

Of several pictures in a file the finest is read, then the largest, that is not named overview,
label or the like.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import descriptions
from cytofm_cli.slides.base import SlideInfo, mean_mpp, slide_error
from cytofm_cli.slides.foreign import (
    ForeignReader,
    as_bands,
    heights_um,
    levels_of,
    open_with,
    planes_note,
    refuse_wide,
    shown_channels,
    with_notes,
)
from cytofm_cli.slides.packages import Package
from cytofm_cli.units import Box, is_plausible_mpp

NAME: Final = "fastslide"
PACKAGE: Final = Package(
    module="fastslide",
    project="fastslide",
    at_least="0.8.1",
    install="pip install 'cytofm[vsi]'",
)
# A second scan of the slide is about as fine; an overview is several times coarser.
_AS_FINE: Final = 1.5


class FastSlidePlugin:
    """Opens Olympus and Zeiss slides."""

    def probe(self, path: str) -> str | None:
        """Say why fastslide should not read `path`; None if it should."""
        return "reads local files only" if "://" in path else None

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        slide = open_with(path, PACKAGE.load().FastSlide.from_file_path)
        try:
            return _reader(path, slide)
        except Exception:
            slide.close()
            raise


def _reader(path: str, slide: Any) -> ForeignReader:
    refuse_wide(path, slide.dtype)
    picture, told = _choose(path, list(slide.images), slide.format)
    colour = str(picture.read_region((0, 0), 0, (1, 1)).format).endswith(("RGB", "RGBA"))
    names = [str(each.get("name") or "") for each in picture.channel_metadata]
    channels, note = shown_channels([""] if colour else names or [""] * picture.num_channels)
    mpp, doubt = mean_mpp(*(um or None for um in picture.mpp))
    levels, places = levels_of(picture.level_dimensions)
    middle = picture.z_count // 2
    info = SlideInfo(
        path=path,
        reader=NAME,
        format=str(slide.format).lower(),
        levels=levels,
        mpp=mpp,
        mpp_source="fastslide.mpp" if mpp else None,
        codec=str(slide.properties.get("olympus_vsi.codec", "unknown")).lower(),
        objective=float(slide.properties.get("objective_magnification") or 0) or None,
        n_focal_planes=max(1, picture.z_count),
        focal_plane=middle if picture.z_count > 1 else 0,
        planes_um=heights_um(picture.z_count, picture.z_spacing_um),
        reads_planes=picture.z_count > 1,
        has_icc_profile=slide.icc_profile is not None,
    )
    times = "The first point in time is read." if picture.t_count > 1 else None
    info = with_notes(info, [told, note, doubt, planes_note(picture.z_count, middle), times])

    def read(level: int, box: Box, plane: int) -> Any:
        got = picture.read_region((box.x, box.y), places[level], (box.w, box.h), z=plane)
        if colour:
            return got.to_interleaved().numpy()[..., :3]
        bands = np.asarray(got.to_separate().numpy())
        return as_bands([bands[channel] for channel in channels])

    return ForeignReader(info, read, slide.close)


def _choose(path: str, pictures: list[Any], form: str) -> tuple[Any, str | None]:
    """Choose the picture that is the slide; say so where there are others.

    Raises:
        SlideError: all are labels or overviews, or a Zeiss file has several scenes, which lie on
            one slide, and would be read one by one.
    """
    if form == "CZI" and len(pictures) > 1:
        raise slide_error(
            path,
            f"has {len(pictures)} scenes, of which {NAME} reads one.",
            "pip install 'cytofm[czi]'",
        )
    named = [each for each in pictures if not descriptions.other_name(each.name)]
    if not named:
        raise slide_error(path, "holds only the overview or label of a slide.", "copy it again.")
    finest = min((_um(each) for each in named), default=0.0)
    fine = [each for each in named if _um(each) <= _AS_FINE * finest] or named
    best = max(fine, key=lambda each: each.dimensions[0] * each.dimensions[1])
    if len(pictures) == 1:
        return best, None
    return best, f"Of {len(pictures)} pictures in the file, {best.name!r} is read."


def _um(picture: Any) -> float:
    x = float(picture.mpp[0])
    return x if is_plausible_mpp(x) else float("inf")


PLUGIN = ReaderPlugin(
    make=FastSlidePlugin,
    summary="Olympus VSI with its .ets, and Zeiss CZI",
    needs=("fastslide",),
    extra="vsi",
    suffixes=(".vsi", ".czi"),
    only=True,
    turn=35,
    sample="cytofm_cli.testing.samples.scanners:fastslide",
)
