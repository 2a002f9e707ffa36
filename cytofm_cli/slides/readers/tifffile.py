"""tifffile: ordinary TIFF behind a URL, or that neither libvips nor OpenSlide decodes right.

Colours in separate planes, Zstandard, JPEG XL and LZMA in OME-TIFF, L*a*b*, YCbCr that is not
JPEG. Picture, levels and resolution are those of `pyramid`; tifffile and imagecodecs decode one
tile or strip at a time, and the last ones are kept, because strips may be large.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import colour, jpeg_check, pyramid, tiff
from cytofm_cli.slides.base import NativeJpeg, SlideInfo, SlideReader, check_box, slide_error
from cytofm_cli.slides.blocks import WHITE, damaged, overview_by_blocks
from cytofm_cli.slides.content import keep_same
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Box, Size

NAME: Final = "tifffile"
_KEPT_BYTES: Final = 64_000_000


class TifffileReader(SlideReader):
    """An ordinary TIFF read through tifffile."""

    def __init__(self, path: str, layout: pyramid.Pyramid) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int, int], NDArray[Any]] = OrderedDict()
        self._file: _File | None = None
        self._planes: dict[int, TifffileReader] = {}
        self._pyramid = layout
        self.info = _info(path, layout)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        directories = self._pyramid.channels[level]
        try:
            pictures = [self._rgb(directory, box) for directory in directories]
        except SlideError:
            raise
        except Exception as error:  # damaged tiles fail anywhere in tifffile and its codecs
            raise damaged(self._path, level, box, error) from error
        if len(pictures) == 1:
            return pictures[0]
        merged = np.zeros((box.h, box.w, 3), np.uint8)
        for band, picture in enumerate(pictures):
            merged[..., band] = picture[..., 0]
        return merged

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`; see `SlideReader.overview`."""
        return overview_by_blocks(self.info, downsample, self.read)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return None: libvips and OpenSlide read the files whose tiles can be copied."""
        return None

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            file, self._file = self._file, None
            planes, self._planes = self._planes, {}
            self._kept.clear()
        if file is not None:
            file.close()
        for reader in planes.values():
            reader.close()

    def _open_plane(self, plane: int) -> TifffileReader:
        with self._lock:
            if plane not in self._planes:
                self._planes[plane] = TifffileReader(self._path, self._pyramid.at_plane(plane))
            return self._planes[plane]

    def _rgb(self, directory: Directory, box: Box) -> NDArray[np.uint8]:
        """Decode a box of one directory; tiles that are left out are white."""
        model = colour.model(directory)
        out = np.full((box.h, box.w, 3), WHITE, np.uint8)
        tile = _tile_px(directory)
        for row in range(box.y // tile.h, -(-(box.y + box.h) // tile.h)):
            for column in range(box.x // tile.w, -(-(box.x + box.w) // tile.w)):
                raw = self._tile(directory, column, row)
                if raw is None:
                    continue
                x, y = column * tile.w - box.x, row * tile.h - box.y
                top, left = max(0, -y), max(0, -x)
                part = raw[top : box.h - y, left : box.w - x]
                place = out[y + top : y + top + part.shape[0], x + left : x + left + part.shape[1]]
                place[:] = colour.to_rgb(part, directory, model)
        return out

    def _tile(self, directory: Directory, column: int, row: int) -> NDArray[Any] | None:
        """Return a tile or strip as (H, W, samples); None where the file leaves it out."""
        n_planes = directory.samples if directory.planar else 1
        index = row * directory.grid.w + column
        per_plane = directory.grid.w * directory.grid.h
        planes = [self._segment(directory, index + p * per_plane) for p in range(n_planes)]
        there = [plane for plane in planes if plane is not None]
        if len(there) < n_planes:
            return None
        return there[0] if n_planes == 1 else np.concatenate(there, axis=2)

    def _segment(self, directory: Directory, index: int) -> NDArray[Any] | None:
        key = (directory.page, -1 if directory.sub is None else directory.sub, index)
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
            if self._file is None:
                self._file = _File(self._path)
            file = self._file
        segment = file.decode(directory, index)
        if segment is not None:
            with self._lock:
                self._kept[key] = segment
                while len(self._kept) > 1 and _n_bytes(self._kept) > _KEPT_BYTES:
                    self._kept.popitem(last=False)
        return segment


class _File:
    """An open TIFF whose tiles are decoded by tifffile."""

    def __init__(self, path: str) -> None:
        import tifffile

        # tifffile logs every odd tag of a file; the error that follows says enough.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        self._handle = tiff.open_file(path)
        try:
            self._tiff: Any = tifffile.TiffFile(self._handle)
        except BaseException:
            self._handle.close()
            raise
        self._pages: dict[tuple[int, int | None], Any] = {}
        self._lock = threading.Lock()

    def decode(self, directory: Directory, index: int) -> NDArray[Any] | None:
        count = int(directory.byte_counts[index])
        if count == 0:
            return None
        page = self._page(directory)
        with self._lock:
            self._handle.seek(int(directory.offsets[index]))
            data = self._handle.read(count)
        if len(data) != count:
            raise ValueError("the file ends in the middle of it")
        if directory.codec == "jpeg":
            jpeg_check.refuse_broken_scan(data)
            if not jpeg_check.is_sound(data, page.jpegtables):
                raise ValueError("its JPEG data are damaged")
        steps = tuple(int(v) for v in directory.array(tiff.YCBCR_SUBSAMPLING)) or (2, 2)
        if colour.model(directory).kind == "ycbcr" and steps != (1, 1):
            return _subsampled(page, data, directory, index, steps)
        segment, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        if segment is None:
            return None
        pixels: NDArray[Any] = segment[0]
        if len(pixels) < _n_rows(directory, index) or pixels.shape[1] != _tile_px(directory).w:
            raise ValueError("its data end in the middle")
        return pixels

    def close(self) -> None:
        self._tiff.close()
        self._handle.close()

    def __del__(self) -> None:
        if hasattr(self, "_tiff"):  # not of a file that could not be opened
            self.close()

    def _page(self, directory: Directory) -> Any:
        key = (directory.page, directory.sub)
        with self._lock:
            if key not in self._pages:
                page = self._tiff.pages[directory.page]
                if directory.sub is not None:
                    page = page.pages[directory.sub]
                self._pages[key] = page.aspage()
            return self._pages[key]


class TifffilePlugin:
    """Opens ordinary TIFF slides."""

    def probe(self, path: str) -> str | None:
        """Say why tifffile should not read `path`; None if it should."""
        layout = pyramid.probe(path)
        if isinstance(layout, str):
            return layout
        codec = layout.channels[0][0].codec
        return f"unknown TIFF compression {codec!r}" if codec.startswith("tiff-") else None

    def open(self, path: str) -> TifffileReader:
        """Open a slide."""
        layout = pyramid.of_file(path)
        if layout is None:
            raise slide_error(path, "is no ordinary TIFF.", "leave --reader at auto.")
        return TifffileReader(path, keep_same(layout, TifffileReader(path, layout).read))


def _info(path: str, layout: pyramid.Pyramid) -> SlideInfo:
    return SlideInfo(
        path=path,
        reader=NAME,
        format=layout.format,
        levels=layout.levels,
        mpp=layout.mpp,
        mpp_source=layout.mpp_source,
        codec=layout.channels[0][0].codec,
        objective=layout.objective,
        n_focal_planes=layout.n_focal_planes,
        focal_plane=layout.focal_plane,
        planes_um=layout.planes_um,
        reads_planes=bool(layout.planes),
        has_icc_profile=tiff.ICC_PROFILE in layout.channels[0][0].tags,
        notes=layout.notes,
    )


def _tile_px(directory: Directory) -> Size:
    """Return the size of a tile, or of a strip."""
    width, height = directory.size_px
    rows = min(directory.number(tiff.ROWS_PER_STRIP, height), height)
    return directory.tile_px or Size(width, rows)


def _n_rows(directory: Directory, index: int) -> int:
    """Return the rows of a tile or strip; the last strip is shorter."""
    height = _tile_px(directory).h
    if directory.tile_px:
        return height
    return min(height, directory.size_px.h - index % directory.grid.h * height)


def _n_bytes(kept: OrderedDict[tuple[int, int, int], NDArray[Any]]) -> int:
    return sum(segment.nbytes for segment in kept.values())


def _subsampled(
    page: Any, data: bytes, directory: Directory, index: int, steps: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Unpack YCbCr whose Cb and Cr are stored once a block of pixels (TIFF 6.0, section 21).

    A block is its Y row by row, then one Cb and one Cr.
    """
    import tifffile

    across, down = steps[:2]
    if directory.number(tiff.PREDICTOR, 1) != 1:
        raise ValueError("subsampled YCbCr with a predictor")
    tile = _tile_px(directory)
    rows = _n_rows(directory, index)
    shape = (-(-rows // down), -(-tile.w // across), down * across + 2)
    unpack = tifffile.TIFF.DECOMPRESSORS[page.compression]
    plain = data if page.compression == 1 else unpack(data, out=int(np.prod(shape)))
    blocks = np.frombuffer(plain, np.uint8)[: np.prod(shape)].reshape(shape)
    luma = blocks[..., :-2].reshape(*shape[:2], down, across).transpose(0, 2, 1, 3)
    chroma = blocks[..., -2:].repeat(down, 0).repeat(across, 1)
    full = np.dstack([luma.reshape(shape[0] * down, shape[1] * across), chroma])
    return np.ascontiguousarray(full[:rows, : tile.w])


PLUGIN = ReaderPlugin(
    make=TifffilePlugin,
    summary="TIFF behind an fsspec URL, with separate planes, Zstandard, L*a*b* or plain YCbCr",
    needs=("tifffile", "imagecodecs"),
    suffixes=(".tif", ".tiff", ".qptiff"),
    turn=30,
    sample="cytofm_cli.testing.samples.slides:tifffile",
)
