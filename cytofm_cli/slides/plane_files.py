"""A folder whose files are the focal planes of one slide.

They are called alike but for a number after z or "plane", as `smear_z00.tif`, `smear_z01.tif`, …,
lowest first, and nothing else in the folder is a slide; or `planes.csv` lists them, lowest first,
with the columns path and, if known, z_um.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.slides.base import NativeJpeg, SlideInfo, SlideReader, parse_float, slide_error
from cytofm_cli.units import Box

MANIFEST: Final = "planes.csv"
_OF_DICOM: Final = (".dcm", ".dicom")
_NUMBERED: Final = re.compile(r"(.*?)[ ._-]*(?:z|plane)[ ._-]*(\d{1,5})(\.ome)?", re.I | re.S)


@dataclass(frozen=True)
class PlaneFiles:
    """The focal planes of a slide, lowest first.

    Attributes:
        folder: as it was given.
        files: one a plane.
        planes_um: heights, µm, if the manifest states them.
    """

    folder: str
    files: tuple[str, ...]
    planes_um: tuple[float, ...] | None = None


def is_stack(names: Sequence[str], suffixes: frozenset[str]) -> bool:
    """Tell whether the files of a folder are the planes of one slide.

    Args:
        names: of all its files.
        suffixes: of slides.
    """
    return MANIFEST in names or bool(_numbered(names, suffixes))


def find(folder: str, suffixes: frozenset[str]) -> PlaneFiles | None:
    """Return the planes in a folder; None if it does not hold a slide's planes.

    Raises:
        SlideError: a plane is missing, or the manifest cannot be used.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    shown = [name for name in names if not name.startswith(".")]
    if MANIFEST in shown:
        return _listed(folder)
    of_number = _numbered(shown, suffixes)
    if not of_number:
        return None
    for number in range(min(of_number), max(of_number)):
        if number not in of_number:
            raise slide_error(
                folder,
                f"focal plane {number} is missing: there are {len(of_number)} files from "
                f"{of_number[min(of_number)]} to {of_number[max(of_number)]}.",
                f"copy it there, or list the planes that there are in {MANIFEST}.",
            )
    files = [os.path.join(folder, of_number[number]) for number in sorted(of_number)]
    return PlaneFiles(folder, tuple(files))


def _numbered(names: Sequence[str], suffixes: frozenset[str]) -> dict[int, str]:
    """Return the files by the number of their plane; none if they are no planes of one slide."""
    of_number: dict[int, str] = {}
    stems = set()
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if suffix.lower() in _OF_DICOM:  # a series has its own numbers
            return {}
        match = _NUMBERED.fullmatch(stem)
        if match is None or int(match[2]) in of_number:
            return {}
        of_number[int(match[2])] = name
        stems.add((match[1], suffix))
    return of_number if len(stems) == 1 and len(of_number) > 1 else {}


def _listed(folder: str) -> PlaneFiles:
    path = Path(folder, MANIFEST)
    hint = "it has the columns path and z_um, one row a focal plane, lowest first."
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise slide_error(str(path), f"cannot be read ({error}).", hint) from error
    named = [row.get("path") or "" for row in rows]
    if len(rows) < 2 or not all(named):
        raise slide_error(str(path), "names no two focal planes.", hint)
    files = [os.path.join(folder, name) for name in named]
    gone = [name for name, file in zip(named, files, strict=True) if not Path(file).is_file()]
    if gone:
        raise slide_error(str(path), f"focal plane {gone[0]} is not there.", "copy it there.")
    heights = [parse_float(row.get("z_um")) for row in rows]
    um = [height for height in heights if height is not None]
    if um and (len(um) < len(rows) or um != sorted(set(um))):
        raise slide_error(str(path), "z_um does not rise from row to row.", hint)
    return PlaneFiles(folder, tuple(files), tuple(um) or None)


class PlaneFilesReader(SlideReader):
    """A slide of which each focal plane is a file of its own.

    Args:
        planes: the files, open; `info` of each says which plane it is.
        plane: the one that is read.
    """

    def __init__(
        self, planes: Sequence[SlideReader], infos: Sequence[SlideInfo], plane: int
    ) -> None:
        self.info = infos[plane]
        self._planes, self._infos = planes, infos
        self._reader = planes[plane]

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        return self._reader.read(level, box)

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`; see `SlideReader.overview`."""
        return self._reader.overview(downsample)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return the JPEG tiles of a level; see `SlideReader.native_jpeg`."""
        return self._reader.native_jpeg(level)

    def close(self) -> None:
        """Release the files."""
        for reader in self._planes:
            reader.close()

    def _open_plane(self, plane: int) -> SlideReader:
        return PlaneFilesReader(self._planes, self._infos, plane)


def open_planes(stack: PlaneFiles, open_one: Callable[[str], SlideReader]) -> SlideReader:
    """Open the planes of a folder as one slide, at the middle one.

    Raises:
        SlideError: one cannot be read, or they do not have the same levels.
    """
    middle = len(stack.files) // 2
    with contextlib.ExitStack() as opened:
        planes = [opened.enter_context(open_one(file)) for file in stack.files]
        expected = planes[middle].info
        for file, reader in zip(stack.files, planes, strict=True):
            _refuse_other(stack, Path(file).name, reader.info, expected)
        infos = [
            replace(
                reader.info,
                path=stack.folder,
                mpp=expected.mpp,
                mpp_source=expected.mpp_source,
                n_focal_planes=len(planes),
                focal_plane=number,
                planes_um=stack.planes_um,
                reads_planes=True,
                notes=(_note(stack), *expected.notes),
            )
            for number, reader in enumerate(planes)
        ]
        opened.pop_all()
    return PlaneFilesReader(planes, infos, middle)


def _note(stack: PlaneFiles) -> str:
    names = [Path(stack.files[at]).name for at in (0, -1)]
    return (
        f"The folder is read as one slide of {len(stack.files)} focal planes, {names[0]} to "
        f"{names[1]}."
    )


def _refuse_other(stack: PlaneFiles, name: str, info: SlideInfo, expected: SlideInfo) -> None:
    if info.n_focal_planes > 1:
        raise slide_error(
            stack.folder,
            f"its focal plane {name} has {info.n_focal_planes} planes itself.",
            "name that file.",
        )
    sizes, wanted = ([level.size_px for level in each.levels] for each in (info, expected))
    if sizes == wanted:
        return
    (w, h), (w0, h0) = sizes[0], wanted[0]
    if sizes[0] == wanted[0]:
        raise slide_error(stack.folder, f"its focal plane {name} has other levels than the rest.")
    raise slide_error(
        stack.folder,
        f"its focal planes differ in size: {name} is {w} x {h} px, the middle one {w0} x {h0} px.",
        "write the planes again, all of one size.",
    )
