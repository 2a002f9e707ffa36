"""pylibCZIrw: Zeiss .czi with focal planes or in codecs that OpenSlide does not read.

The scenes of a file lie on one canvas, as OpenSlide shows them; what no scene covers is white.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides.base import Level, SlideInfo, mean_mpp, parse_float, slide_error
from cytofm_cli.slides.foreign import (
    ForeignReader,
    as_bands,
    heights_um,
    open_with,
    planes_note,
    shown_channels,
    with_notes,
)
from cytofm_cli.slides.packages import Package
from cytofm_cli.units import Box, Size

NAME: Final = "czi"
PACKAGE: Final = Package(
    module="pylibCZIrw.czi",
    project="pylibCZIrw",
    at_least="5.0",
    install="pip install 'cytofm[czi]'",
)
_MAGIC: Final = b"ZISRAWFILE"
_WHITE: Final = (1.0, 1.0, 1.0)
_METRE_UM: Final = 1e6


class CziPlugin:
    """Opens Zeiss slides."""

    def probe(self, path: str) -> str | None:
        """Say why pylibCZIrw should not read `path`; None if it should."""
        if "://" in path:
            return "reads local files only"
        with open(path, "rb") as handle:  # noqa: PTH123 - a str, as given
            return None if handle.read(len(_MAGIC)) == _MAGIC else "not a CZI file"

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        package, stack = PACKAGE.load(), ExitStack()
        czi = open_with(path, lambda file: stack.enter_context(package.open_czi(file)))
        try:
            return _reader(path, czi, stack)
        except Exception:
            stack.close()
            raise


def _reader(path: str, czi: Any, stack: ExitStack) -> ForeignReader:
    kinds = czi.pixel_types
    if not kinds or set(kinds.values()) - {"Gray8", "Bgr24"}:
        names = ", ".join(sorted(set(kinds.values()))) or "no"
        raise slide_error(
            path, f"has {names} pixels; only 8-bit ones are read.", "scale it to 8 bits."
        )
    left, top, width, height = czi.total_bounding_rectangle
    spans = czi.total_bounding_box
    n_planes = spans["Z"][1] - spans["Z"][0] if "Z" in spans else 1
    facts = _Facts(czi.metadata, len(kinds))
    channels, note = shown_channels(facts.channels if kinds[0] != "Bgr24" else [""])
    mpp, doubt = mean_mpp(*facts.um)
    levels = _levels(czi, Size(width, height))
    info = SlideInfo(
        path=path,
        reader=NAME,
        format="zeiss",
        levels=levels,
        mpp=mpp,
        mpp_source="czi.Scaling" if mpp else None,
        objective=facts.objective,
        n_focal_planes=n_planes,
        focal_plane=n_planes // 2,
        planes_um=heights_um(n_planes, facts.z_um),
        reads_planes=n_planes > 1,
    )
    n_times = spans["T"][1] - spans["T"][0] if "T" in spans else 1
    times = f"Of {n_times} points in time the first is read." if n_times > 1 else None
    info = with_notes(info, [note, doubt, planes_note(n_planes, n_planes // 2), times])
    first_z = spans["Z"][0] if "Z" in spans else 0

    def read(level: int, box: Box, plane: int) -> NDArray[np.uint8]:
        by = round(levels[level].downsample)
        roi = (left + box.x * by, top + box.y * by, box.w * by, box.h * by)
        pictures = [
            czi.read(
                roi=roi,
                plane={"C": channel, "Z": first_z + plane} if "Z" in spans else {"C": channel},
                zoom=1 / by,
                background_pixel=_WHITE,
            )
            for channel in channels
        ]
        if kinds[0] == "Bgr24":
            return np.asarray(pictures[0])[..., ::-1]
        return as_bands([picture[..., 0] for picture in pictures])

    return ForeignReader(info, read, stack.close)


def _levels(czi: Any, size: Size) -> tuple[Level, ...]:
    """Return the levels that lie in the file: whole factors by which its blocks are reduced."""
    factors = {1}

    def collect(_index: int, block: Any) -> bool:
        factors.add(round(block.logicalRect.w / max(1, block.physicalSize.w)))
        return True

    czi.enumerate_subblocks(collect)
    return tuple(
        Level(size_px=Size(size.w // by, size.h // by), downsample=float(by))
        for by in sorted(factors)
        if by >= 1 and min(size) >= by
    )


class _Facts:
    """What the XML of a file says.

    Attributes:
        um: µm/px along x and y, or None.
        z_um: distance of focal planes, or None.
        objective: nominal magnification, or None.
        channels: names, "" where there is none.
    """

    def __init__(self, document: dict[str, Any], n_channels: int) -> None:
        metadata = _down(document, "ImageDocument", "Metadata")
        distances = _all(_down(metadata, "Scaling", "Items", "Distance"))
        metres = {each.get("@Id"): parse_float(each.get("Value")) for each in distances}
        um = [value * _METRE_UM if (value := metres.get(axis)) else None for axis in "XYZ"]
        self.um, self.z_um = (um[0], um[1]), um[2]
        objectives = _all(_down(metadata, "Information", "Instrument", "Objectives", "Objective"))
        powers = [parse_float(each.get("NominalMagnification")) for each in objectives]
        self.objective = powers[0] if powers else None
        named = _all(_down(metadata, "Information", "Image", "Dimensions", "Channels", "Channel"))
        names = [str(each.get("@Name") or "") for each in named]
        self.channels = [*names, *[""] * n_channels][:n_channels]


def _down(element: Any, *names: str) -> Any:
    for name in names:
        element = element.get(name) if isinstance(element, dict) else None
    return element


def _all(elements: Any) -> list[dict[str, Any]]:
    """Return the dictionaries of what is one element, or a list of them, in a parsed XML."""
    listed = elements if isinstance(elements, list) else [elements]
    return [each for each in listed if isinstance(each, dict)]


PLUGIN = ReaderPlugin(
    make=CziPlugin,
    summary="Zeiss CZI with focal planes and scenes, where OpenSlide does not read it",
    needs=("pylibCZIrw",),
    extra="czi",
    suffixes=(".czi",),
    only=True,
    turn=30,
    sample="cytofm_cli.testing.samples.scanners:czi",
)
