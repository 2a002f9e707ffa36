"""The few elements of a DICOM file that say which slide it belongs to (PS3.5, PS3.10).

OpenSlide reads the pixels. This walk tells, without decoding, which files of a folder make one
slide: those of one series. It reads explicit and implicit little endian, the only encodings
that whole slides use.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAGIC: Final = (128, b"DICM")
# Nearly always the wanted elements are in the first; a folder may hold thousands of files.
_HEAD_BYTES: Final = (16_384, 1_048_576)
_SOP_CLASS: Final = 0x0002_0002
_SYNTAX: Final = 0x0002_0010
_IMAGE_TYPE: Final = 0x0008_0008
_SERIES_UID: Final = 0x0020_000E
_TOTAL_COLUMNS: Final = 0x0048_0006
_TOTAL_ROWS: Final = 0x0048_0007
_WANTED: Final = (_SOP_CLASS, _SYNTAX, _IMAGE_TYPE, _SERIES_UID, _TOTAL_COLUMNS, _TOTAL_ROWS)
# Behind the optical paths, each of which may hold a colour profile.
_N_PATHS: Final = 0x0048_0302
_N_PLANES: Final = 0x0048_0303
_DEEP_BYTES: Final = 16_777_216
_SLIDE: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
_IMPLICIT: Final = "1.2.840.10008.1.2"
_ITEMS: Final = (0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD)
_UNDEFINED: Final = 0xFFFF_FFFF
_LONG: Final = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN")


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One DICOM file.

    Attributes:
        path: the file.
        series: its SeriesInstanceUID.
        kind: "VOLUME" for a level of a slide, else "LABEL", "OVERVIEW", "THUMBNAIL"; "OTHER"
            for what belongs to no slide: annotations, a DICOMDIR, other modalities.
        n_px: pixels of the whole level.
    """

    path: str
    series: str
    kind: str
    n_px: int


@dataclass(frozen=True, kw_only=True)
class Series:
    """The files of one slide.

    Attributes:
        uid: SeriesInstanceUID.
        path: the file of its finest level; of any picture if it has no level.
        files: all of them.
        kinds: what they hold.
        n_px: pixels of its finest level, 0 if it has none.
    """

    uid: str
    path: str
    n_px: int
    files: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def is_slide(self) -> bool:
        """Whether there is a level, not only label, overview or thumbnail."""
        return "VOLUME" in self.kinds


def read(path: str) -> Instance | None:
    """Read what a file says of its slide; None if it is not DICOM."""
    elements: dict[int, bytes] = {}
    for n_bytes in _HEAD_BYTES:
        try:
            with Path(path).open("rb") as handle:
                head = handle.read(n_bytes)
        except OSError:
            return None
        start, magic = _MAGIC
        if head[start : start + len(magic)] != magic:
            return None
        with contextlib.suppress(struct.error):  # cut off: what was found until there counts
            _walk(head, start + len(magic), elements)
        if _TOTAL_ROWS in elements:
            break
    if _text(elements, _SOP_CLASS) != _SLIDE or _SERIES_UID not in elements:
        return Instance(path=path, series="", kind="OTHER", n_px=0)
    types = _text(elements, _IMAGE_TYPE).upper().split("\\")
    kinds = [word for word in ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER") if word in types]
    sides = [
        int.from_bytes(elements.get(t, b"")[:4], "little") for t in (_TOTAL_COLUMNS, _TOTAL_ROWS)
    ]
    return Instance(
        path=path,
        series=_text(elements, _SERIES_UID),
        kind=kinds[0] if kinds else "VOLUME",
        n_px=sides[0] * sides[1],
    )


def planes_and_paths(path: str) -> tuple[int, int]:
    """Return how many focal planes and optical paths a file says it has; 1 where it says none."""
    elements: dict[int, bytes] = {}
    with contextlib.suppress(OSError, struct.error), Path(path).open("rb") as handle:
        head = handle.read(_DEEP_BYTES)
        _walk(head, _MAGIC[0] + len(_MAGIC[1]), elements, _N_PLANES)
    planes, paths = (
        int.from_bytes(elements.get(tag, b"")[:4], "little") for tag in (_N_PLANES, _N_PATHS)
    )
    return max(1, planes), max(1, paths)


def series_of(path: str) -> tuple[str, ...]:
    """List the files of the slide that a file belongs to, among those of its folder."""
    mine = read(path)
    beside = group(str(file) for file in Path(path).parent.iterdir() if file.is_file())
    return next(
        (each.files for each in beside if mine is not None and each.uid == mine.series), (path,)
    )


def group(paths: Iterable[str]) -> list[Series]:
    """Group DICOM files by series, in the order of their paths; other files are left out."""
    of_series: dict[str, list[Instance]] = {}
    for path in sorted(paths):
        instance = read(path)
        if instance is not None:
            of_series.setdefault(instance.series, []).append(instance)
    return [
        Series(
            uid=uid,
            path=max(members, key=lambda each: (each.kind == "VOLUME", each.n_px)).path,
            n_px=max((each.n_px for each in members if each.kind == "VOLUME"), default=0),
            files=tuple(each.path for each in members),
            kinds=tuple(each.kind for each in members),
        )
        for uid, members in of_series.items()
    ]


def may_be_instance(name: str) -> bool:
    """Tell from its name whether a file may be DICOM: .dcm, or no suffix, as on its media."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in (".dcm", ".dicom") or not any(letter.isalpha() for letter in suffix)


def _text(elements: dict[int, bytes], tag: int) -> str:
    return elements.get(tag, b"").decode("ascii", "replace").strip("\0 ")


def _walk(head: bytes, place: int, elements: dict[int, bytes], last: int = _TOTAL_ROWS) -> None:
    """Collect the wanted elements of the top level, up to the tag `last`."""
    implicit = False
    while place + 8 <= len(head):
        tag = _tag(head, place)
        if tag >> 16 > 2:
            implicit = _text(elements, _SYNTAX) == _IMPLICIT
        if tag > last:
            return
        start, length = _value(head, place, implicit)
        if length == _UNDEFINED:
            place = _skip_sequence(head, start, implicit)
            continue
        if tag in _WANTED or tag in (_N_PATHS, _N_PLANES):
            elements[tag] = head[start : start + length]
        place = start + length


def _tag(head: bytes, place: int) -> int:
    major, minor = struct.unpack_from("<HH", head, place)
    return int(major << 16 | minor)


def _value(head: bytes, place: int, implicit: bool) -> tuple[int, int]:
    """Return where the value of an element starts, and its length."""
    if implicit or _tag(head, place) in _ITEMS:
        return place + 8, int(struct.unpack_from("<I", head, place + 4)[0])
    if head[place + 4 : place + 6] in _LONG:
        return place + 12, int(struct.unpack_from("<I", head, place + 8)[0])
    return place + 8, int(struct.unpack_from("<H", head, place + 6)[0])


def _skip_sequence(head: bytes, place: int, implicit: bool) -> int:
    """Return the place after a sequence or item of undefined length, nested ones included."""
    depth = 1
    while depth:
        tag = _tag(head, place)
        start, length = _value(head, place, implicit)
        if tag in _ITEMS[1:]:
            depth -= 1
            place = start
        elif length == _UNDEFINED:
            depth += 1
            place = start
        else:
            place = start + length
    return place
