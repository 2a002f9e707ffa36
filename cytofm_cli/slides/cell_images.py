"""Ready-cut images of single cells: files of a folder, or members of a tar or zip.

An archive is looked through once, and its members are read where they lie: nothing is extracted,
so a name in it is a name and never a path. A process that is told the place of an image needs
only that file, and no list of the others.
"""

from __future__ import annotations

import os
import tarfile
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
    """

    path: str
    offset: int | None = None
    n_bytes: int = 0
    n_unpacked: int = 0
    zipped: int | None = None
    crc: int = 0

    @property
    def key(self) -> tuple[str, int | None]:
        """Return what two names of one image have in common."""
        return os.path.abspath(self.path), self.offset  # noqa: PTH100 - it also follows `..`

    def read(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it is damaged, encrypted, or too large for an image of a cell.
        """
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
                name_and_extra = header[26:30]
                archive.seek(sum(name_and_extra[i] << (8 * (i % 2)) for i in range(4)), 1)
            data = archive.read(self.n_bytes)
        if len(data) != self.n_bytes:
            raise ValueError("the archive ends before it")
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

    Left out: what is no image by its suffix, hidden files, links and devices of a tar, and members
    whose names lead out of the archive.

    Raises:
        InputError: not there, not readable, compressed as a whole, or without images.
    """
    if not place.exists():
        raise InputError(f"{place}: no such file or folder.", hint="check the path.")
    try:
        members = dict(_members(place))
    except (tarfile.TarError, *ZIP_DAMAGE) as error:
        if isinstance(error, tarfile.ReadError) or place.suffix.lower() in (".gz", ".tgz"):
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
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                place = ImagePlace(str(path), member.offset_data, member.size, member.size)
                yield _plain(member.name), place


def _of_zip(path: Path) -> Iterator[tuple[str, ImagePlace]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir() or member.flag_bits & 1:  # encrypted
                continue
            yield (
                _plain(member.filename),
                ImagePlace(
                    str(path),
                    member.header_offset,
                    member.compress_size,
                    member.file_size,
                    member.compress_type,
                    member.CRC,
                ),
            )


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    is_safe = bool(parts) and not name.startswith("/") and ".." not in parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return is_safe and not hidden and PurePosixPath(name).suffix.lower() in SUFFIXES


def place_of(name: str, folder: Path, images: Mapping[str, ImagePlace] | None) -> ImagePlace | None:
    """Return where an image that a table names lies; None if it is in no archive or folder.

    Args:
        name: as the table has it.
        folder: of the table, where the name is a path.
        images: those of an archive or folder, if the names are of these.
    """
    if images is not None:
        return images.get(_plain(name))
    return ImagePlace(str(folder / name)) if (folder / name).is_file() else None
