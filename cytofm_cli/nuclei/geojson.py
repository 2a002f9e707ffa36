"""Write nuclei as GeoJSON that QuPath opens; `geojson_reader` reads such files.

One Feature a nucleus, in a FeatureCollection (RFC 7946 with pixel coordinates, as QuPath has
it): `id`, geometry Polygon (valid, closed, counter-clockwise) or Point; `properties.objectType`
"detection", `properties.classification`, `properties.measurements`.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from cytofm_cli.nuclei import rings
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.regions.geojson_objects import PROBABILITY

AREA: Final = "Area µm^2"
# Colours that colour-blind eyes tell apart (Okabe and Ito, 2008), by class.
_COLOURS: Final = (
    (0, 158, 115), (213, 94, 0), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233),
)  # fmt: skip
# Measurements keep so many significant digits: attention of a large slide is 1e-6.
_DIGITS: Final = 6
# Rows turned into text at once: their arrays stay in the processor's cache.
_BLOCK: Final = 1024
_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
_IDS: Final = uuid.UUID("6f1d2c52-7d0f-5a0e-9f0e-0c7f6d9a2b11")


@dataclass(frozen=True, eq=False)
class Block:
    """Some nuclei in a row, and further columns (m,) of theirs by the name that QuPath shows."""

    table: NucleusTable
    measurements: Mapping[str, NDArray[np.number]]


def write(
    handle: BinaryIO,
    blocks: Iterable[Block],
    *,
    origin_px0: tuple[float, float] = (0, 0),
    name: str = "",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write nuclei, one Feature a line, in the memory of a block.

    Args:
        handle: open for writing bytes.
        blocks: the nuclei in order; coordinates in level-0 pixels. Measurements that are not
            finite are left out, as JSON has no word for them.
        origin_px0: the point of level 0 that is (0, 0) in the file.
        name: of the slide and detector; the ids of the nuclei follow from it.
        about: what the file says of itself, as member `cytofm`.
    """
    own = b'"cytofm":' + orjson.dumps(about) + b"," if about else b""
    handle.write(b'{"type":"FeatureCollection",' + own + b'"features":[')
    row = 0
    for block in blocks:
        for first in range(0, len(block.table), _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, len(block.table)))
            part = block.table.take(rows)
            columns = {key: column[rows] for key, column in block.measurements.items()}
            lines = _lines(part, columns, np.asarray(origin_px0, np.float64), name, row)
            handle.write(b",\n" if row else b"\n")
            handle.write(lines)
            row += len(part)
    handle.write(b"\n]}\n")


def _lines(
    table: NucleusTable,
    measurements: Mapping[str, NDArray[np.number]],
    origin_px0: NDArray[np.float64],
    name: str,
    first: int,
) -> bytes:
    """Return the Features of some nuclei, one a line; `first` is the row of the first one."""
    classes = [
        {"name": label, "color": _COLOURS[i % len(_COLOURS)]}
        for i, label in enumerate(table.classes)
    ]
    measured = _measurements(
        {AREA: table.area_um2, PROBABILITY: table.probability, **measurements}, len(table)
    )
    features = zip(
        _ids(name, first, len(table)),
        _geometries(table, origin_px0),
        table.class_id.tolist(),
        measured,
        strict=True,
    )
    return b",\n".join(
        orjson.dumps(
            {
                "type": "Feature",
                "id": number,
                "geometry": shape,
                "properties": {
                    "objectType": "detection",
                    "classification": classes[class_id],
                    "measurements": values,
                },
            },
            None,
            _OPTIONS,
        )
        for number, shape, class_id, values in features
    )


def _ids(name: str, first: int, count: int) -> Iterator[str]:
    """Yield the ids of rows: `uuid.uuid5` of the name and the row, which here takes a third."""
    start = hashlib.sha1(_IDS.bytes + f"{name}/".encode(), usedforsecurity=False)
    for row in range(first, first + count):
        digest = start.copy()
        digest.update(b"%d" % row)
        h = digest.hexdigest()
        variant = "89ab"[int(h[16], 16) & 3]  # RFC 9562: version 5 and variant 10 in its bits
        yield f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{variant}{h[17:20]}-{h[20:32]}"


def _measurements(
    columns: Mapping[str, NDArray[np.number]], count: int
) -> Iterator[dict[str, float]]:
    """Yield the finite values of each row by name."""
    names = list(columns)
    values = _rounded(np.stack(list(columns.values()), axis=1)) if count else np.zeros((0, 0))
    unknown = set(np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist())
    for row, numbers in enumerate(values.tolist()):
        pairs = zip(names, numbers, strict=True)
        if row in unknown:
            yield {key: value for key, value in pairs if math.isfinite(value)}
        else:
            yield dict(pairs)


def _geometries(table: NucleusTable, origin_px0: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Yield the geometry of each row: a valid Polygon, or a Point where there is none."""
    points = _on_grid(table.contour_px0, origin_px0)
    centres = _on_grid(table.xy_px0, origin_px0)
    start = table.contour_start
    sure = rings.plainly_valid(points, start).tolist()
    # Each ring with its first point behind it: row i begins i points later than it did.
    length = np.diff(start)
    source = np.arange(len(points) + len(start) - 1) - np.repeat(np.arange(len(length)), length + 1)
    ends = start[1:] + np.arange(len(length))
    source[ends[length > 0]] = start[:-1][length > 0]
    closed = points[np.minimum(source, max(0, len(points) - 1))] if len(points) else points
    for row, (first, end, centre) in enumerate(
        zip((start[:-1] + np.arange(len(length))).tolist(), ends.tolist(), centres, strict=True)
    ):
        if sure[row]:
            yield {"type": "Polygon", "coordinates": (closed[first : end + 1],)}
            continue
        ring = rings.valid_ring(closed[first:end])
        if len(ring):
            whole = np.concatenate([ring, ring[:1]])
            yield {"type": "Polygon", "coordinates": (whole,)}
        else:
            yield {"type": "Point", "coordinates": centre}


def _on_grid(xy_px0: NDArray[np.float32], origin_px0: NDArray[np.float64]) -> NDArray[np.float64]:
    # Nothing is -0.0: adding 0 makes it 0.0.
    return np.round(xy_px0.astype(np.float64) - origin_px0, rings.DECIMALS) + 0.0


def _rounded(columns: NDArray[np.number]) -> NDArray[np.float64]:
    """Round to `_DIGITS` significant digits."""
    values = np.asarray(columns, np.float64)
    size = np.where(np.isfinite(values) & (values != 0), np.abs(values), 1.0)
    # Rounded as decimal fractions: a division by a power of ten prints short, a product long.
    digits = np.clip(_DIGITS - 1 - np.floor(np.log10(size)), 0, 15)
    scale = 10.0**digits
    rounded: NDArray[np.float64] = np.round(values * scale) / scale
    return rounded
