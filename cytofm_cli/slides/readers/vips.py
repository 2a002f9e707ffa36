"""libvips: tiled TIFF and Aperio SVS by the direct path; fields of view as plain pictures.

One `Region` a thread and level fetches pixels that equal OpenSlide's at a fraction of its
CPU time. Memory: two and a half rows of tiles of the level that is read. Pictures that
cannot be read at random places (JPEG, PNG, TIFF in strips) are unpacked once, at the first
`read`: in memory below 100 MB, beyond that into a temporary file under TMPDIR that is gone
when the slide is closed; `overview` streams them and unpacks nothing.

Pixels are as stored: neither EXIF orientation nor a colour profile is applied. Alpha is laid
on white, grey becomes RGB, CMYK is converted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import DiskFullError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import colour, native_jpeg, pyramid, tiff
from cytofm_cli.slides.base import (
    Level,
    NativeJpeg,
    SlideInfo,
    SlideReader,
    check_box,
    finest_level_for,
    mean_mpp,
    overview_size,
    slide_error,
)
from cytofm_cli.slides.blocks import damaged, overview_by_blocks
from cytofm_cli.slides.content import keep_same
from cytofm_cli.slides.tile_check import CheckedLevels
from cytofm_cli.slides.vips_bands import merge, to_rgb
from cytofm_cli.units import Box, Size
from cytofm_cli.work.budget import refuse_size

_log = logging.getLogger(__name__)

NAME: Final = "vips"
# What libvips decodes in a TIFF; the rest goes to OpenSlide and TiffSlide. JPEG 2000 is left
# to OpenSlide, which knows the two flavours that Aperio writes.
_CODECS: Final = ("jpeg", "none", "lzw", "deflate", "packbits", "webp", "ccitt", "old-jpeg")
_PLAIN: Final = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"RIFF", "webp"),
    (b"P5", "ppm"),
    (b"P6", "ppm"),
)
# Unlike "error", this level also stops at what libtiff calls a warning: tiles that it cannot
# decode would come back black.
# A picture without tiles is unpacked as a whole, into memory or a temporary file.
_MOST_UNPACKED: Final = 100
_FREE_BYTES: Final = 1 << 30
_STRICT_TIFF: Final = "warning"
# For libjpeg damaged data are a warning as well: the rest of the picture would come back grey.
_STRICT_PLAIN: Final = {"jpeg": "warning"}

Load = Callable[[int, bool], Any]


@lru_cache(maxsize=1)
def _vips() -> Any:
    """Import pyvips, quiet and without its cache of open files."""
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)
    import pyvips

    # The cache would keep files open after `close`, and hand out a picture that failed.
    pyvips.cache_set_max(0)
    return pyvips


class VipsReader(SlideReader):
    """A slide read through libvips."""

    def __init__(self, info: SlideInfo, load: Load, channels: pyramid.Pyramid | None) -> None:
        self.info = info
        self._load = load
        self._pyramid = channels
        self._lock = threading.Lock()
        self._planes: dict[int, VipsReader] = {}
        self._images: dict[int, Any] = {}
        levels = channels.channels if channels else ((),) * len(info.levels)
        self._checks = CheckedLevels(info.path, levels)
        self._local = threading.local()

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        # libvips decodes some damage silently.
        self._checks.refuse_broken(level, box)
        pyvips = _vips()
        try:
            buffer = self._region(level).fetch(*box)
        except pyvips.Error as error:
            self._forget(level)
            raise _translate(self.info.path, error, level, box) from error
        return np.frombuffer(buffer, np.uint8).reshape(box.h, box.w, 3)

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`; see `SlideReader.overview`.

        libvips shrinks on all cores: whole factors by means, the rest linearly.
        """
        size = overview_size(self.info, downsample)
        level = finest_level_for(self.info.levels, downsample)
        pyvips = _vips()
        try:
            image = self._load(level, True)
            small = image.resize(
                size.w / image.width, vscale=size.h / image.height, kernel="linear"
            )
            small = small.gravity("north-west", size.w, size.h, extend="copy")
            return np.frombuffer(small.write_to_memory(), np.uint8).reshape(size.h, size.w, 3)
        except pyvips.Error as error:
            if self._pyramid is None:
                raise _translate(self.info.path, error) from error
            _log.info("%s: reading the overview block by block.", self.info.path)
        return overview_by_blocks(self.info, downsample, self.read)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return the JPEG tiles of a level; see `SlideReader.native_jpeg`."""
        if self._pyramid is None or not 0 <= level < len(self.info.levels):
            return None
        directories = self._pyramid.channels[level]
        if len(directories) != 1:
            return None
        return native_jpeg.open_tiles(self.info.path, directories[0])

    def _open_plane(self, plane: int) -> VipsReader:
        assert self._pyramid is not None  # a picture without directories has one plane
        with self._lock:
            if plane not in self._planes:
                self._planes[plane] = _of_pyramid(self.info.path, self._pyramid.at_plane(plane))
            return self._planes[plane]

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            planes, self._planes = self._planes, {}
            self._images.clear()
            self._checks.clear()
            self._local = threading.local()
        for reader in planes.values():
            reader.close()

    def _region(self, level: int) -> Any:
        image = self._images.get(level)
        if image is None:
            with self._lock:
                image = self._images.get(level)
                if image is None:
                    image = self._images[level] = self._load(level, False)
        mine = self._local.__dict__.setdefault("regions", {})
        known = mine.get(level)
        if known is None or known[0] is not image:
            known = mine[level] = (image, _vips().Region.new(image))
        return known[1]

    def _forget(self, level: int) -> None:
        """Drop what may have gone bad with a damaged tile; the next read opens it again."""
        with self._lock:
            self._images.pop(level, None)


class VipsPlugin:
    """Opens ordinary TIFF slides and plain pictures."""

    def probe(self, path: str) -> str | None:
        """Say why libvips should not read `path`; None if it should."""
        if "://" in path:
            return "reads local files only"
        if Path(path).suffix.lower() == ".mrxs":
            return "a MIRAX slide, not the picture that it begins with"
        head = _head(path)
        if not tiff.is_tiff(head):
            return None if _plain_format(head) else "not a TIFF, JPEG, PNG, WebP or PPM file"
        layout = pyramid.probe(path)
        if isinstance(layout, str):
            return layout
        used = [d for level in layout.channels for d in level]
        return next((why for why in map(_unfit, used) if why), None)

    def open(self, path: str) -> VipsReader:
        """Open a slide."""
        pyvips = _vips()
        try:
            return _open_tiff(path) if tiff.is_tiff(_head(path)) else _open_plain(path)
        except pyvips.Error as error:
            raise _translate(path, error) from error


def _unfit(directory: tiff.Directory) -> str | None:
    """Say what libvips cannot do with a directory, or would do wrong."""
    if directory.codec not in _CODECS:
        return f"cannot decode TIFF compression {directory.codec!r}"
    if directory.tile_px and directory.byte_counts.size and not directory.byte_counts.all():
        return "leaves out tiles, which libvips takes for damage"
    if directory.planar:
        return "keeps its colours in separate planes"
    kind = colour.model(directory).kind
    if kind in ("ycbcr", "lab"):
        return f"does not convert {kind} pixels"
    return None


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as handle:
            return handle.read(16)
    except OSError as error:
        raise slide_error(path, f"cannot be read ({error.strerror}).") from error


def _plain_format(head: bytes) -> str | None:
    return next((name for magic, name in _PLAIN if head.startswith(magic)), None)


def _open_tiff(path: str) -> VipsReader:
    layout = pyramid.of_file(path)
    if layout is None:
        raise slide_error(path, "a TIFF with a layout of its own.", "leave --reader at auto.")
    trial = VipsReader(_tiff_info(path, layout), partial(_load_level, path, layout), layout)
    return _of_pyramid(path, keep_same(layout, trial.read))


def _of_pyramid(path: str, layout: pyramid.Pyramid) -> VipsReader:
    load = partial(_load_level, path, layout)
    load(0, True)  # fails here rather than at the first read
    return VipsReader(_tiff_info(path, layout), load, layout)


def _load_level(path: str, layout: pyramid.Pyramid, level: int, sequential: bool) -> Any:
    directories = layout.channels[level]
    images = [_load_directory(path, each, sequential) for each in directories]
    if len(images) > 1:
        return merge(path, images)
    model = colour.model(directories[0])
    # libvips unfolds a palette: one sample becomes as many bands as it needs.
    n_colour = None if model.kind == "palette" else model.n_colour
    return to_rgb(path, images[0], n_colour, has_alpha=model.alpha != "none")


def _tiff_info(path: str, layout: pyramid.Pyramid) -> SlideInfo:
    first = layout.channels[0][0]
    orientation = _orientation_note(first.number(tiff.ORIENTATION, 1))
    return SlideInfo(
        path=path,
        reader=NAME,
        format=layout.format,
        levels=layout.levels,
        mpp=layout.mpp,
        mpp_source=layout.mpp_source,
        codec=first.codec,
        objective=layout.objective,
        n_focal_planes=layout.n_focal_planes,
        focal_plane=layout.focal_plane,
        planes_um=layout.planes_um,
        reads_planes=bool(layout.planes),
        has_icc_profile=tiff.ICC_PROFILE in first.tags,
        notes=layout.notes + orientation,
    )


def _load_directory(path: str, directory: tiff.Directory, sequential: bool) -> Any:
    options: dict[str, Any] = {"page": directory.page, "fail_on": _STRICT_TIFF}
    if directory.sub is not None:
        options["subifd"] = directory.sub
    access = "sequential" if sequential else "random"
    image = _vips().Image.tiffload(path, access=access, **options)
    if (image.width, image.height) != tuple(directory.size_px):
        raise slide_error(path, "its directories contradict each other.")
    return image


def _open_plain(path: str) -> VipsReader:
    kind = _plain_format(_head(path)) or "unknown"
    strict = _STRICT_PLAIN.get(kind, "truncated")

    def load(_level: int, sequential: bool) -> Any:
        access = "sequential" if sequential else "random"
        image = _vips().Image.new_from_file(path, access=access, fail_on=strict)
        return to_rgb(path, image)

    image = _vips().Image.new_from_file(path, access="sequential")
    fields = image.get_fields()
    size = Size(image.width, image.height)
    n_bytes = os.stat(path).st_size  # noqa: PTH116
    if size.w * size.h > n_bytes * tiff.MAX_PX_PER_BYTE.get(kind, size.w * size.h):
        raise slide_error(
            path,
            f"claims {size.w} x {size.h} px but has only {n_bytes} bytes.",
            "copy the file again from its source.",
        )
    try:
        stated = size.w * size.h * image.bands
        refuse_size(stated, n_bytes, ratio=_MOST_UNPACKED, free=_FREE_BYTES)
    except ValueError as error:
        raise slide_error(path, f"{error}.", "is it a picture of a slide?") from error
    to_rgb(path, image)
    # libvips counts pixels a millimetre; files without a resolution are given 1.
    mpp, note = (None, None) if image.xres == 1 else mean_mpp(1e3 / image.xres, 1e3 / image.yres)
    orientation = image.get("orientation") if "orientation" in fields else 1
    info = SlideInfo(
        path=path,
        reader=NAME,
        format=kind,
        levels=(Level(size_px=size, downsample=1.0),),
        mpp=mpp,
        mpp_source=f"{kind}.density" if mpp else None,
        codec="none" if kind == "ppm" else kind,
        has_icc_profile="icc-profile-data" in fields,
        notes=((note,) if note else ()) + _orientation_note(orientation),
    )
    return VipsReader(info, load, None)


def _orientation_note(orientation: int) -> tuple[str, ...]:
    if orientation in (0, 1):
        return ()
    return (f"Orientation {orientation} of the file is not applied: pixels are as stored.",)


def _translate(path: str, error: Any, level: int = 0, box: Box | None = None) -> Exception:
    """Turn libvips' list of messages into one line: the most telling one."""
    lines = [line.strip().replace(f"{path}: ", "") for line in str(error.detail).splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line))
    why = (lines[-1] if lines else error.message)[:200]
    if any("No space left on device" in line for line in lines):
        full = DiskFullError(
            f"{path}: no room to unpack it in the folder for temporary files.",
            hint="set TMPDIR to a disk with more space.",
        )
        full.of_all_slides = False  # others need less room, or none
        return full
    return damaged(path, level, box, why) if box else slide_error(path, why)


PLUGIN = ReaderPlugin(
    make=VipsPlugin,
    summary="tiled TIFF and Aperio SVS (fast), OME-TIFF, and plain JPEG, PNG, TIFF, WebP, PPM",
    needs=("pyvips",),
    suffixes=(".svs", ".tif", ".tiff", ".qptiff", ".jpg", ".jpeg", ".png"),
    turn=10,
    sample="cytofm_cli.testing.samples.slides:vips",
)
