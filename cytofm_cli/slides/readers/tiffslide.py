"""TiffSlide: slides behind an fsspec URL, and TIFF slides that nothing else reads."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import adopt, pyramid, tiff
from cytofm_cli.slides.base import (
    Level,
    NativeJpeg,
    SlideInfo,
    SlideReader,
    check_box,
    mean_mpp,
    parse_float,
    slide_error,
)
from cytofm_cli.slides.blocks import damaged, on_white, overview_by_blocks
from cytofm_cli.units import Box, Size
from cytofm_cli.urls import check_url, is_url

NAME: Final = "tiffslide"


class TiffSlideReader(SlideReader):
    """A slide read through TiffSlide."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._slide: Any = _open_handle(path)
        try:
            self.info = _info(path, self._slide)
            self._levels = tuple(range(len(self.info.levels)))
            self._adopt()
        except SlideError:
            self.close()
            raise
        except Exception as error:  # damaged files fail anywhere in tifffile
            self.close()
            raise slide_error(path, str(error)) from error

    def _adopt(self) -> None:
        layout = pyramid.of_file(self._path)
        if layout is None:
            return
        why = adopt.refusal(layout, lambda model: model.plain)
        if why:
            raise slide_error(self._path, f"{why}.", "leave --reader at auto.")
        directories = tiff.read_directories(self._path)
        self.info, self._levels = adopt.with_facts(self.info, layout, directories, self.read)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        downsample = self.info.levels[level].downsample
        corner = (_level0_pixel(box.x, downsample), _level0_pixel(box.y, downsample))
        # One lock for all: fsspec files have one position.
        with self._lock:
            if self._slide is None:
                self._slide = _open_handle(self._path)
            try:
                pixels = self._slide.read_region(
                    corner, self._levels[level], (box.w, box.h), as_array=True
                )
            except Exception as error:  # damaged files fail anywhere in tifffile and zarr
                self._slide.close()
                self._slide = None
                raise damaged(self._path, level, box, error) from error
        return _to_rgb(self._path, np.asarray(pixels))

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`; see `SlideReader.overview`."""
        return overview_by_blocks(self.info, downsample, self.read)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return None: remote tiles are not copied."""
        return None

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            slide, self._slide = self._slide, None
            if slide is not None:
                slide.close()


class TiffSlidePlugin:
    """Opens URLs, and whatever tifffile knows."""

    def probe(self, path: str) -> str | None:
        """Say why TiffSlide should not read `path`; None if it should."""
        if "://" in path:
            return None
        try:
            directories = tiff.read_directories(path)
        except SlideError as error:
            return error.message.removeprefix(f"{path}: ")
        maker = pyramid.vendor(directories)
        if maker:
            # Where OpenSlide refuses one, TiffSlide would show what it takes for a plain TIFF.
            return f"a {maker} slide is OpenSlide's to read"
        codec = directories[0].codec
        return f"unknown TIFF compression {codec!r}" if codec.startswith("tiff-") else None

    def open(self, path: str) -> TiffSlideReader:
        """Open a slide."""
        return TiffSlideReader(path)


def _open_handle(path: str) -> Any:
    # tifffile logs every odd tag of a damaged file; the error that follows says enough.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if is_url(path):
        check_url(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tiffslide import TiffSlide

            slide = TiffSlide(path)
            try:
                _ = slide.properties  # parsed, and kept, while its warnings are silenced
            except Exception:
                slide.close()
                raise
            return slide
    except FileNotFoundError as error:
        raise slide_error(path, "no such file.", "check the path.") from error
    except ImportError as error:
        raise slide_error(path, f"{error}.", "install the package that it names.") from error
    except Exception as error:  # damaged files fail anywhere in tifffile and zarr
        raise slide_error(path, str(error)) from error


def _info(path: str, slide: Any) -> SlideInfo:
    properties = dict(slide.properties)
    um = [parse_float(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy"]
    mpp, note = mean_mpp(um[0], um[1])
    compression = getattr(slide.ts_tifffile.pages[0].compression, "name", "unknown").lower()
    return SlideInfo(
        path=path,
        reader=NAME,
        format=str(properties.get("tiffslide.vendor") or "generic-tiff"),
        levels=tuple(_level(slide, properties, level) for level in range(slide.level_count)),
        mpp=mpp,
        mpp_source="tiffslide.mpp-x" if mpp else None,
        codec={"adobe_deflate": "deflate"}.get(compression, compression),
        objective=parse_float(properties.get("tiffslide.objective-power")),
        notes=(note,) if note else (),
    )


def _level(slide: Any, properties: dict[str, Any], level: int) -> Level:
    tile = [properties.get(f"tiffslide.level[{level}].tile-{side}") for side in ("width", "height")]
    native = Size(int(tile[0]), int(tile[1])) if tile[0] and tile[1] else None
    return Level(
        size_px=Size(*slide.level_dimensions[level]),
        downsample=max(1.0, float(slide.level_downsamples[level])),
        native_tile_px=native,
    )


def _level0_pixel(place: int, downsample: float) -> int:
    """Find the level-0 pixel that TiffSlide, which divides and rounds down, takes to `place`."""
    pixel = math.ceil(place * downsample)
    return pixel if int(pixel / downsample) == place else pixel + 1


def _to_rgb(path: str, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        raise slide_error(
            path, f"has {pixels.dtype} pixels; only 8-bit ones are read.", "scale it to 8 bits."
        )
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return on_white(pixels) if pixels.shape[2] == 4 else np.ascontiguousarray(pixels[..., :3])


PLUGIN = ReaderPlugin(
    make=TiffSlidePlugin,
    summary="slides behind an fsspec URL (s3://, gs://, memory://, ...); TIFF as a last resort",
    needs=("tiffslide",),
    suffixes=(".svs", ".tif", ".tiff", ".ndpi", ".scn", ".qptiff"),
    turn=90,
    sample="cytofm_cli.testing.samples.slides:tiffslide",
)
