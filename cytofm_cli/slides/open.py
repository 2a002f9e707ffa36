"""Open a slide with the reader that suits it.

libvips first (ordinary TIFF, Aperio, plain pictures), then OpenSlide (the scanners' own
formats), then readers of other distributions, then TiffSlide (URLs, last resort). What each
one said is kept for the case that none can.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cytofm_cli.errors import CytofmError, SlideError
from cytofm_cli.registry import readers
from cytofm_cli.slides import tiff
from cytofm_cli.slides.base import ReaderPlugin, SlideReader, slide_error

_FIRST: Final = ("vips", "openslide")
_LAST: Final = ("tiffslide",)
_DICOM_MAGIC: Final = (128, b"DICM")
_SERIES_UID: Final = re.compile(rb"\x20\x00\x0e\x00UI(..)([0-9.]+)", re.DOTALL)
_HEAD_BYTES: Final = 65_536
# Formats that no reader here knows, and what to do about them.
_KNOWN_STRANGERS: Final = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file.", "run git lfs pull."),
    (b"BM", "is a BMP picture.", "save it as PNG or TIFF."),
    (b"\0\0\0\x0cjP  ", "is a JPEG 2000 picture.", "convert it to a tiled TIFF."),
    (b"%PDF", "is a PDF document.", "give the slide itself."),
    (b"PK\x03\x04", "is a ZIP archive.", "unpack it first."),
    (b"\x1f\x8b", "is a gzip archive.", "unpack it first."),
    (b"\x89HDF", "is an HDF5 file.", "give the slide that it was made from."),
)
_COMPLETE: Final = "check that the file is complete, or convert it to a pyramidal TIFF."


def open_slide(path: str, *, reader: str = "auto") -> SlideReader:
    """Open a slide.

    Args:
        path: a file, a folder with one DICOM slide, or an fsspec URL.
        reader: name of a reader, or "auto" to choose by probing.

    Raises:
        SlideError: missing, empty, no slide, damaged, or nothing can read it; the message
            holds what each reader said.
        UsageError: no reader has this name.
    """
    path = os.fspath(path)
    if reader != "auto":
        readers.load(reader)  # a wrong name is told first
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    target = path if "://" in path else _local(path)
    names = _order() if reader == "auto" else [reader]
    reasons: dict[str, str] = {}
    last: CytofmError | None = None
    for name in names:
        try:
            plugin: ReaderPlugin = readers.load(name).make()
            refusal = plugin.probe(target) if reader == "auto" else None
            if refusal is None:
                return plugin.open(target)
            reasons[name] = refusal
        except CytofmError as error:
            if reader != "auto" and not isinstance(error, SlideError):
                raise
            last = error
            reasons[name] = error.message.removeprefix(f"{target}: ").removeprefix(f"{path}: ")
    if last is not None and ("://" in target or len(names) == 1):
        raise last
    raise _nobody(path, target, reasons)


def _order() -> list[str]:
    names = readers.names()
    others = [name for name in names if name not in (*_FIRST, *_LAST)]
    return [name for name in (*_FIRST, *others, *_LAST) if name in names]


def _local(path: str) -> str:
    """Check a path and what it holds before any decoder sees it; return the file to open.

    Raises:
        SlideError: nothing there, not a file, empty, or a TIFF that lies about its size.
    """
    try:
        facts = os.stat(path)  # noqa: PTH116 - a str, as given
    except (OSError, ValueError) as error:
        why = "no such file or folder." if isinstance(error, FileNotFoundError) else f"{error}."
        raise slide_error(path, why, "check the path.") from error
    if stat.S_ISDIR(facts.st_mode):
        return _in_folder(path)
    if not stat.S_ISREG(facts.st_mode):
        raise slide_error(path, "is not an ordinary file.")
    if facts.st_size == 0:
        raise slide_error(path, "is empty (0 bytes).", "copy the file again from its source.")
    if tiff.is_tiff(_head(path)):
        _verify(path, facts.st_size)
    return path


def _verify(path: str, size_bytes: int) -> None:
    try:
        directories = tiff.read_directories(path)
    except SlideError:
        return  # the readers say what is wrong, in their own words
    # The offsets of large NDPI files do not fit into their tags; OpenSlide repairs them.
    if tiff.NDPI_FORMAT not in directories[0].tags:
        tiff.verify(path, directories, size_bytes)


def _in_folder(path: str) -> str:
    """Find the DICOM slide that a folder holds."""
    series: dict[bytes, str] = {}
    for file in sorted(Path(path).iterdir()):
        head = _head(str(file)) if file.is_file() else b""
        start, magic = _DICOM_MAGIC
        if head[start : start + len(magic)] == magic:
            found = _SERIES_UID.search(head)
            series.setdefault(found[2] if found else b"", str(file))
    if not series:
        raise slide_error(path, "is a folder without a DICOM slide.", "name the slide file.")
    if len(series) > 1:
        raise slide_error(
            path, f"holds {len(series)} DICOM series.", "name one file of the series you want."
        )
    return next(iter(series.values()))


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as handle:
            return handle.read(_HEAD_BYTES)
    except OSError as error:
        raise slide_error(path, f"cannot be read ({error.strerror}).") from error


def _nobody(path: str, target: str, reasons: dict[str, str]) -> SlideError:
    """Make the error that says why no reader can open `path`."""
    head = b"" if "://" in target else _head(target)
    for magic, what, hint in _KNOWN_STRANGERS:
        if head.startswith(magic):
            return slide_error(path, what, hint)
    if head and _is_text(head[:1024]):
        return slide_error(path, "is a text file, not a slide.", "check what was copied there.")
    tried = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in reasons.items())
    return slide_error(path, f"no reader can open it ({tried}).", _COMPLETE)


def _is_text(head: bytes) -> bool:
    """Tell whether bytes are printable UTF-8 (the last character may be cut off)."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n" for character in text)
