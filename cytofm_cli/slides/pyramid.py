"""The pyramid of an ordinary TIFF slide and its facts, whichever reader decodes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import colour, descriptions, ome, pictures, tiff
from cytofm_cli.slides.base import SCALE_TOLERANCE, Level, mean_mpp, slide_error
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import UM_PX_AT_1X, Size, is_plausible_mpp

# Layouts that only OpenSlide knows: overlapping, sparse or moved tiles.
_VENDORS: Final = (
    ("leica", tiff.IMAGE_DESCRIPTION, "http://www.leica-microsystems.com/scn/"),
    ("ventana", tiff.XMP, "iScan"),
    ("ventana", tiff.XMP, "EncodeInfo"),
    ("philips", tiff.SOFTWARE, "Philips"),
    ("trestle", tiff.SOFTWARE, "MedScan"),
    ("argos", tiff.IMAGE_DESCRIPTION, "Argos.Scan.Metadata"),
)
# Cameras and relay lenses make the pixel of an objective finer or coarser, hardly twice.
_UNUSUAL: Final = 1.7


# For each level the directories that make its pixels.
Channels = tuple[tuple[Directory, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The levels of a TIFF slide.

    Attributes:
        format: "aperio", "motic", "ome-tiff" or "generic-tiff".
        levels: sizes and downsamples, finest first.
        channels: for each level the directories that make its pixels: one, or the first
            three channels of a fluorescence picture.
        mpp: µm/px, or None.
        mpp_source: what `mpp` was read from.
        planes: `channels` of each focal plane; empty where there is one plane.
        planes_um: height of each focal plane, µm, or None.
    """

    format: str
    levels: tuple[Level, ...]
    channels: Channels
    mpp: float | None
    mpp_source: str | None
    objective: float | None = None
    n_focal_planes: int = 1
    focal_plane: int = 0
    planes: tuple[Channels, ...] = ()
    planes_um: tuple[float, ...] | None = None
    notes: tuple[str, ...] = field(default=())

    def at_plane(self, plane: int) -> Pyramid:
        """Return the same levels at another focal plane."""
        return replace(self, channels=self.planes[plane], focal_plane=plane)

    def only(self, levels: Sequence[int]) -> Pyramid:
        """Return the pyramid with some of its levels."""
        return replace(
            self,
            levels=tuple(self.levels[i] for i in levels),
            channels=tuple(self.channels[i] for i in levels),
            planes=tuple(tuple(plane[i] for i in levels) for plane in self.planes),
        )


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
    """Arrange the directories of an ordinary TIFF as a pyramid: the one place that says which
    picture is the slide, its levels, resolution and colour. Decoders only decode.

    Raises:
        SlideError: only a label or thumbnail, OME-XML that contradicts the file, or pixels that
            cannot be shown as 8-bit RGB.
    """
    description = directories[0].text(tiff.IMAGE_DESCRIPTION)
    is_ome = ome.is_ome(description)
    pyramid = _ome_pyramid(path, directories, description) if is_ome else _plain(path, directories)
    base = pyramid.channels[0][0]
    try:
        model = colour.model(base)
        for directory in (d for level in pyramid.channels for d in level):
            if colour.model(directory).kind != model.kind:
                raise ValueError("has levels of different colour models")
    except ValueError as error:
        hint = "scale it to 8 bits." if "8-bit" in str(error) else "convert it to 8-bit RGB."
        raise slide_error(path, f"{error}.", hint) from error
    return replace(pyramid, notes=(*pyramid.notes, *_doubts(pyramid, base), *colour.notes(base)))


def _doubts(pyramid: Pyramid, base: Directory) -> list[str]:
    """Say where a file contradicts the resolution that is taken from it."""
    if pyramid.mpp is None:
        return []
    doubts = []
    by_tags, _ = mean_mpp(*base.resolution_um())
    if by_tags is not None and abs(by_tags / pyramid.mpp - 1) > SCALE_TOLERANCE:
        doubts.append(
            f"The file states {pyramid.mpp:.4g} µm/px ({pyramid.mpp_source}) and {by_tags:.4g} "
            "(tiff.XResolution); the first is taken."
        )
    usual = UM_PX_AT_1X / pyramid.objective if pyramid.objective else pyramid.mpp
    if not 1 / _UNUSUAL < pyramid.mpp / usual < _UNUSUAL:
        doubts.append(
            f"The file states {pyramid.mpp:.4g} µm/px ({pyramid.mpp_source}) and an objective of "
            f"{pyramid.objective:g}×, which has about {usual:.4g}; µm/px is taken."
        )
    return doubts


def of_file(path: str) -> Pyramid | None:
    """Return the pyramid of an ordinary TIFF; None for any other file.

    Raises:
        SlideError: see `build` and `tiff.verify`.
    """
    if "://" in path:
        return _of_file(path, -1)
    try:
        return _of_file(path, os.stat(path).st_mtime_ns)  # noqa: PTH116 - a str, as given
    except OSError:
        return None


def probe(path: str) -> Pyramid | str:
    """Return the pyramid of an ordinary TIFF, or say why it has none."""
    try:
        layout = of_file(path)
        maker = None if layout else vendor(tiff.read_directories(path))
    except SlideError as error:
        return error.message.removeprefix(f"{path}: ")
    return layout or f"a {maker} slide has a layout of its own"


@lru_cache(maxsize=4)  # asked by the check of the file, the probes and the reader
def _of_file(path: str, _mtime_ns: int) -> Pyramid | None:
    try:
        directories = tiff.read_directories(path)
        with tiff.open_file(path) as handle:
            size_bytes = handle.seek(0, os.SEEK_END)
    except SlideError:
        return None
    if vendor(directories):
        return None
    pyramid = build(path, directories)
    planes = pyramid.planes or (pyramid.channels,)
    tiff.verify(path, [d for plane in planes for level in plane for d in level], size_bytes)
    return pyramid


def _plain(path: str, directories: list[Directory]) -> Pyramid:
    slide = pictures.find_slide(path, directories)
    base = slide.levels[0]
    facts = descriptions.read(base)
    stated = facts.um_source is not None or facts.maker == "aperio"
    um, source = (
        (facts.um, facts.um_source) if stated else (base.resolution_um(), "tiff.XResolution")
    )
    mpp, note = mean_mpp(*um)
    notes = list(slide.notes) + ([note] if note else [])
    if facts.reduced_from is not None:
        notes.append(
            f"The file is a copy of {facts.reduced_from.w} x {facts.reduced_from.h} px at "
            f"{base.size_px.w} x {base.size_px.h} px: µm/px and objective are the copy's."
        )
    return Pyramid(
        format=facts.maker or "generic-tiff",
        levels=_as_levels(slide.levels),
        channels=tuple((directory,) for directory in slide.levels),
        mpp=mpp,
        mpp_source=source if mpp else None,
        objective=facts.objective,
        notes=tuple(notes),
    )


def _as_levels(directories: Sequence[Directory]) -> tuple[Level, ...]:
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
        images = ome.parse(description)
    except ValueError as error:
        raise slide_error(path, f"{error}.", "convert it to one OME-TIFF file.") from error
    pages = {d.page: d for d in directories if d.sub is None}
    owned = {page for image in images for page in image.pages.values()}
    free = [d for d in directories if d.page not in owned]
    image = _ome_slide(path, images, pages, directories, free)
    middle = image.size_z // 2
    planes = _ome_planes(path, image, pages, directories, free)
    levels = [channels[0] for channels in planes[middle]]
    mpp, note = mean_mpp(*image.um)
    notes = [*_ome_notes(image, images), *([note] if note else [])]
    return Pyramid(
        format="ome-tiff",
        levels=_as_levels(levels),
        channels=planes[middle],
        mpp=mpp,
        mpp_source="ome.PhysicalSizeX" if mpp else None,
        objective=image.objective,
        n_focal_planes=image.size_z,
        focal_plane=middle,
        planes=planes if image.size_z > 1 else (),
        planes_um=image.planes_um,
        notes=tuple(notes),
    )


def _ome_slide(
    path: str,
    images: Sequence[ome.OmeImage],
    pages: dict[int, Directory],
    directories: list[Directory],
    free: list[Directory],
) -> ome.OmeImage:
    """Choose the Image that is the slide.

    Levels are the SubIFDs of its pages, or pages of the main chain that no Image owns (a few
    writers put them there); pages of other Images never are.
    """
    named = [image for image in images if not descriptions.other_name(image.name)]
    if not named:
        names = " and the ".join(sorted({image.name.lower() for image in images}))
        raise slide_error(path, f"holds only the {names} of a slide.", "copy the slide itself.")
    choices: list[tuple[ome.OmeImage, list[Directory]]] = []
    for image in named:
        of_channel = _ome_levels(image, image.size_z // 2, pages, directories, free)
        if image.n_files == 1 and of_channel is not None:
            choices.append((image, of_channel[0]))
    if not choices and any(image.n_files > 1 for image in named):
        raise slide_error(
            path,
            f"its planes are spread over {max(i.n_files for i in named)} files.",
            "convert it to one OME-TIFF file.",
        )
    if not choices:
        raise slide_error(path, "is truncated: its OME-XML lists planes that are not in it.")
    has_scale = [any(map(is_plausible_mpp, image.um)) for image, _ in choices]
    return choices[pictures.choose([levels for _, levels in choices], has_scale)][0]


def _ome_levels(
    image: ome.OmeImage,
    z: int,
    pages: dict[int, Directory],
    directories: list[Directory],
    free: list[Directory],
) -> list[list[Directory]] | None:
    """Return the levels of each channel shown of one focal plane; None if it is not there."""
    wanted = [image.pages.get((c, z, 0)) for c in _shown(image)]
    bases = [pages[page] for page in wanted if page is not None and page in pages]
    if not bases or len(bases) < len(wanted):
        return None
    of_channel = [
        pictures.levels_of(base, [d for d in directories if d.page == base.page]) for base in bases
    ]
    if len(bases) == 1 and len(of_channel[0]) == 1:
        of_channel = [pictures.levels_of(bases[0], [bases[0], *_free_of(free, z, image.size_z)])]
    return of_channel


def _free_of(free: list[Directory], z: int, n_z: int) -> list[Directory]:
    """Return which pages that no Image owns belong to a focal plane: one of each size."""
    if n_z == 1:
        return free
    of_size: dict[Size, list[Directory]] = {}
    for directory in free:
        of_size.setdefault(directory.size_px, []).append(directory)
    return [same[z] for same in of_size.values() if len(same) == n_z]


def _ome_planes(
    path: str,
    image: ome.OmeImage,
    pages: dict[int, Directory],
    directories: list[Directory],
    free: list[Directory],
) -> tuple[Channels, ...]:
    """Return the levels and channels of every focal plane; all have the same levels.

    Raises:
        SlideError: a plane is missing, or of another size.
    """
    planes = []
    for z in range(image.size_z):
        of_channel = _ome_levels(image, z, pages, directories, free)
        if of_channel is None:
            raise slide_error(path, f"focal plane {z} of {image.size_z} is not in the file.")
        planes.append(of_channel)
    first = planes[image.size_z // 2][0]
    n_levels = min(len(levels) for of_channel in planes for levels in of_channel)
    for z, of_channel in enumerate(planes):
        for levels in of_channel:
            size, expected = levels[0].size_px, first[0].size_px
            if size != expected:
                raise slide_error(
                    path,
                    f"its focal planes differ in size: plane {z} is {size.w} x {size.h} px, "
                    f"plane {image.size_z // 2} is {expected.w} x {expected.h} px.",
                    "write the planes again, all of one size.",
                )
            same = [a.size_px == b.size_px for a, b in zip(levels, first, strict=False)]
            n_levels = min(n_levels, [*same, False].index(False))
    return tuple(
        tuple(zip(*(levels[:n_levels] for levels in of_channel), strict=True))
        for of_channel in planes
    )


def _shown(image: ome.OmeImage) -> list[int]:
    """Return the channels shown as red, green and blue: those called so, else the first three."""
    channels = sorted({channel for channel, _, _ in image.pages})
    names = [name.strip().lower() for name in image.channel_names]
    for wanted in (("red", "green", "blue"), ("r", "g", "b")):
        if set(wanted) <= set(names):
            return [names.index(name) for name in wanted]
    return channels[:3]


def _ome_notes(image: ome.OmeImage, images: Sequence[ome.OmeImage]) -> list[str]:
    notes = []
    if len(images) > 1:
        index = images.index(image)
        name = f" ({image.name!r})" if image.name else ""
        notes.append(f"Of {len(images)} pictures in the file, Image {index}{name} is read.")
    if image.size_z > 1:
        plane = image.size_z // 2
        notes.append(
            f"It has {image.size_z} focal planes; where none is chosen the middle one (number "
            f"{plane}) is read."
        )
    if image.size_t > 1:
        notes.append(f"Of {image.size_t} points in time the first is read.")
    n_channels = len({channel for channel, _, _ in image.pages})
    if n_channels > 1:
        names = [
            image.channel_names[c]
            if c < len(image.channel_names) and image.channel_names[c]
            else str(c)
            for c in _shown(image)
        ]
        colours = ", ".join(
            f"{band} = {name}" for band, name in zip(("red", "green", "blue"), names, strict=False)
        )
        notes.append(f"Of {n_channels} channels these are read: {colours}.")
    return notes
