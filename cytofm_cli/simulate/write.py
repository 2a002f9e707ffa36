"""Slide files, written as their tiles come: memory is that of one row of parts.

OME-TIFF has its lower levels in SubIFDs; the SVS-like file is laid out as by an Aperio scanner.

Letters: H rows, W columns, C colours.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.pictures.pyramid import Level, level_sizes
from cytofm_cli.simulate.cohort import Slide
from cytofm_cli.simulate.parts import PART, Part, encode_jpeg, encode_labels
from cytofm_cli.simulate.preset import Optics
from cytofm_cli.simulate.render import TILE
from cytofm_cli.units import UM_PX_AT_1X

Image = NDArray[np.uint8]
_BIG: Final = 2**31  # px; classic TIFF ends at 4 GiB
_THUMBNAIL_PX: Final = 512
_APERIO: Final = "Aperio Image Library v12.0.15 \r\n"
_SAMPLING: Final = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}
_JPEG: Final[dict[str, Any]] = {
    "compression": "jpeg",
    "photometric": "rgb",
    "tile": (TILE, TILE),
    "dtype": np.uint8,
}


@dataclass(frozen=True, kw_only=True)
class Film:
    """How a slide is kept.

    Attributes:
        mpp: µm/px of the finest level.
        blank: colour (3,) of what is left out.
        optics: how JPEG is encoded.
    """

    mpp: float
    blank: Image
    optics: Optics

    def encode(self, tile: Image) -> bytes:
        """Encode a whole tile."""
        return encode_jpeg(tile, self.optics)

    @property
    def jpeg(self) -> dict[str, Any]:
        """What tifffile is told of the tiles."""
        return {**_JPEG, "subsampling": _SAMPLING[self.optics.jpeg_colour]}


def rows_of(parts: Iterator[Part], size_px: int) -> Iterator[list[Part]]:
    """Yield the parts of a slide row by row, and plane by plane."""
    row: list[Part] = []
    for part in parts:
        row.append(part)
        if len(row) == -(-size_px // PART):
            yield row
            row = []


def tiles_in_order(
    parts_tiles: Sequence[Sequence[bytes | None]], size_px: int
) -> Iterator[bytes | None]:
    """Yield the tiles of a row of parts, row by row over the width of the slide."""
    across = [-(-min(PART, size_px - x) // TILE) for x in range(0, size_px, PART)]
    for row in range(len(parts_tiles[0]) // across[0]):
        for tiles, n in zip(parts_tiles, across, strict=True):
            yield from tiles[row * n : (row + 1) * n]


def write_ome(path: Path, rows: Iterator[list[Part]], slide: Slide, film: Film) -> None:
    """Write an OME-TIFF: a pyramid of JPEG tiles, one a focal plane."""
    sizes = level_sizes(slide.size_px)
    text = ome_xml(slide, film.mpp).encode()
    with Tiles(sizes, path.parent, film) as tiles, _writer(path, slide) as out:
        for level, size in enumerate(sizes):
            out.write(
                tiles.finest(rows, slide) if not level else tiles.below[level - 1].tiles(),
                shape=(slide.planes, size, size, 3),
                subifds=None if level else len(sizes) - 1,
                subfiletype=int(level > 0),
                description=None if level else text,
                metadata=None,
                resolution=_per_cm(film.mpp * slide.size_px / size),
                resolutionunit="CENTIMETER",
                **film.jpeg,
            )


def ome_xml(slide: Slide, mpp: float) -> str:
    """Return the OME-XML (2016-06) of a slide; tifffile's own has a UUID that is never the same."""
    side = slide.size_px
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'Creator="cytofm {__version__}, simulated">'
        f'<Image ID="Image:0" Name="{slide.slide_id}">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" Interleaved="true" '
        f'SizeX="{side}" SizeY="{side}" SizeC="3" SizeZ="{slide.planes}" SizeT="1" '
        f'PhysicalSizeX="{mpp:g}" PhysicalSizeXUnit="µm" '
        f'PhysicalSizeY="{mpp:g}" PhysicalSizeYUnit="µm" '
        f'PhysicalSizeZ="{slide.plane_um:g}" PhysicalSizeZUnit="µm">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        f'<TiffData IFD="0" PlaneCount="{slide.planes}"/>'
        "</Pixels></Image></OME>"
    )


def write_svs(path: Path, rows: Iterator[list[Part]], slide: Slide, film: Film) -> None:
    """Write a TIFF as Aperio's scanners do: level 0, a thumbnail, every second level."""
    sizes = level_sizes(slide.size_px)
    power = round(UM_PX_AT_1X / film.mpp)
    tail = f"|AppMag = {power}|MPP = {film.mpp:.6g}|Simulated = cytofm"
    side = slide.size_px
    whole = f"{_APERIO}{side}x{side} [0,0 {side}x{side}] ({TILE}x{TILE})"
    codec = f"JPEG/RGB Q={film.optics.jpeg_quality}"
    with Tiles(sizes, path.parent, film) as tiles, _writer(path, slide) as out:
        for level, size in enumerate(sizes[::2]):
            out.write(
                tiles.below[2 * level - 1].tiles() if level else tiles.finest(rows, slide),
                shape=(size, size, 3),
                description=f"{whole}{f' -> {size}x{size}' * (level > 0)} {codec}{tail}",
                metadata=None,
                resolution=_per_cm(film.mpp * side / size),
                resolutionunit="CENTIMETER",
                **film.jpeg,
            )
            if not level:
                small = tiles.thumbnail
                h, w = small.shape[:2]
                text = f"{_APERIO}{side}x{side} -> {w}x{h} - {tail}"
                out.write(
                    small, photometric="rgb", compression="zlib", metadata=None,
                    rowsperstrip=h, description=text,
                )  # fmt: skip


def write_jpeg(path: Path, rows: Iterator[list[Part]], slide: Slide, film: Film) -> None:
    """Write one JPEG; its density states the resolution."""
    path.write_bytes(with_jpeg_density(film.encode(_whole(rows, slide, film)), film.mpp))


def write_png(path: Path, rows: Iterator[list[Part]], slide: Slide, film: Film) -> None:
    """Write one PNG; its density states the resolution."""
    data = bytes(imagecodecs.png_encode(_whole(rows, slide, film)))
    path.write_bytes(with_png_density(data, film.mpp))


def _whole(rows: Iterator[list[Part]], slide: Slide, film: Film) -> Image:
    """Return the pixels of a picture, (H, W, 3)."""
    side = slide.size_px
    image = np.empty((side, side, 3), np.uint8)
    image[:] = film.blank
    for number, row in enumerate(rows):
        for place, part in enumerate(row):
            if part.pixels is not None:
                h, w = part.pixels.shape[:2]
                x, y = place * PART, number * PART
                image[y : y + h, x : x + w] = part.pixels
    return image


def write_labels(path: Path, tiles: Iterator[bytes], slide: Slide, mpp: float) -> None:
    """Write a label image: one level of uint32 in Deflate tiles."""
    with _writer(path, slide) as out:
        out.write(
            tiles,
            shape=(slide.size_px, slide.size_px),
            dtype=np.uint32,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            resolution=_per_cm(mpp),
            resolutionunit="CENTIMETER",
            metadata=None,
        )


class Tiles:
    """The tiles of a slide: the finest ones as they come, the others in files that wait."""

    def __init__(self, sizes: list[int], folder: Path, film: Film) -> None:
        self._film = film
        blank = np.full((TILE, TILE, 3), film.blank, np.uint8)
        self._blank = encode_jpeg(blank, film.optics, small=True)
        self._top = Level(sizes[1:], film.encode, folder, TILE) if len(sizes) > 1 else None
        self.thumbnail: Image = np.zeros((1, 1, 3), np.uint8)

    def __enter__(self) -> Tiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._top is not None:
            self._top.close()

    @property
    def below(self) -> list[Level]:
        """The levels below the finest, filled when all of `finest` was taken."""
        return [] if self._top is None else self._top.levels()

    def finest(self, rows: Iterator[list[Part]], slide: Slide) -> Iterator[bytes]:
        """Yield the tiles of level 0; fills the levels below it."""
        side = slide.size_px
        a_plane = -(-side // PART)
        for number, row in enumerate(rows):
            strip = self._halves(row, side, number % a_plane)
            if number < a_plane:
                self._small(strip, side)
            if self._top is not None:
                self._top.add(strip)
                # Before the tiles: who takes the last one does not come back.
                if number % a_plane == a_plane - 1:
                    self._top.finish()
            for tile in tiles_in_order([part.tiles for part in row], side):
                yield self._blank if tile is None else tile

    def _halves(self, row: list[Part], side: int, number: int) -> Image:
        """Return half of the pixels of a row of parts."""
        h = -(-min(PART, side - number * PART) // 2)
        strip = np.empty((h, -(-side // 2), 3), np.uint8)
        strip[:1] = self._film.blank
        strip[1:] = strip[:1]  # along memory
        for place, part in enumerate(row):
            if part.half is not None:
                x = place * PART // 2
                strip[:, x : x + part.half.shape[1]] = part.half
        return strip

    def _small(self, strip: Image, side: int) -> None:
        """Add a strip to the thumbnail."""
        factor = max(1, side // 2 // _THUMBNAIL_PX)
        size = (max(1, strip.shape[1] // factor), max(1, strip.shape[0] // factor))
        small = cv2.resize(strip, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        above = [] if self.thumbnail.shape[1] == 1 else [self.thumbnail]
        self.thumbnail = np.concatenate([*above, small])


def with_jpeg_density(data: bytes, mpp: float) -> bytes:
    """Return a JPEG whose JFIF header states px/cm, if it fits its 16 bits."""
    per_cm = round(1e4 / mpp)
    if data[6:11] != b"JFIF\0" or per_cm > 0xFFFF:
        return data
    return data[:13] + struct.pack(">BHH", 2, per_cm, per_cm) + data[18:]


def with_png_density(data: bytes, mpp: float) -> bytes:
    """Return a PNG with a chunk pHYs, px/m, after its header."""
    per_m = round(1e6 / mpp)
    content = b"pHYs" + struct.pack(">IIB", per_m, per_m, 1)
    chunk = struct.pack(">I", 9) + content + struct.pack(">I", zlib.crc32(content))
    end_of_header = 8 + 25
    return data[:end_of_header] + chunk + data[end_of_header:]


class Waiting:
    """Encoded tiles that wait in a file without a name.

    Args:
        folder: on whose disk.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until `close`
        self._lengths: list[int] = []
        self._blank = encode_labels(np.zeros((TILE, TILE), np.uint32))

    def add(self, data: bytes | None) -> None:
        """Take a tile; None: blank, which takes no room."""
        self._lengths.append(0 if data is None else len(data))
        self._file.write(data or b"")

    def tiles(self) -> Iterator[bytes]:
        """Yield the tiles in their order."""
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length) if length else self._blank

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _writer(path: Path, slide: Slide) -> tifffile.TiffWriter:
    return tifffile.TiffWriter(path, bigtiff=slide.size_px**2 * slide.planes > _BIG)


def _per_cm(mpp: float) -> tuple[float, float]:
    return 1e4 / mpp, 1e4 / mpp
