"""A map as a pyramidal OME-TIFF: RGB tiles in SubIFDs, written strip by strip.

Memory is that of a strip of tiles, whatever the size; the tiles of lower levels wait on the disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.pictures.pyramid import Level, halved, level_sizes, padded
from cytofm_cli.work.files import replacing

Image = NDArray[np.uint8]
TILE: Final = 256  # px
_BIG: Final = 2**30  # px; classic TIFF ends at 4 GiB


@dataclass(frozen=True)
class Plane:
    """What is written.

    Attributes:
        width, height: of the map, px.
        mpp: µm to a pixel of it.
        name: of the image.
        text: what it shows.
    """

    width: int
    height: int
    mpp: float
    name: str
    text: str


def write_ome_tiff(path: Path, plane: Plane, strip: Callable[[int, int], Image]) -> None:
    """Write a map.

    Args:
        path: the file, complete or not at all.
        plane: of what size and name.
        strip: gives rows of it, (rows, width, 3), by (first row, number of rows).

    Raises:
        OutputError, DiskFullError: it cannot be written.
    """
    import tifffile

    n_levels = len(level_sizes(max(plane.width, plane.height)))
    widths, heights = _halves(plane.width, n_levels), _halves(plane.height, n_levels)
    with replacing(path) as partial:
        below = Level(widths[1:], _encode, path.parent, TILE) if n_levels > 1 else None
        levels = [] if below is None else below.levels()
        big = plane.width * plane.height > _BIG
        try:
            with tifffile.TiffWriter(partial, bigtiff=big) as out:
                for number, (width, height) in enumerate(zip(widths, heights, strict=True)):
                    out.write(
                        levels[number - 1].tiles() if number else _finest(plane, strip, below),
                        shape=(height, width, 3),
                        dtype=np.uint8,
                        photometric="rgb",
                        compression="zlib",
                        tile=(TILE, TILE),
                        subifds=None if number else n_levels - 1,
                        subfiletype=int(number > 0),
                        description=None if number else ome_xml(plane).encode(),
                        metadata=None,
                        resolution=_per_cm(plane.mpp * plane.width / width),
                        resolutionunit="CENTIMETER",
                    )
        finally:
            if below is not None:
                below.close()


def _finest(
    plane: Plane, strip: Callable[[int, int], Image], below: Level | None
) -> Iterator[bytes]:
    """Yield the tiles of the finest level; hands halves on to those below."""
    plain: dict[bytes, bytes] = {}
    tops = range(0, plane.height, TILE)
    for top in tops:
        rows = strip(top, min(TILE, plane.height - top))
        if below is not None:
            below.add(halved(rows))
            if top == tops[-1]:  # before its tiles: who takes the last one does not come back
                below.finish()
        for x in range(0, plane.width, TILE):
            tile = rows[:, x : x + TILE]
            if (tile == tile[:1, :1]).all():
                key = tile[0, 0].tobytes()
                if key not in plain:
                    plain[key] = _encode(padded(np.ascontiguousarray(tile), TILE))
                yield plain[key]
            else:
                yield _encode(padded(np.ascontiguousarray(tile), TILE))


def _halves(side: int, n: int) -> list[int]:
    sides = [side]
    while len(sides) < n:
        sides.append((sides[-1] + 1) // 2)
    return sides


def _encode(tile: Image) -> bytes:
    return zlib.compress(np.ascontiguousarray(tile).tobytes(), 6)


def _per_cm(mpp: float) -> tuple[float, float]:
    return 1e4 / mpp, 1e4 / mpp


def ome_xml(plane: Plane) -> str:
    """Return the OME-XML (2016-06); tifffile's own has a UUID that is never the same."""
    facts: dict[str, Any] = {"SizeX": plane.width, "SizeY": plane.height}
    sizes = " ".join(f'{key}="{value}"' for key, value in facts.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'Creator="cytofm {__version__}">'
        f'<Image ID="Image:0" Name={quoteattr(_xml(plane.name))}>'
        f"<Description>{escape(_xml(plane.text))}</Description>"
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" Interleaved="true" '
        f'{sizes} SizeC="3" SizeZ="1" SizeT="1" '
        f'PhysicalSizeX="{plane.mpp:.9g}" PhysicalSizeXUnit="µm" '
        f'PhysicalSizeY="{plane.mpp:.9g}" PhysicalSizeYUnit="µm">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
        "</Pixels></Image></OME>"
    )


def _xml(text: str) -> str:
    """Return a text without what XML cannot hold: control signs, halves of letters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
