"""Ready-cut images of single cells: files of a folder, or members of a tar or zip.

An archive is looked through once, and its members are read where they lie: nothing is extracted,
so a name in it is a name and never a path. A process that is told the place of an image needs
only that file, and no list of the others.
"""

from __future__ import annotations

import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from cytofm_cli.errors import InputError
from cytofm_cli.work.zips import ZIP_DAMAGE

SUFFIXES: Final = frozenset(".png .jpg .jpeg .bmp .tif .tiff .webp .gif .ppm .pgm".split())
ARCHIVES: Final = frozenset({".tar", ".zip"})
# What is packed as a whole, and cannot be read in place.
PACKED: Final = frozenset(".gz .tgz .bz2 .tbz2 .xz .txz .zst .7z .rar".split())
# A larger file is no image of one cell.
MOST_BYTES: Final = 2**28
_ZIP_HEADER: Final = 30
_PACKED: Final = "unpack it, or make an uncompressed .tar or a .zip of the images."


@dataclass(frozen=True)
class ImagePlace:
    """Where the bytes of an image lie.

    Attributes:
        path: the file, or the archive.
        offset: where they, or in a zip their header, begin; None: the file is the image.
        n_bytes: as they lie in the archive.
        n_unpacked: of the image itself.
        zipped: compression of a member of a zip; None: of anything else.
        crc: checksum of a member of a zip.
        why: it cannot be read; "": it can.
    """

    path: str
    offset: int | None = None
    n_bytes: int = 0
    n_unpacked: int = 0
    zipped: int | None = None
    crc: int = 0
    why: str = ""

    @property
    def key(self) -> tuple[str, int | None]:
        """Return what two names of one image have in common."""
        return os.path.abspath(self.path), self.offset  # noqa: PTH100 - it also follows `..`

    def read(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it is damaged, encrypted, a link, or too large for an image of a cell.
        """
        if self.why:
            raise ValueError(self.why)
        if self.offset is None:
            path = Path(self.path)
            if path.stat().st_size > MOST_BYTES:
                raise ValueError("is too large for an image of one cell")
            return path.read_bytes()
        if max(self.n_bytes, self.n_unpacked) > MOST_BYTES:
            raise ValueError("is too large for an image of one cell")
        with Path(self.path).open("rb") as archive:
            archive.seek(self.offset)
            if self.zipped is not None:
                header = archive.read(_ZIP_HEADER)
                if len(header) < _ZIP_HEADER:
                    raise ValueError("lies past the end of the archive")
                name_and_extra = header[26:30]
                archive.seek(sum(name_and_extra[i] << (8 * (i % 2)) for i in range(4)), 1)
            data = archive.read(self.n_bytes)
        if len(data) != self.n_bytes:
            raise ValueError("lies past the end of the archive")
        return data if self.zipped is None else self._unzipped(data)

    def _unzipped(self, data: bytes) -> bytes:
        if self.zipped == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.n_unpacked + 1)
            except zlib.error as error:
                raise ValueError(f"is damaged in the archive ({error})") from error
        elif self.zipped != zipfile.ZIP_STORED:
            raise ValueError("is compressed by neither of the usual ways of a zip")
        if len(data) != self.n_unpacked or zlib.crc32(data) != self.crc:
            raise ValueError("is damaged in the archive (its checksum differs)")
        return data


def is_archive(path: Path) -> bool:
    """Tell whether a path names an archive of images that can be read in place."""
    return path.suffix.lower() in ARCHIVES and path.is_file()


def find_images(place: Path) -> dict[str, ImagePlace]:
    """List the images of a folder or archive by their names in it, sorted.

    Left out: what is no image by its suffix, hidden files, and devices of a tar. Members that
    cannot be read are there with the reason: symbolic links, encrypted ones, names that lead out
    of the archive.

    Raises:
        InputError: not there, not readable, compressed as a whole, or without images.
    """
    if not place.exists():
        raise InputError(f"{place}: no such file or folder.", hint="check the path.")
    try:
        members = dict(_members(place))
    except (tarfile.TarError, *ZIP_DAMAGE) as error:
        if isinstance(error, tarfile.ReadError) or place.suffix.lower() in PACKED:
            raise InputError(f"{place}: is no uncompressed tar ({error}).", hint=_PACKED) from error
        raise InputError(f"{place}: cannot be read ({error}).") from error
    names = sorted(name for name in members if _is_image(name))
    if not names:
        known = " ".join(sorted(SUFFIXES))
        raise InputError(f"{place}: holds no images.", hint=f"known suffixes: {known}")
    return {name: members[name] for name in names}


def _members(place: Path) -> Iterator[tuple[str, ImagePlace]]:
    if place.is_dir():
        for file in place.rglob("*"):
            if file.is_file():
                yield file.relative_to(place).as_posix(), ImagePlace(str(file))
    elif place.suffix.lower() == ".zip":
        yield from _of_zip(place)
    else:
        yield from _of_tar(place)


def _of_tar(path: Path) -> Iterator[tuple[str, ImagePlace]]:
    whole: dict[str, ImagePlace] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = _plain(member.name)
            if member.isreg():
                why = "is stored with holes" if member.issparse() else _why_unsafe(name)
                of = (member.offset_data, member.size, member.size)
                whole[name] = ImagePlace(str(path), *of, why=why)
            elif member.islnk():  # another name of a member before it, with the same bytes
                why = "is a link to what the archive does not hold"
                whole[name] = whole.get(_plain(member.linkname), ImagePlace(str(path), why=why))
            elif member.issym():
                whole[name] = ImagePlace(str(path), why="is a symbolic link")
    yield from whole.items()


def _of_zip(path: Path) -> Iterator[tuple[str, ImagePlace]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            name = _plain(member.filename)
            yield (
                name,
                ImagePlace(
                    str(path),
                    member.header_offset,
                    member.compress_size,
                    member.file_size,
                    member.compress_type,
                    member.CRC,
                    why="is encrypted" if member.flag_bits & 1 else _why_unsafe(name),
                ),
            )


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _why_unsafe(name: str) -> str:
    leads_out = name.startswith("/") or ".." in PurePosixPath(name).parts
    return "has a name that leads out of the archive" if leads_out else ""


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.strip(".") and part.startswith(".") for part in parts)
    has_suffix = PurePosixPath(name).suffix.lower() in SUFFIXES
    return has_suffix and not hidden and "__MACOSX" not in parts


def place_of(name: str, folder: Path, images: Mapping[str, ImagePlace] | None) -> ImagePlace | None:
    """Return where an image that a table names lies; None if it is in no archive or folder.

    Args:
        name: as the table has it.
        folder: of the table, where the name is a path.
        images: those of an archive or folder, if the names are of these.
    """
    # As it is; as Windows writes it; letters with marks as one sign, or as macOS has them.
    forms = (unicodedata.normalize(form, _plain(name)) for form in ("NFC", "NFD"))
    names = dict.fromkeys((name, _plain(name), *forms))
    if images is not None:
        return next((images[of] for of in names if of in images), None)
    return next((ImagePlace(str(folder / of)) for of in names if (folder / of).is_file()), None)
