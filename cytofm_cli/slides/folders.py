"""Which slides a folder holds.

A slide is a file of a suffix that a reader declares, an OME-Zarr folder, or the files of one DICOM
series, whatever they are called and whatever lies beside them. Parts and thumbnails of slides are
none. Linked folders are followed, each real folder once; the order does not depend on the file
system.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from cytofm_cli.registry import readers
from cytofm_cli.slides import dicom, ngff, plane_files, shells, zoomable

_log = logging.getLogger(__name__)

# Pictures beside the files of a DICOM slide are its thumbnails.
_BESIDE_DICOM: Final = frozenset((".jpg", ".jpeg", ".png"))
STORE_SUFFIX: Final = ".zarr"
# Folders that file servers and operating systems make: copies, thumbnails, deleted files.
_NO_SLIDES: Final = frozenset(
    "@eadir #recycle @recycle #snapshot @tmp __macosx thumbs thumbnails $recycle.bin lost+found"
    " appledouble ~snapshot".split()
) | {"system volume information"}
_MIRAX_INDEX: Final = "slidedat.ini"
_PICTURE_OF: Final = re.compile(
    r"[\s._-]*(?:label|macro|overview|thumbnail|thumb|barcode|preview|associated)[\s._-]*"
    r"(?:image)?$"
)

# UID of a DICOM series → for each folder with a part of it the pixels of the finest level there,
# and the path that stands for the slide.
Finest = dict[str, list[tuple[int, str]]]


def readable_suffixes() -> frozenset[str]:
    """Return what a folder is searched for: the suffixes that the readers declare.

    A path that is given by name is tried whatever its suffix.
    """
    return _suffixes_on(tuple(sys.path))


@functools.cache  # a list of slides asks for each of them
def _suffixes_on(_path: tuple[str, ...]) -> frozenset[str]:
    return frozenset(suffix for plugin in readers.usable().values() for suffix in plugin.suffixes)


def slide_suffixes() -> frozenset[str]:
    """Return the suffixes of slides, also of those that no reader here opens."""
    return readable_suffixes() | shells.SLIDE_SUFFIXES


def find_slides(folder: str) -> list[str]:
    """List the slides in a folder and below: files, and folders with one DICOM slide.

    Hidden files and folders, stores, and the folders in which file servers keep thumbnails are
    left out; so are label and overview files of DICOM and pictures of them beside a slide, parts of
    VMS, VMU and MIRAX slides and of zoomable pictures, and links to a file that is listed itself.
    """
    if ngff.is_image(Path(folder)):
        return [folder]
    series: Finest = {}
    paths = list(_walk(folder, {os.path.realpath(folder)}, series))
    return _each_file_once(_each_series_once(paths, series))


def join_series(paths: Sequence[str]) -> list[str]:
    """Replace several files of one DICOM slide, as a pattern names them, by the slide.

    A single file stays as it is named. Files without a level are left out where others of
    their folder are named too.
    """
    files = [path for path in paths if "://" not in path and dicom.may_be_instance(path)]
    of_folder: dict[str, list[str]] = {}
    for path in files:
        if Path(path).is_file():
            of_folder.setdefault(str(Path(path).parent), []).append(path)
    joined: dict[str, str | None] = {}
    for folder, named in of_folder.items():
        if len(named) < 2:
            continue
        whole = _in_folder(folder, sorted(file.name for file in Path(folder).iterdir()), {})
        for series in dicom.group(named):
            slide = (folder if whole == [folder] else series.path) if series.is_slide else None
            joined.update((path, slide) for path in series.files)
    kept = (joined.get(path, path) for path in paths)
    return list(dict.fromkeys(path for path in kept if path is not None))


def slide_id_of(path: str) -> str:
    """Return the name of a slide: its file name without the slide suffix."""
    name = PurePosixPath(path.split("?", maxsplit=1)[0].rstrip("/")).name
    if name in ("", ".", ".."):  # a folder named from inside
        name = Path(path).resolve().name
    stem, suffix = os.path.splitext(name)
    name = stem if suffix.lower() in slide_suffixes() and stem else name
    return name.removesuffix(".ome") or name


def _walk(folder: str, seen: set[str], series: Finest) -> Iterator[str]:
    """Yield the slides of a folder, then those below it: real folders first, then linked ones.

    Args:
        folder: as it is reached.
        seen: real paths of the folders that were visited or will be.
        series: is told of each DICOM slide.
    """
    links: list[str] = []
    yield from _descend(folder, seen, links, series)
    while links:
        link = links.pop(0)
        real = os.path.realpath(link)
        if real not in seen:
            seen.add(real)
            yield from _descend(link, seen, links, series)


def _descend(folder: str, seen: set[str], links: list[str], series: Finest) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        _log.warning(
            "%s: cannot be listed (%s): what is in it is left out.", folder, error.strerror
        )
        return
    shown = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in shown if _is_folder(entry)]
    files = [entry.name for entry in shown if entry not in folders]
    if _MIRAX_INDEX in map(str.lower, files):  # the data of a slide, not beside their .mrxs
        _log.warning("%s: the folder of a MIRAX slide: no slides of their own.", folder)
        return
    tiles = _tiles(folder, [entry.name for entry in folders], files)
    yield from _in_folder(folder, [name for name in files if name not in tiles], series)
    own = {os.path.splitext(name)[0] for name in files if name.lower().endswith(".mrxs")}
    own |= {f"_{os.path.splitext(name)[0]}_" for name in files if name.lower().endswith(".vsi")}
    for entry in folders:
        name = entry.name
        if name.lower() in _NO_SLIDES or name in own | tiles:
            continue
        if name.endswith(STORE_SUFFIX):
            if ngff.is_image(Path(entry.path)):
                yield entry.path
            continue
        real = os.path.realpath(entry.path)
        if entry.is_symlink():
            links.append(entry.path)
        elif real not in seen:
            seen.add(real)
            yield from _descend(entry.path, seen, links, series)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _tiles(folder: str, folders: Sequence[str], files: Sequence[str]) -> frozenset[str]:
    """Return which names in a folder are tiles of a zoomable picture, and say so."""
    kind, names = zoomable.tiles_in(Path(folder), folders, files)
    if names:
        _log.warning(
            "%s: tiles of a zoomable picture (%s), no slides: %s", folder, kind, zoomable.HINT
        )
    return names


def _in_folder(folder: str, names: list[str], all_series: Finest) -> list[str]:
    """List the slides among the files of one folder."""
    if plane_files.is_stack(names, slide_suffixes()):
        return [folder]
    series = _series(folder, names)
    slides = [each.path for each in series if each.is_slide]
    skipped = {path for each in series for path in each.files} | _parts(folder, names)
    suffixes = slide_suffixes() - (_BESIDE_DICOM if slides else frozenset())
    others = [
        path
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes
        and (path := os.path.join(folder, name)) not in skipped
    ]
    beside = [name for name in names if name.lower().endswith(tuple(_BESIDE_DICOM))]
    if slides and beside:
        _log.warning("%s: %s beside a DICOM slide: no slide of its own.", folder, beside[0])
    others = _without_pictures_of(folder, others)
    alone = len(slides) == 1 and not others
    for each in series:
        if each.is_slide:
            path = folder if alone else each.path
            all_series.setdefault(each.uid, []).append((each.n_px, path))
    return [folder] if alone else sorted([*slides, *others])


def _without_pictures_of(folder: str, paths: list[str]) -> list[str]:
    """Drop what scanners and viewers lay beside a slide: `a_label.png`, `a.svs.jpg` of `a.svs`."""
    names = [Path(path).name.lower() for path in paths]
    slides = [name for name in names if not name.endswith(tuple(_BESIDE_DICOM))]
    owners = {*slides, *(os.path.splitext(name)[0] for name in slides)}
    kept = []
    for path, name in zip(paths, names, strict=True):
        stem, suffix = os.path.splitext(name)
        of_slide = _PICTURE_OF.sub("", stem)
        named_after = stem in slides or (of_slide != stem and of_slide in owners)
        if suffix in _BESIDE_DICOM and named_after:
            _log.warning("%s: a picture of the slide %s: no slide of its own.", path, of_slide)
        else:
            kept.append(path)
    return kept


def _series(folder: str, names: list[str]) -> list[dicom.Series]:
    return dicom.group(os.path.join(folder, name) for name in names if dicom.may_be_instance(name))


def _parts(folder: str, names: list[str]) -> set[str]:
    """Return the files that belong to a VMS or VMU slide beside them."""
    indexes = [name for name in names if name.lower().endswith((".vms", ".vmu"))]
    parts = (part for name in indexes for part in shells.vms_parts(Path(folder, name)))
    return {os.path.join(folder, part) for part in parts}


def _each_series_once(paths: list[str], series: Finest) -> list[str]:
    """Drop what belongs to a DICOM slide in another folder: coarser levels, and copies."""
    dropped: set[str] = set()
    for parts in series.values():
        _, best = max(parts, key=lambda part: part[0])
        others = {path for _, path in parts} - {best}
        for path in sorted(others):
            _log.warning("%s: belongs to the DICOM slide %s: no slide of its own.", path, best)
        dropped |= others
    return [path for path in paths if path not in dropped]


def _each_file_once(paths: list[str]) -> list[str]:
    """Drop links to files that are listed by another path: the file itself, else the first."""
    named: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: Path(path).is_symlink()):
        named.setdefault(os.path.realpath(path), path)
    kept = set(named.values())
    return [path for path in paths if path in kept]
