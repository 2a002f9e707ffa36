"""The arrays of a store as tables in memory, one row a tile, nucleus or instance.

Coordinates are (x, y) with the top-left corner of the first pixel at (0, 0), so the centre of
that pixel is (0.5, 0.5): scaling between resolutions is a product, as in QuPath. Polygons are
open lists of points (the first point is not repeated).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.store import schema
from cytofm_cli.store.records import EmbeddingRecord

NUCLEUS = "nucleus"
ABSTAINED = "abstained"  # the class of a nucleus of which nothing is said
MAX_CLASSES = 256
MIN_POLYGON_POINTS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """The tiles of a slide, one row a tile.

    Attributes:
        xy_px0: int32 (n, 2), top-left corners, level-0 pixels.
        foreground: float32 (n,), foreground fraction.
        focus: float32 (n,), focus score in [0, 1].
        plane: int16 (n,), focal plane, of the sharpest where planes are fused; None: the slide
            has one.
        quality: the other columns of quality by name, float32 (n,); none in old stores.
        label: int16 (n,), index into `labels`, -1 for none: the region that labels each tile;
            None without regions.
        labels: names of the classes of regions that label tiles.
    """

    xy_px0: NDArray[np.int32]
    foreground: NDArray[np.float32]
    focus: NDArray[np.float32]
    plane: NDArray[np.int16] | None = None
    quality: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    label: NDArray[np.int16] | None = None
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.xy_px0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """A bag as it lies in a store, one row an instance.

    Attributes:
        values: float16 or float32 (n, d).
        xy_px0: int32 (n, 2), corner of a tile or centre of a cell, level-0 pixels.
        encoder: key of the encoder in the store.
        record: of the step that made it.
    """

    values: NDArray[np.floating[Any]]
    xy_px0: NDArray[np.int32]
    encoder: str
    record: EmbeddingRecord

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True, eq=False)
class NucleusTable:
    """The nuclei of an image or of a slide, one row a nucleus.

    Attributes:
        xy_px0: float32 (m, 2), centroids.
        area_um2: float32 (m,), µm²; NaN where only a point is known.
        probability: float32 (m,), the detector's confidence, in [0, 1].
        class_id: uint8 (m,), index into `classes`.
        contour_px0: float32 (p, 2), the points of all polygons, one after the other.
        contour_start: int64 (m + 1,), where each polygon starts; a row without a polygon
            has length 0.
        classes: names of the classes.
        columns: what the detector measured besides, by name: float32 (m,), NaN where unknown.
    """

    xy_px0: NDArray[np.float32]
    area_um2: NDArray[np.float32]
    probability: NDArray[np.float32]
    class_id: NDArray[np.uint8]
    contour_px0: NDArray[np.float32]
    contour_start: NDArray[np.int64]
    classes: tuple[str, ...] = (NUCLEUS,)
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xy_px0)

    def polygon(self, row: int) -> NDArray[np.float32]:
        """Return the polygon of one row, float32 (k, 2); k is 0 for a bare point."""
        start, stop = self.contour_start[row : row + 2]
        return self.contour_px0[start:stop]

    def take(self, rows: NDArray[np.intp]) -> NucleusTable:
        """Return the given rows, in the given order."""
        lengths = np.diff(self.contour_start)[rows]
        start = _starts(lengths)
        # Point i of the output comes from the row that owns it: one gather, no loop.
        offset = np.repeat(self.contour_start[:-1][rows] - start[:-1], lengths)
        return replace(
            self,
            xy_px0=self.xy_px0[rows],
            area_um2=self.area_um2[rows],
            probability=self.probability[rows],
            class_id=self.class_id[rows],
            contour_px0=self.contour_px0[offset + np.arange(start[-1])],
            contour_start=start,
            columns={name: column[rows] for name, column in self.columns.items()},
        )

    def moved(
        self, *, scale: float = 1.0, shift_px: tuple[float, float] = (0.0, 0.0)
    ) -> NucleusTable:
        """Map every point p to `scale` · p + `shift_px`; areas are physical and stay."""
        shift = np.asarray(shift_px, np.float64)

        def move(xy: NDArray[np.float32]) -> NDArray[np.float32]:
            # In float64: a slide's coordinates leave float32 with 1/64 px at 100 000 px.
            return (xy.astype(np.float64) * scale + shift).astype(np.float32)

        return replace(self, xy_px0=move(self.xy_px0), contour_px0=move(self.contour_px0))

    def sorted(self) -> NucleusTable:
        """Return the rows in canonical order: by y, then x, then the other columns.

        The order does not depend on the order in which tiles were read.
        """
        keys = (
            np.diff(self.contour_start),
            self.class_id,
            self.probability,
            self.area_um2,
            self.xy_px0[:, 0],
            self.xy_px0[:, 1],
        )
        return self.take(np.lexsort(keys))

    def validate(self, where: str = "nuclei") -> NucleusTable:
        """Return the table itself if its columns fit together.

        Args:
            where: what the message starts with: a path or a detector's name.

        Raises:
            InputError: a wrong shape, dtype or range.
        """
        problem = _problem(self)
        if problem:
            raise InputError(f"{where}: {problem}.")
        return self


def empty_table(classes: Sequence[str] = (NUCLEUS,)) -> NucleusTable:
    """Return a table without rows."""
    return make_table(np.zeros((0, 2)), np.zeros(0), polygons=[], classes=classes)


def make_table(
    xy_px0: NDArray[np.floating],
    area_um2: NDArray[np.floating],
    *,
    polygons: Sequence[NDArray[np.floating]] | None = None,
    probability: NDArray[np.floating] | None = None,
    class_id: NDArray[np.integer] | None = None,
    classes: Sequence[str] = (NUCLEUS,),
    columns: Mapping[str, NDArray[np.floating]] | None = None,
) -> NucleusTable:
    """Put columns together and cast them to the table's dtypes.

    Args:
        xy_px0: (m, 2) centroids.
        area_um2: (m,) areas.
        polygons: m arrays (k, 2); None: points only.
        probability: (m,) in [0, 1]; None: 1.
        class_id: (m,) index into `classes`; None: 0.
        classes: names of the classes.
        columns: (m,) what else was measured, by name.
    """
    count = len(xy_px0)
    rings = polygons if polygons is not None else [np.zeros((0, 2))] * count
    points = np.concatenate([np.zeros((0, 2)), *rings])
    return NucleusTable(
        xy_px0=np.asarray(xy_px0, np.float32).reshape(count, 2),
        area_um2=np.asarray(area_um2, np.float32),
        probability=np.ones(count, np.float32)
        if probability is None
        else np.asarray(probability, np.float32),
        class_id=np.zeros(count, np.uint8) if class_id is None else class_id.astype(np.uint8),
        contour_px0=points.astype(np.float32),
        contour_start=_starts(np.array([len(ring) for ring in rings], np.int64)),
        classes=tuple(classes),
        columns={name: np.asarray(c, np.float32) for name, c in (columns or {}).items()},
    )


def concatenate(tables: Sequence[NucleusTable]) -> NucleusTable:
    """Join tables row-wise; classes are matched by name, in order of first appearance.

    A column that a table lacks is NaN in its rows.

    Raises:
        InputError: more than 256 classes together.
    """
    if not tables:
        return empty_table()
    # The names of tables that have rows come first; an empty table must not change the rest.
    filled = [table for table in tables if len(table)] or list(tables[:1])
    classes = tuple(dict.fromkeys(name for table in filled for name in table.classes))
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{len(classes)} classes of nuclei; a table holds {MAX_CLASSES}.")
    ids = [np.array([classes.index(n) for n in t.classes], np.uint8)[t.class_id] for t in filled]
    return NucleusTable(
        xy_px0=np.concatenate([table.xy_px0 for table in filled]),
        area_um2=np.concatenate([table.area_um2 for table in filled]),
        probability=np.concatenate([table.probability for table in filled]),
        class_id=np.concatenate(ids),
        contour_px0=np.concatenate([table.contour_px0 for table in filled]),
        contour_start=_starts(np.concatenate([np.diff(t.contour_start) for t in filled])),
        classes=classes,
        columns=_joined_columns(filled),
    )


def _joined_columns(tables: Sequence[NucleusTable]) -> dict[str, NDArray[np.float32]]:
    names = dict.fromkeys(name for table in tables for name in table.columns)
    return {
        name: np.concatenate(
            [t.columns.get(name, np.full(len(t), np.nan, np.float32)) for t in tables]
        )
        for name in names
    }


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _problem(table: NucleusTable) -> str | None:
    count = len(table.xy_px0)
    columns: dict[str, tuple[NDArray[Any], type, tuple[int, ...]]] = {
        "xy_px0": (table.xy_px0, np.float32, (count, 2)),
        "area_um2": (table.area_um2, np.float32, (count,)),
        "probability": (table.probability, np.float32, (count,)),
        "class_id": (table.class_id, np.uint8, (count,)),
        "contour_px0": (table.contour_px0, np.float32, (len(table.contour_px0), 2)),
        "contour_start": (table.contour_start, np.int64, (count + 1,)),
        **{name: (column, np.float32, (count,)) for name, column in table.columns.items()},
    }
    for name, (array, dtype, shape) in columns.items():
        if array.dtype != dtype or array.shape != shape:
            return f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
    for name in table.columns:
        if name not in schema.NUCLEI_COLUMNS:
            known = ", ".join(schema.NUCLEI_COLUMNS)
            return f"the layout of a store has no column {name} of nuclei (it has {known})"
    lengths = np.diff(table.contour_start)
    if table.contour_start[0] != 0 or table.contour_start[-1] != len(table.contour_px0):
        return "contour_start does not span contour_px0"
    if np.any((lengths != 0) & (lengths < MIN_POLYGON_POINTS)):
        return "a polygon has fewer than 3 points"
    if not (np.isfinite(table.xy_px0).all() and np.isfinite(table.contour_px0).all()):
        return "a coordinate is not a finite number"
    if np.any(table.area_um2 < 0):
        return "an area is negative"
    if not np.all((table.probability >= 0) & (table.probability <= 1)):
        return "a probability is outside 0..1"
    if not 1 <= len(table.classes) <= MAX_CLASSES:
        return f"{len(table.classes)} classes; expected 1 to {MAX_CLASSES}"
    if count and int(table.class_id.max()) >= len(table.classes):
        return "a class has no name"
    return None
