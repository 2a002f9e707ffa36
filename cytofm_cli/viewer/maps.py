"""Attention and scores that RUNs have left in a store, at the places that they speak of.

Legend: N instances, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.maps import measurement, percentile
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.units import Size
from cytofm_cli.viewer import draw
from cytofm_cli.viewer.places import Places, find_places
from cytofm_cli.viewer.zoom import Region

_CELL_UM = 12.0  # a disc over a nucleus and some of its cell


@dataclass(frozen=True)
class MapKind:
    """What a RUN has said of a slide.

    Attributes:
        run: its key in the store.
        unit: "tile" or "cell".
        columns: names of the columns, as they are stored.
        predicted: the slide's class by the RUN; None: not said.
        basis: which models were asked; None: not said.
    """

    run: str
    unit: str
    columns: tuple[str, ...]
    predicted: str | None
    basis: str | None

    @property
    def titles(self) -> list[str]:
        """The columns as a page names them."""
        return [measurement(column) for column in self.columns]


@dataclass(frozen=True, eq=False)
class Map:
    """Values and places of the instances of a slide.

    Attributes:
        places: corners of tiles, or centres of cells.
        values_NK: as they are stored.
        side_px0: of a tile; None for cells.
    """

    places: Places
    values_NK: NDArray[np.float32]
    side_px0: float | None

    def centres(self) -> NDArray[np.float32]:
        """Return the middle of each instance, (N, 2) level-0 pixels."""
        return self.places.xy_px0 + np.float32((self.side_px0 or 0.0) / 2)


def kinds_of(store: Store) -> tuple[list[MapKind], list[str]]:
    """List what RUNs have said of a slide, and what is left out and why."""
    kinds, notes = [], []
    for step in sorted(store.steps):
        if not step.startswith("attention/"):
            continue
        _, run, unit = step.split("/")
        record = store.attention_record(run, unit)
        if (why := store.why_stale(step)) is not None:
            notes.append(f"{step} is not shown: it is out of date ({why}).")
        elif record is not None:
            kinds.append(MapKind(run, unit, record.columns, record.predicted, record.basis))
    return kinds, notes


def read_map(store: Store, kind: MapKind) -> Map:
    """Read what a RUN has said.

    Raises:
        StoreError: damaged, or the instances that it speaks of are gone.
    """
    step = schema.attention_step(kind.run, kind.unit)
    values_NK = store.read(f"{step}/values")
    xy_px0 = _instances(store, kind)
    if xy_px0 is None or len(xy_px0) != len(values_NK):
        raise StoreError(
            f"{store.path}: the {kind.unit}s that RUN {kind.run} has scored are gone.",
            hint="score the store again: `cytofm mil score`",
        )
    side = float(store.tile.tile_px0) if kind.unit == "tile" else None
    return Map(find_places(xy_px0, Size(*store.slide.size_px0)), values_NK, side)


def _instances(store: Store, kind: MapKind) -> NDArray[np.number] | None:
    """Return the places of the rows of a bag, or of the nuclei whose classes were counted."""
    record = store.attention_record(kind.run, kind.unit)
    assert record is not None, "asked for after it was found"
    for bag, source in store.embedding_records(kind.unit).items():
        if source.mark == record.input_fingerprint:
            return store.read(f"{bag}/xy_px0")
    parents = store.steps[schema.attention_step(kind.run, kind.unit)].made_from or {}
    for name in parents:
        if name.startswith("classes/") and name in store.steps:
            return store.nuclei_xy_px0(store.classes_record(name.partition("/")[2]).detector)
    return None


def shares(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return values as shares of the slide's instances that are lower, 0..1: raw ones are tiny."""
    return percentile(values_N) / 100


def draw_map(
    region: Region, of: Map, rgb_N3: NDArray[np.uint8], share_N: NDArray[np.floating], mpp: float
) -> draw.Canvas:
    """Draw the instances of a square in their colours; the highest lie on top."""
    radius_px0 = _CELL_UM / 2 / mpp
    margin = of.side_px0 or radius_px0 + 2 * region.scale
    rows = of.places.inside(
        region.x_px0 - margin,
        region.y_px0 - margin,
        region.x_px0 + region.side_px0 + margin,
        region.y_px0 + region.side_px0 + margin,
    )
    rows = rows[np.argsort(share_N[rows], kind="stable")]
    xy_px0, rgb = of.places.xy_px0[rows], rgb_N3[rows]
    if of.side_px0 is not None:
        return draw.squares(region, xy_px0, of.side_px0, rgb, filled=True)
    return draw.discs(region, xy_px0, max(radius_px0 / region.scale, 1.0), rgb)
