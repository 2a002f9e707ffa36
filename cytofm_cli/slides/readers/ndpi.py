"""Hamamatsu NDPI with several focal planes, of which OpenSlide reads the one at height 0 alone.

Each level of each plane is a page that states its lens and its height (nm); negative lenses are the
macro photograph and the map. tifffile finds the parts of the long JPEG stream of a page by their
restart markers; the last ones that were decoded are kept, because they may be as wide as the slide.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import tiff
from cytofm_cli.slides.base import PlanesError, SlideInfo, mean_mpp, slide_error
from cytofm_cli.slides.foreign import ForeignReader, levels_of, open_with, planes_note, with_notes
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Box, Size

NAME: Final = "ndpi"
_LENS: Final = 65421
_NM_UM: Final = 1e-3
_KEPT_BYTES: Final = 64_000_000


class NdpiPlugin:
    """Opens NDPI slides of several focal planes."""

    def probe(self, path: str) -> str | None:
        """Say why this reader should not read `path`; None if it should."""
        try:
            directories = tiff.read_directories(path)
        except SlideError:
            return "not a TIFF file"
        if tiff.NDPI_FORMAT not in directories[0].tags:
            return "not an NDPI file"
        return None if len(_planes(directories)) > 1 else "has one focal plane"

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        import tifffile

        planes = _planes(tiff.read_directories(path))
        middle = len(planes) // 2
        _refuse_other(path, planes, middle)
        # tifffile logs every odd tag of a file; the error that follows says enough.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        stack = ExitStack()
        file = open_with(path, lambda name: stack.enter_context(tifffile.TiffFile(name)))
        pages = [[each.page for each in planes[height]] for height in sorted(planes)]
        return ForeignReader(_info(path, planes, middle), _Pages(file, pages).read, stack.close)


def _planes(directories: list[Directory]) -> dict[int, list[Directory]]:
    """Return the levels of each focal plane, finest first, by its height."""
    planes: dict[int, list[Directory]] = {}
    for directory in directories:
        value = directory.tags.get(_LENS)
        lens = -1.0 if value is None or isinstance(value, bytes) else float(value[0])
        if directory.sub is None and lens > 0:
            planes.setdefault(_height_nm(directory), []).append(directory)
    for levels in planes.values():
        levels.sort(key=lambda each: -each.size_px.w)
    return planes


def _height_nm(directory: Directory) -> int:
    """Return the height of a page: a signed number that some writers declare unsigned.

    In nm, as opentile and wsidicomizer read it; tifffile calls it ZOffsetFromSlideCenter.
    """
    height = directory.number(tiff.NDPI_Z_OFFSET)
    return height - 2**32 if height >= 2**31 else height


def _refuse_other(path: str, planes: dict[int, list[Directory]], middle: int) -> None:
    """Refuse planes of different sizes, or with other levels than the middle one."""
    heights = sorted(planes)
    expected = [each.size_px for each in planes[heights[middle]]]
    for number, height in enumerate(heights):
        sizes = [each.size_px for each in planes[height]]
        if sizes != expected:
            (w, h), (w0, h0) = sizes[0], expected[0]
            raise PlanesError(
                f"{path}: its focal planes differ in size: plane {number} is {w} x {h} px with "
                f"{len(sizes)} levels, plane {middle} {w0} x {h0} px with {len(expected)}.",
                hint="copy the file again, or read the plane at height 0 alone: --reader openslide",
            )


def _info(path: str, planes: dict[int, list[Directory]], middle: int) -> SlideInfo:
    heights = sorted(planes)
    pages = planes[heights[middle]]
    levels, places = levels_of(each.size_px for each in pages)
    if len(places) < len(pages):
        raise slide_error(path, "its levels do not fall, or differ in shape.")
    mpp, note = mean_mpp(*pages[0].resolution_um())
    lens = pages[0].tags[_LENS]
    info = SlideInfo(
        path=path,
        reader=NAME,
        format="hamamatsu",
        levels=levels,
        mpp=mpp,
        mpp_source="tiff.XResolution" if mpp else None,
        codec=pages[0].codec,
        objective=None if isinstance(lens, bytes) else float(lens[0]),
        n_focal_planes=len(heights),
        focal_plane=middle,
        planes_um=tuple(height * _NM_UM for height in heights),
        reads_planes=True,
    )
    return with_notes(info, (note, planes_note(len(heights), middle)))


class _Pages:
    """The pages of a file, one a plane and level, decoded part by part."""

    def __init__(self, file: Any, pages: list[list[int]]) -> None:
        self._file, self._pages = file, pages
        self._kept: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._n_bytes = 0

    def read(self, level: int, box: Box, plane: int) -> NDArray[np.uint8]:
        """Return a box of a level; called by one thread at a time."""
        number = self._pages[plane][level]
        page = self._file.pages[number].aspage()
        size = Size(*page.shape[1::-1])
        h, w = page.chunks[:2]
        across = -(-size.w // w)
        out = np.empty((box.h, box.w, 3), np.uint8)
        for row in range(box.y // h, -(-(box.y + box.h) // h)):
            for column in range(box.x // w, -(-(box.x + box.w) // w)):
                part = self._part(page, number, row * across + column)
                x, y = column * w - box.x, row * h - box.y
                inside = part[max(0, -y) : box.h - y, max(0, -x) : box.w - x]
                top, left = max(0, y), max(0, x)
                out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return out

    def _part(self, page: Any, number: int, index: int) -> NDArray[np.uint8]:
        key = (number, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        self._file.filehandle.seek(offset)
        data = self._file.filehandle.read(count)
        segment, _, _ = page.decode(data, index, jpegheader=page.jpegheader)
        if segment is None or len(data) != count:
            raise ValueError("a part of it is missing")
        part: NDArray[np.uint8] = segment[0]
        self._kept[key] = part
        while (
            len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > _KEPT_BYTES
        ):
            self._kept.popitem(last=False)
        return part


PLUGIN = ReaderPlugin(
    make=NdpiPlugin,
    summary="NDPI with several focal planes",
    needs=("tifffile", "imagecodecs"),
    suffixes=(".ndpi",),
    turn=15,
    only=True,
    sample="cytofm_cli.testing.samples.slides:ndpi",
)
