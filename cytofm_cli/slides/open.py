"""Open a slide with the reader that suits it.

Each reader says when its turn is: libvips first (ordinary TIFF, Aperio, plain pictures), then
OpenSlide (the scanners' own formats), then tifffile (TIFF that neither decodes right), then
readers of others, unless they say otherwise, then TiffSlide (URLs). What each one said is kept
for the case that none can.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cytofm_cli.errors import CytofmError, MissingPackageError, SlideError
from cytofm_cli.named_files import absent
from cytofm_cli.registry import readers
from cytofm_cli.slides import dicom, ngff, plane_files, pyramid, shells, tiff
from cytofm_cli.slides.base import (
    DAMAGED_HINT,
    PlanesError,
    ReaderOpener,
    SlideReader,
    slide_error,
)
from cytofm_cli.slides.folders import slide_suffixes
from cytofm_cli.urls import check_url, is_url

_HEAD_BYTES: Final = 4096
_WHOLE_SERIES: Final = "copy all files of its series into one folder."
_COMPLETE: Final = "check that the file is complete, or convert it to a pyramidal TIFF."


def open_slide(path: str, *, reader: str = "auto") -> SlideReader:
    """Open a slide.

    Args:
        path: a file, a folder with one DICOM slide or with the focal planes of one slide (see
            `plane_files`), or an fsspec URL.
        reader: name of a reader, or "auto" to choose by probing.

    Raises:
        SlideError: missing, empty, no slide, damaged, a URL that is not opened (`cytofm_cli.urls`),
            or nothing can read it; the message holds what each reader said.
        UsageError: no reader has this name.
    """
    path = os.fspath(path)
    if reader != "auto":
        readers.load(reader)  # a wrong name is told first
    if is_url(path):
        check_url(path)
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    if "://" not in path and Path(path).is_dir():
        stack = plane_files.find(path, slide_suffixes())
        if stack is not None:
            return plane_files.open_planes(stack, lambda file: open_slide(file, reader=reader))
    target = path if "://" in path else _local(path)
    names = _order(target) if reader == "auto" else [reader]
    reasons: dict[str, str] = {}
    failed: list[CytofmError] = []
    for name in names:
        try:
            refusal = _refusal(name, target) if reader == "auto" else None
            if refusal is None:
                opener: ReaderOpener = readers.load(name).make()
                return opener.open(target)
            reasons[name] = refusal
        except PlanesError:
            raise
        except CytofmError as error:
            if reader != "auto" and not isinstance(error, SlideError):
                raise
            failed.append(error)
            reasons[name] = error.message.removeprefix(f"{target}: ").removeprefix(f"{path}: ")
        except UnicodeEncodeError:
            reasons[name] = "takes no path that is no UTF-8"
    if failed and ("://" in target or reader != "auto"):
        raise failed[-1]
    raise _nobody(path, target, reasons, failed)


def _refusal(name: str, target: str) -> str | None:
    """Return why a reader does not want a file.

    One that is asked about its own suffixes alone looks at the file without its package, which
    is missed only where it is wanted.
    """
    plugin = readers.find(name)
    opener: ReaderOpener = (plugin if plugin.only else readers.load(name)).make()
    return opener.probe(target)


def _order(path: str) -> list[str]:
    """Return the readers that are asked about a file, in their order."""
    plugins = readers.usable()
    suffix = os.path.splitext(path.rstrip("/"))[1].lower()
    own = "://" not in path and suffix in shells.OWN
    asked = [
        name
        for name, plugin in plugins.items()
        if suffix in plugin.suffixes or not (own or plugin.only)
    ]
    return sorted(asked, key=lambda name: (plugins[name].turn, name))


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
        raise slide_error(path, f"{absent(Path(path))}.", "give a file.")
    if facts.st_size == 0:
        raise slide_error(path, "is empty (0 bytes).", "copy the file again from its source.")
    head = _head(path)
    shells.refuse(path, head)
    if tiff.is_tiff(head):
        _verify(path, facts.st_size)
    elif head[128:132] == b"DICM":
        _refuse_no_level(path)
    return path


def _verify(path: str, size_bytes: int) -> None:
    """Refuse a TIFF that lies, or of which no reader may show what it holds."""
    try:
        directories = tiff.read_directories(path)
    except tiff.TooLargeError:
        raise
    except SlideError:
        return  # the readers say what is wrong, in their own words
    maker = pyramid.vendor(directories)
    if maker is None:
        pyramid.of_file(path)
    elif tiff.NDPI_FORMAT not in directories[0].tags:
        # The offsets of large NDPI files do not fit into their tags; OpenSlide repairs them.
        bits = directories[0].number(tiff.BITS_PER_SAMPLE, 1)
        if bits > 8:
            what = f"has {bits}-bit samples; only 8-bit ones are read."
            raise slide_error(path, what, "scale it to 8 bits.")
        used = [d for d in directories if d is directories[0] or d.tile_px]
        tiff.verify(path, used, size_bytes)


def _refuse_no_level(path: str) -> None:
    """Refuse a DICOM file whose series has no level: a label or a thumbnail alone."""
    mine = dicom.read(path)
    if mine is None or mine.kind in ("VOLUME", "OTHER"):
        return
    folder = Path(path).parent
    beside = dicom.group(str(file) for file in folder.iterdir() if file.is_file())
    series = [each for each in beside if each.uid == mine.series]
    if not any(each.is_slide for each in series):
        raise slide_error(
            path, f"holds only the {mine.kind.lower()} of a DICOM slide.", _WHOLE_SERIES
        )


def _in_folder(path: str) -> str:
    """Find the DICOM slide that a folder holds."""
    if ngff.is_image(Path(path)):
        return path
    files = [file for file in sorted(Path(path).iterdir()) if file.is_file()]
    all_series = dicom.group(map(str, files))
    slides = [series for series in all_series if series.is_slide]
    if len(slides) == 1:
        return slides[0].path
    if slides:
        names = ", ".join(Path(series.path).name for series in slides[:3])
        raise slide_error(
            path,
            f"holds {len(slides)} DICOM slides.",
            f"name one file of the one you want: {names}{', ...' if len(slides) > 3 else ''}",
        )
    of_slides = {kind.lower() for series in all_series for kind in series.kinds} - {"other"}
    if of_slides:
        kinds = " and the ".join(sorted(of_slides))
        raise slide_error(path, f"holds only the {kinds} of a DICOM slide.", _WHOLE_SERIES)
    if any(file.name == "Slidedat.ini" for file in files):
        raise slide_error(path, "is the folder of a MIRAX slide.", "name the .mrxs beside it.")
    raise slide_error(path, "is a folder without a DICOM slide.", "name the slide file.")


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as handle:
            return handle.read(_HEAD_BYTES)
    except OSError as error:
        raise slide_error(path, f"cannot be read ({error.strerror}).") from error


def _nobody(
    path: str, target: str, reasons: dict[str, str], failed: list[CytofmError]
) -> SlideError:
    """Make the error that says why no reader can open `path`.

    Where one reader knew the format and has a hint of its own, its reason is the telling one.
    """
    tried = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in reasons.items())
    missing = [error for error in failed if isinstance(error, MissingPackageError)]
    told = [error for error in failed if isinstance(error, SlideError)]
    if len(told) == len(failed) == 1 and told[0].hint != DAMAGED_HINT:
        return told[0]
    if "://" not in target and Path(target).suffix.lower() in shells.OWN:
        return shells.unread(path, tried, missing[0].hint if missing else None)
    head = b"" if "://" in target or Path(target).is_dir() else _head(target)
    stranger = None if missing else shells.stranger(path, head)
    if stranger is not None:
        return stranger
    hints = [error.hint for error in (*missing, *told) if error.hint != DAMAGED_HINT]
    return slide_error(path, f"no reader can open it ({tried}).", (*hints, _COMPLETE)[0] or "")
