"""DICOM slides: each level of a pyramid is one file, written as its tiles come.

VL Whole Slide Microscopy Image (PS3.3 A.32.8), explicit little endian, frames of baseline JPEG in
the order of TILED_FULL. Identifiers follow from the slide, so that the same slide has the same
bytes. Colour has half its resolution across (`COLOUR`), as OpenSlide and others expect of baseline
JPEG. An ICC profile, which the standard asks for, is left out: colours are the preset's.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from cytofm_cli import __version__
from cytofm_cli.pictures.pyramid import level_sizes
from cytofm_cli.simulate.cohort import Slide
from cytofm_cli.simulate.parts import Part
from cytofm_cli.simulate.render import TILE
from cytofm_cli.simulate.write import Film, Tiles
from cytofm_cli.units import UM_PX_AT_1X
from cytofm_cli.work.files import replacing

_SLIDE: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
_JPEG: Final = "1.2.840.10008.1.2.4.50"
COLOUR: Final = "4:2:2"
_LONG: Final = frozenset({"OB", "SQ"})
_UIDS: Final = uuid.UUID("7a0d4a4e-6c0b-5f0e-9c65-2f9b0c2a7a11")
_DAY: Final = "20000101"  # a simulation has no time of its own
_TIME: Final = "000000"

Value = str | int | float | Sequence[bytes]


def level_name(level: int) -> str:
    """Return the name of the file of a level."""
    return f"level-{level}.dcm"


def write_dicom(folder: Path, rows: Iterator[list[Part]], slide: Slide, film: Film) -> None:
    """Write a slide, one file a level, into its folder."""
    sizes = level_sizes(slide.size_px)
    with Tiles(sizes, folder, film) as tiles:
        for level, size in enumerate(sizes):
            taken = tiles.below[level - 1].tiles() if level else tiles.finest(rows, slide)
            with replacing(folder / level_name(level)) as partial:
                write_level(partial, taken, slide, film, level, size)


def element(tag: int, kind: str, value: Value) -> bytes:
    """Encode one element.

    Args:
        tag: group and number, as 0x00080060.
        kind: its value representation; of text, US, UL, FL or SQ.
        value: text (several with a backslash between them), a number, or the items of a sequence.
    """
    if kind == "SQ":
        assert not isinstance(value, str | int | float)
        data = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in value)
    elif kind in {"US", "UL", "FL"}:
        data = struct.pack({"US": "<H", "UL": "<I", "FL": "<f"}[kind], value)
    elif kind == "OB":
        data = b"\0\1"  # only that of the file's head, its version
    else:
        data = str(value).encode()
        data += (b"\0" if kind == "UI" else b" ") * (len(data) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode()
    length = "<HI" if kind in _LONG else "<H"
    return head + struct.pack(length, *([0] if kind in _LONG else []), len(data)) + data


def uid(*names: object) -> str:
    """Return the identifier of something, always the same (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_UIDS, '/'.join(map(str, names))).int}"


def write_level(
    path: Path, tiles: Iterable[bytes], slide: Slide, film: Film, level: int, size_px: int
) -> None:
    """Write one level of a slide.

    Args:
        path: the file.
        tiles: JPEG, row by row.
        slide: which.
        film: resolution and JPEG.
        level: its number, 0 the finest.
        size_px: its side.
    """
    instance = uid(slide.seed, slide.slide_id, level)
    meta = [
        element(0x00020001, "OB", 1),
        element(0x00020002, "UI", _SLIDE),
        element(0x00020003, "UI", instance),
        element(0x00020010, "UI", _JPEG),
        element(0x00020012, "UI", uid("cytofm simulate")),
    ]
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        file.write(element(0x00020000, "UL", sum(map(len, meta))) + b"".join(meta))
        file.write(b"".join(_facts(slide, film, level, size_px, instance)))
        _write_frames(file, tiles)


def _write_frames(file: IO[bytes], frames: Iterable[bytes]) -> None:
    """Write encapsulated pixels (PS3.5 A.4), with an empty table of offsets."""
    file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF))
    file.write(struct.pack("<HHI", 0xFFFE, 0xE000, 0))
    for frame in frames:
        odd = len(frame) % 2
        file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(frame) + odd) + frame + b"\0" * odd)
    file.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))


def _facts(slide: Slide, film: Film, level: int, size_px: int, instance: str) -> Iterator[bytes]:
    """Yield all elements before the pixels, in the order of their tags."""
    kinds = "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED" if level else "ORIGINAL\\PRIMARY\\VOLUME\\NONE"
    yield from _who(slide, level, instance, kinds)
    across = -(-size_px // TILE)
    for tag, kind, value in (
        (0x00209311, "CS", "TILED_FULL"),
        (0x00280002, "US", 3),
        (0x00280004, "CS", "YBR_FULL_422"),
        (0x00280006, "US", 0),
        (0x00280008, "IS", across**2),
        (0x00280010, "US", TILE),
        (0x00280011, "US", TILE),
        (0x00280100, "US", 8),
        (0x00280101, "US", 8),
        (0x00280102, "US", 7),
        (0x00280103, "US", 0),
        (0x00280301, "CS", "NO"),
        (0x00282110, "CS", "01"),
        (0x00282112, "DS", 10),
        (0x00282114, "CS", "ISO_10918_1"),
    ):
        yield element(tag, kind, value)
    yield from _glass(slide)
    yield from _optics(slide, film, size_px, kinds)


def _who(slide: Slide, level: int, instance: str, kinds: str) -> Iterator[bytes]:
    """Yield patient, study and series."""
    for tag, kind, value in (
        (0x00080005, "CS", "ISO_IR 192"),
        (0x00080008, "CS", kinds),
        (0x00080016, "UI", _SLIDE),
        (0x00080018, "UI", instance),
        (0x00080020, "DA", _DAY),
        (0x00080023, "DA", _DAY),
        (0x0008002A, "DT", _DAY + _TIME),
        (0x00080030, "TM", _TIME),
        (0x00080033, "TM", _TIME),
        (0x00080050, "SH", ""),
        (0x00080060, "CS", "SM"),
        (0x00080070, "LO", "cytofm"),
        (0x00080090, "PN", ""),
        (0x00081090, "LO", "cytofm simulate"),
        (0x00100010, "PN", f"simulated {slide.patient}"),
        (0x00100020, "LO", slide.patient),
        (0x00100030, "DA", ""),
        (0x00100040, "CS", ""),
        (0x00181000, "LO", "simulated"),
        (0x00181020, "LO", __version__),
        (0x0020000D, "UI", uid(slide.seed, slide.patient, "study")),
        (0x0020000E, "UI", uid(slide.seed, slide.slide_id, "series")),
        (0x00200010, "SH", ""),
        (0x00200011, "IS", 1),
        (0x00200013, "IS", level + 1),
        (0x00200052, "UI", uid(slide.seed, slide.slide_id, "frame of reference")),
        (0x00201040, "LO", "SLIDE_CORNER"),
    ):
        yield element(tag, kind, value)


def _glass(slide: Slide) -> Iterator[bytes]:
    """Yield container and specimen: a microscope slide with one smear."""
    specimen = element(0x00400551, "LO", slide.slide_id)
    specimen += element(0x00400554, "UI", uid(slide.seed, slide.slide_id, "specimen"))
    specimen += element(0x00400562, "SQ", []) + element(0x00400610, "SQ", [])
    yield element(0x00400512, "LO", slide.slide_id)
    yield element(0x00400513, "SQ", [])
    yield element(0x00400518, "SQ", [_code("433466003", "SCT", "Microscope slide")])
    yield element(0x00400555, "SQ", [])
    yield element(0x00400560, "SQ", [specimen])


def _optics(slide: Slide, film: Film, size_px: int, kinds: str) -> Iterator[bytes]:
    """Yield size, place and light of the picture."""
    side_mm = slide.size_px * film.mpp / 1000
    spacing_mm = f"{side_mm / size_px:.10g}"
    path = element(0x00220016, "SQ", [_code("111744", "DCM", "Brightfield illumination")])
    path += element(0x00480106, "SH", "1")
    path += element(0x00480108, "SQ", [_code("371251000", "SCT", "White")])
    path += element(0x00480112, "DS", round(UM_PX_AT_1X / film.mpp))
    origin = element(0x0040072A, "DS", 0) + element(0x0040073A, "DS", 0)
    measures = element(0x00180050, "DS", "0.001")
    measures += element(0x00280030, "DS", f"{spacing_mm}\\{spacing_mm}")
    shared = element(0x00289110, "SQ", [measures])
    shared += element(0x00400710, "SQ", [element(0x00089007, "CS", kinds)])
    shared += element(0x00480207, "SQ", [element(0x00480106, "SH", "1")])
    yield element(0x00480001, "FL", side_mm)
    yield element(0x00480002, "FL", side_mm)
    yield element(0x00480003, "FL", 0.001)
    yield element(0x00480006, "UL", size_px)
    yield element(0x00480007, "UL", size_px)
    yield element(0x00480008, "SQ", [origin])
    yield element(0x00480010, "CS", "NO")
    yield element(0x00480011, "CS", "AUTO")
    yield element(0x00480012, "CS", "NO")
    yield element(0x00480102, "DS", "0\\-1\\0\\-1\\0\\0")
    yield element(0x00480105, "SQ", [path])
    yield element(0x00480302, "UL", 1)
    yield element(0x00480303, "UL", 1)
    yield element(0x52009229, "SQ", [shared])


def _code(value: str, scheme: str, meaning: str) -> bytes:
    """Encode a coded term."""
    return (
        element(0x00080100, "SH", value)
        + element(0x00080102, "SH", scheme)
        + element(0x00080104, "LO", meaning)
    )
