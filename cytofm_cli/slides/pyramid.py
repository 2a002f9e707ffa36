"""Find the pyramid of a TIFF slide among its directories, and its facts.

Levels are directories of the same picture at falling size. Labels, macro photographs and
thumbnails in strips never match and are never read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from cytofm_cli.slides import ome, tiff
from cytofm_cli.slides.base import Level, mean_mpp, parse_float, slide_error
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Size

# Sizes of levels are rounded, by some writers up to whole tiles of the level above.
_ROUNDING_PX: Final = 2
_MIN_STEP: Final = 1.2

# Layouts that only OpenSlide knows: overlapping, sparse or moved tiles.
_VENDORS: Final = (
    ("leica", tiff.IMAGE_DESCRIPTION, "http://www.leica-microsystems.com/scn/"),
    ("ventana", tiff.XMP, "iScan"),
    ("ventana", tiff.XMP, "EncodeInfo"),
    ("philips", tiff.SOFTWARE, "Philips"),
    ("trestle", tiff.SOFTWARE, "MedScan"),
    ("argos", tiff.IMAGE_DESCRIPTION, "Argos.Scan.Metadata"),
)


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The levels of a TIFF slide.

    Attributes:
        format: "aperio", "ome-tiff" or "generic-tiff".
        levels: sizes and downsamples, finest first.
        channels: for each level the directories that make its pixels: one, or the first
            three channels of a fluorescence picture.
        mpp: µm/px, or None.
        mpp_source: what `mpp` was read from.
    """

    format: str
    levels: tuple[Level, ...]
    channels: tuple[tuple[Directory, ...], ...]
    mpp: float | None
    mpp_source: str | None
    objective: float | None = None
    n_focal_planes: int = 1
    focal_plane: int = 0
    notes: tuple[str, ...] = field(default=())


def vendor(directories: list[Directory]) -> str | None:
    """Name the scanner format that is a TIFF in its own way; None for an ordinary one."""
    first = directories[0]
    if tiff.NDPI_FORMAT in first.tags:
        return "hamamatsu"
    for directory in directories:
        for name, tag, text in _VENDORS:
            value = directory.tags.get(tag)
            raw = (
                value if isinstance(value, bytes) else value.tobytes() if value is not None else b""
            )
            if text.encode() in raw:
                return name
    return None


def build(path: str, directories: list[Directory]) -> Pyramid:
    """Arrange the directories of a TIFF as a pyramid.

    Raises:
        SlideError: OME-XML that contradicts the file or that is not supported.
    """
    description = directories[0].text(tiff.IMAGE_DESCRIPTION)
    if ome.is_ome(description):
        return _ome_pyramid(path, directories, description)
    levels = _levels(directories, directories[0])
    aperio = description.startswith("Aperio")
    notes = [] if aperio else _page_notes(directories)
    if aperio:
        properties = aperio_properties(description)
        um = parse_float(properties.get("MPP"))
        mpp, note = mean_mpp(um, um)
        source, objective = "aperio.MPP", parse_float(properties.get("AppMag"))
    else:
        mpp, note = mean_mpp(*directories[0].resolution_um())
        source, objective = "tiff.XResolution", None
    return Pyramid(
        format="aperio" if aperio else "generic-tiff",
        levels=_as_levels(levels),
        channels=tuple((directory,) for directory in levels),
        mpp=mpp,
        mpp_source=source if mpp else None,
        objective=objective,
        notes=(*notes, note) if note else tuple(notes),
    )


def _page_notes(directories: list[Directory]) -> list[str]:
    size = directories[0].size_px
    n_same = sum(d.sub is None and d.size_px == size for d in directories)
    if n_same < 2:
        return []
    return [f"The file has {n_same} pages of the same size; only the first is read."]


def aperio_properties(description: str) -> dict[str, str]:
    """Parse `Aperio ... |AppMag = 20|MPP = 0.4990` into its properties."""
    found = re.findall(r"\|\s*([^|=]+?)\s*=\s*([^|]*)", description)
    return {key: value.strip() for key, value in found}


def _levels(directories: list[Directory], base: Directory) -> list[Directory]:
    levels = [base]
    if base.tile_px is None:
        return levels
    candidates = [d for d in directories if d is not base and d.tile_px and _alike(d, base)]
    for directory in sorted(candidates, key=lambda d: -d.size_px.w * d.size_px.h):
        if levels[-1].size_px.w >= _MIN_STEP * directory.size_px.w:
            levels.append(directory)
    return levels


def _alike(directory: Directory, base: Directory) -> bool:
    """Tell whether a directory can be a smaller copy of `base`."""
    w, h = directory.size_px
    if w < 1 or h < 1 or directory.samples != base.samples:
        return False
    if directory.sub is not None and directory.page != base.page:
        return False
    scale = max(base.size_px.w / w, base.size_px.h / h)
    return (
        abs(base.size_px.w / scale - w) <= _ROUNDING_PX
        and abs(base.size_px.h / scale - h) <= _ROUNDING_PX
    )


def _as_levels(directories: list[Directory]) -> tuple[Level, ...]:
    w0, h0 = directories[0].size_px
    return tuple(
        Level(
            size_px=d.size_px,
            downsample=downsample(Size(w0, h0), d.size_px),
            native_tile_px=d.tile_px,
        )
        for d in directories
    )


def downsample(size_px0: Size, size_px: Size) -> float:
    """Return the downsample of a level: the mean of both axes, as OpenSlide has it."""
    return max(1.0, (size_px0.w / size_px.w + size_px0.h / size_px.h) / 2)


def _ome_pyramid(path: str, directories: list[Directory], description: str) -> Pyramid:
    try:
        image = ome.parse(description)
    except ValueError as error:
        raise slide_error(path, f"{error}.", "convert it to one OME-TIFF file.") from error
    if image.pixel_type not in ("uint8", "int8", "bit"):
        raise slide_error(
            path, f"has {image.pixel_type} pixels; only 8-bit ones are read.", "scale it to 8 bits."
        )
    plane = image.size_z // 2
    pages = {d.page: d for d in directories if d.sub is None}
    wanted = [image.pages.get((c, plane, 0)) for c in range(min(3, len(_channels(image))))]
    bases = [pages[page] for page in wanted if page is not None and page in pages]
    if not bases or len(bases) != len(wanted):
        raise slide_error(path, "is truncated: its OME-XML lists planes that are not in it.")
    of_channel = [_levels(_own(directories, base), base) for base in bases]
    n_levels = min(len(levels) for levels in of_channel)
    mpp, note = mean_mpp(*image.um)
    notes = [*_ome_notes(image, plane), *([note] if note else [])]
    return Pyramid(
        format="ome-tiff",
        levels=_as_levels(of_channel[0][:n_levels]),
        channels=tuple(zip(*(levels[:n_levels] for levels in of_channel), strict=True)),
        mpp=mpp,
        mpp_source="ome.PhysicalSizeX" if mpp else None,
        objective=image.objective,
        n_focal_planes=image.size_z,
        focal_plane=plane,
        notes=tuple(notes),
    )


def _channels(image: ome.OmeImage) -> list[int]:
    return sorted({channel for channel, _, _ in image.pages})


def _own(directories: list[Directory], base: Directory) -> list[Directory]:
    """Keep the directories that can be levels of one plane: itself and its SubIFDs.

    A few writers put the levels of a single plane into the main chain instead.
    """
    subs = [d for d in directories if d.page == base.page]
    if len(subs) > 1:
        return subs
    return [d for d in directories if d is base or d.size_px.w < base.size_px.w]


def _ome_notes(image: ome.OmeImage, plane: int) -> list[str]:
    notes = []
    if image.size_z > 1:
        notes.append(f"Of {image.size_z} focal planes the middle one (number {plane}) is read.")
    if image.size_t > 1:
        notes.append(f"Of {image.size_t} points in time the first is read.")
    channels = _channels(image)
    if len(channels) > 1:
        names = [
            image.channel_names[c]
            if c < len(image.channel_names) and image.channel_names[c]
            else str(c)
            for c in channels[:3]
        ]
        colours = ", ".join(
            f"{colour} = {name}"
            for colour, name in zip(("red", "green", "blue"), names, strict=False)
        )
        notes.append(f"Of {len(channels)} channels these are read: {colours}.")
    if image.pixel_type == "int8":
        notes.append("The pixels are signed; negative values are read as 0.")
    return notes
