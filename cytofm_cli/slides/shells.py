"""Files that are not the slide themselves: shells, parts, other formats, other things.

A shell looks like a slide (an Olympus .vsi is a TIFF with an overview in it), so it is refused
by name before any decoder sees it, with what is missing or what could read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import zoomable
from cytofm_cli.slides.base import DAMAGED_HINT, slide_error

_COPIED: Final = "check what was copied there."
_EXPORT: Final = "export it as OME-TIFF with the scanner's software, QuPath or Bio-Formats."
_VSI_MAGIC: Final = (8, b"\x18\0IS")  # the first block of Olympus' own after a TIFF's header
# Slide formats that no reader here opens, by suffix; files of these names are never tried.
UNREADABLE: Final = {
    ".ets": "Olympus ETS", ".zvi": "Zeiss ZVI", ".lif": "Leica LIF", ".nd2": "Nikon ND2",
    ".oir": "Olympus OIR", ".mds": "Motic MDS", ".mdsx": "Motic MDSX",
}  # fmt: skip


class Format(NamedTuple):
    """A format that its suffix says: its name, and how its files begin."""

    name: str
    place: int
    magics: tuple[bytes, ...]


# Only readers that declare these suffixes are asked about such files, whatever is in them.
OWN: Final = {
    ".vsi": Format("Olympus VSI", 0, (b"II*\0",)),
    ".kfb": Format("KFBIO KFB", 4, (b"KFB",)),
    ".tmap": Format("UNIC TMAP", 0, (b"TMAP",)),
    ".sdpc": Format("Sqray SDPC", 0, (b"SQ",)),
    ".dyqx": Format("Sqray DYQX", 0, (b"SQ",)),
    ".isyntax": Format("Philips iSyntax", 0, (b"<DataObject",)),
}
# Those that a folder is searched for: whole slides, which must not be left out silently.
SLIDE_SUFFIXES: Final = frozenset((*UNREADABLE, *OWN)) - {".ets"}
# Other formats and things, by how they begin: what it is, what to do.
_STRANGERS: Final = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file.", "run git lfs pull."),
    (b"SIS\0", "is the tile file of an Olympus slide.", "name the .vsi that it belongs to."),
    (b"GIF8", "is a GIF picture.", "save it as PNG or TIFF."),
    (b"BM", "is a BMP picture.", "save it as PNG or TIFF."),
    (b"\0\0\0\x0cjP  ", "is a JPEG 2000 picture.", "convert it to a tiled TIFF."),
    (b"\xff\x0a", "is a JPEG XL picture.", "convert it to a tiled TIFF."),
    (b"\0\0\0\x0cJXL ", "is a JPEG XL picture.", "convert it to a tiled TIFF."),
    (b"%PDF", "is a PDF document.", "give the slide itself."),
    (b"PK\x03\x04", "is a ZIP archive.", "unpack it first."),
    (b"\x1f\x8b", "is a gzip archive.", "unpack it first."),
    (b"\x89HDF", "is an HDF5 file.", "give the slide that it was made from."),
    (b"\xd0\xcf\x11\xe0", "is an OLE container (Zeiss ZVI or the like), no slide here.", _EXPORT),
)

# Slides that are read by their suffix, which may have another name; "SQ" alone says too little.
_RENAMED: Final = {
    **{suffix: OWN[suffix] for suffix in (".kfb", ".tmap", ".isyntax")},
    ".czi": Format("Zeiss CZI", 0, (b"ZISRAWFILE",)),
}
# What readers here open, and what may stand under the name of another format.
_PICTURES: Final = (
    *((magic, "is a TIFF file", "call it .tif.") for magic in (b"II*\0", b"MM\0*", b"II+\0")),
    (b"\xff\xd8\xff", "is a JPEG picture", "call it .jpg."),
    (b"\x89PNG", "is a PNG picture", "call it .png."),
)


def refuse(path: str, head: bytes) -> None:
    """Refuse a file that is the shell of a slide, or of a format that no reader here opens.

    Args:
        path: a local file.
        head: its first bytes, 16 or more.

    Raises:
        SlideError: it is; the message names the format and what is missing.
    """
    file = Path(path)
    start, magic = _VSI_MAGIC
    suffix = file.suffix.lower()
    parts = file.parent / f"_{file.stem}_"
    if suffix == ".vsi":
        if _ets(parts) is None:
            raise _olympus(path, parts)
    elif head[start : start + len(magic)] == magic or _ets(parts):
        raise _olympus(path, parts)
    if suffix in OWN:
        _refuse_other(path, head, OWN[suffix])
    if suffix in UNREADABLE:
        what = f"is a {UNREADABLE[suffix]} slide, which no reader here opens."
        raise slide_error(path, what, _EXPORT)
    if suffix == ".ndpis":
        raise slide_error(
            path, "only lists the channels of a Hamamatsu slide.", "name its .ndpi files."
        )
    if suffix == ".mrxs" and not (file.parent / file.stem / "Slidedat.ini").is_file():
        raise slide_error(
            path,
            f"is a MIRAX slide whose folder {file.stem} with Slidedat.ini is not beside it.",
            "copy the folder of that name too.",
        )
    if suffix in (".vms", ".vmu"):
        _refuse_incomplete_vms(path)


def unread(path: str, tried: str, hint: str | None) -> SlideError:
    """Make the error for a format of its own suffix that no reader could open.

    Args:
        path: the file.
        tried: what each reader said.
        hint: of the reader that knows what is missing, or None.
    """
    file = Path(path)
    name = OWN[file.suffix.lower()].name
    ets = _ets(file.parent / f"_{file.stem}_") if file.suffix.lower() == ".vsi" else None
    where = f", with its picture in {ets}" if ets else ""
    what = f"is a slide in {name}{where}, which no reader opens here ({tried})."
    return slide_error(path, what, hint or _EXPORT)


def stranger(path: str, head: bytes) -> SlideError | None:
    """Make the error for a thing that is known by how it begins; None for the unknown."""
    for suffix, own in _RENAMED.items():
        if head.startswith(own.magics, own.place) and Path(path).suffix.lower() != suffix:
            what = f"is a slide in {own.name} under another name."
            return slide_error(path, what, f"call it {suffix}.")
    for magic, what, hint in _STRANGERS:
        if head.startswith(magic):
            return slide_error(path, what, hint)
    if head and _is_text(head[:1024]):
        if kind := zoomable.described(path, head):
            what = f"describes the tiles of a zoomable picture ({kind}), which no reader opens."
            return slide_error(path, what, zoomable.HINT)
        is_table = Path(path).suffix.lower() in (".csv", ".tsv")
        hint = "a table of slides: `cytofm tile --manifest FILE`." if is_table else _COPIED
        return slide_error(path, "is a text file, not a slide.", hint)
    return None


def vms_parts(path: Path) -> list[str]:
    """List the files that a Hamamatsu .vms or .vmu slide names as its parts."""
    try:
        text = path.read_bytes()[:1_000_000].decode("utf-8", "replace")
    except OSError:
        return []
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    keys = ("imagefile", "mapfile", "optimisationfile", "macroimage")
    return [value.strip() for key, value in pairs if key.strip().lower().startswith(keys)]


def _olympus(path: str, parts: Path) -> SlideError:
    ets = _ets(parts)
    if ets:
        where, hint = f"the slide itself is in {ets}", "call it .vsi, as it was."
    else:
        where = f"its folder {parts.name} with the slide itself (.ets) is not beside it"
        hint = "copy the folder of that name too."
    return slide_error(path, f"is the shell of an Olympus VSI slide: {where}.", hint)


def _refuse_other(path: str, head: bytes, own: Format) -> None:
    if head.startswith(own.magics, own.place):
        return
    what, hint = "begins otherwise", DAMAGED_HINT
    for magic, known, wanted in (*_PICTURES, *_STRANGERS):
        if head.startswith(magic):
            what, hint = known.rstrip("."), wanted
            break
    raise slide_error(path, f"has the name of a slide in {own.name}, but {what}.", hint)


def _ets(parts: Path) -> str | None:
    """Return the first tile file in the folder of an Olympus slide, relative to its parent."""
    if not parts.is_dir():
        return None
    files = sorted(file for file in parts.glob("*/*") if file.suffix.lower() == ".ets")
    return files[0].relative_to(parts.parent).as_posix() if files else None


def _refuse_incomplete_vms(path: str) -> None:
    folder = Path(path).parent
    named = [name for name in vms_parts(Path(path)) if name]
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise slide_error(
            path,
            f"is a Hamamatsu slide of which {len(missing)} of {len(named)} parts are not beside "
            f"it, {missing[0]} among them.",
            "copy all its files into one folder.",
        )


def _is_text(head: bytes) -> bool:
    """Tell whether bytes are printable UTF-8 (the last character may be cut off)."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n" for character in text)
