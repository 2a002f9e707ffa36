"""What scanners write into the ImageDescription of a TIFF directory.

Aperio and those that imitate it (Motic, Grundium, ...): `MAKER ... 46000x32914 [0,0 46000x32914]
(240x240) -> 11500x8228 JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990`. ImageJ: lines of key=value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cytofm_cli.slides import tiff
from cytofm_cli.slides.base import parse_float
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Size

_PROPERTY: Final = re.compile(r"[|/]\s*([^|/=]+?)\s*=\s*([^|/\r\n]*)")
_REDUCED_TO: Final = re.compile(r"(\d+)x(\d+)(?:\s*\[[^\]]*?(\d+)x(\d+)\])?[^|;]*?->\s*(\d+)x(\d+)")
# The name alone, or with a size after it; in Aperio's files on the line after the maker's.
_OTHER_LINE: Final = re.compile(
    r"\s*(?:slide[ _-])?(label|macro|overview|thumbnail|thumb|barcode|preview|localizer)"
    r"(?:[ _-]?image)?[\s\d:x,._-]*(?:\||$)",
    re.IGNORECASE,
)
_QPI_TYPE: Final = re.compile(r"<ImageType>\s*(\w+)\s*</ImageType>")
_QPI_SLIDE: Final = ("fullresolution", "reducedresolution")
_UNITS_UM: Final = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", r"\u00b5m", "micrometer"), 1.0),
    "nm": 1e-3, "mm": 1e3, "cm": 1e4, "inch": 25_400.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a description says of its own directory.

    Attributes:
        maker: "aperio", "motic", ... or None for an unknown one.
        um: µm/px of this directory, or None.
        um_source: where `um` was read.
        objective: magnification that this directory shows.
        reduced_from: size of the picture that this directory is a smaller copy of, or None.
    """

    maker: str | None = None
    um: tuple[float | None, float | None] = (None, None)
    um_source: str | None = None
    objective: float | None = None
    reduced_from: Size | None = None


def read(directory: Directory) -> Facts:
    """Read the facts of a description; µm/px and objective are those of this directory.

    "W x H -> w x h" says that the directory is a smaller copy: MPP and AppMag are the first's.
    """
    text = directory.text(tiff.IMAGE_DESCRIPTION)
    if text.startswith("ImageJ="):
        return _imagej(text, directory)
    if text.startswith("<"):
        return Facts()
    properties = dict(_PROPERTY.findall(text))
    um = parse_float(properties.get("MPP"))
    objective = parse_float(properties.get("AppMag"))
    maker = next((m for m in ("Aperio", "Motic") if text.startswith(m)), None)
    full = reduced_from(text, directory.size_px)
    if full is not None:
        scale = full.w / directory.size_px.w
        um = um and um * scale
        objective = objective and objective / scale
    return Facts(
        maker=maker and maker.lower(),
        um=(um, um),
        um_source=f"{(maker or 'description').lower()}.MPP" if um else None,
        objective=objective,
        reduced_from=full,
    )


def reduced_from(text: str, size_px: Size) -> Size | None:
    """Return the size that "W x H [x,y w x h] -> w x h" says was reduced; None if it was not."""
    match = _REDUCED_TO.search(text)
    if match is None:
        return None
    width, height, crop_w, crop_h, _, _ = (int(v) if v else 0 for v in match.groups())
    full = Size(crop_w or width, crop_h or height)
    return full if full.w > size_px.w > 0 else None


def other_picture(directory: Directory) -> str | None:
    """Name what a directory holds if that is no slide: "label", "macro", "thumbnail", ..."""
    if directory.number(tiff.NEW_SUBFILE_TYPE) & tiff.MASK:
        return "mask"
    text = directory.text(tiff.IMAGE_DESCRIPTION)
    kind = _QPI_TYPE.search(text)
    if kind:
        name = kind[1].lower()
        return None if name in _QPI_SLIDE else name
    lines = [*text.splitlines()[:2], *directory.text(tiff.PAGE_NAME).splitlines()[:1]]
    return next((name for name in map(other_name, lines) if name), None)


def other_name(name: str) -> str | None:
    """Return the kind of picture that a name stands for, if that is no slide."""
    match = _OTHER_LINE.match(name)
    return match[1].lower() if match else None


def _imagej(text: str, directory: Directory) -> Facts:
    """ImageJ counts pixels a unit in the resolution tags, and names the unit in the text."""
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    um: list[float | None] = [None, None]
    unit_um = _UNITS_UM.get(lines.get("unit", "").strip().lower())
    if unit_um is not None:
        for axis, tag in enumerate((tiff.X_RESOLUTION, tiff.Y_RESOLUTION)):
            value = directory.tags.get(tag)
            if value is not None and not isinstance(value, bytes) and value.size and value[0]:
                um[axis] = unit_um / float(value[0])
    return Facts(um=(um[0], um[1]), um_source="imagej.unit" if um[0] else None)
