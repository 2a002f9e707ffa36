"""Which cells of many stores a gallery shows: ranked store by store, then together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.report import orders
from cytofm_cli.report.config import GalleryConfig
from cytofm_cli.report.crops import CellPicture, cell_pictures, outlines_of
from cytofm_cli.store import io, schema

Key = tuple[str, str]  # name and group of an order
JPEG_QUALITY = 90


@dataclass(frozen=True)
class StoreJob:
    """What to do with one store.

    Attributes:
        slide_id: name of its slide.
        path: the store.
        config: settings of the gallery.
        rows: which nuclei to draw; (): rank them.
    """

    slide_id: str
    path: str
    config: GalleryConfig
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Ranked:
    """The first nuclei of a store in one order.

    Attributes:
        says: what the number is.
        rows_K: of the nuclei, in order.
        values_K: their numbers.
        xy_K2: their centres, level-0 pixels.
        n: how many take part.
    """

    says: str
    rows_K: NDArray[np.int64]
    values_K: NDArray[np.float64]
    xy_K2: NDArray[np.float32]
    n: int


@dataclass(frozen=True)
class Chosen:
    """A cell of a gallery.

    Attributes:
        rank: from 1.
        slide_id: its slide.
        row: among the nuclei of the slide.
        x_px0, y_px0: its centre.
        value: what it is ordered by.
    """

    rank: int
    slide_id: str
    row: int
    x_px0: int
    y_px0: int
    value: float


@dataclass
class Gallery:
    """The cells of one order.

    Attributes:
        name, group, says: see `orders.Order`.
        n: nuclei that take part.
        cells: those that are shown.
    """

    name: str
    group: str
    says: str
    n: int = 0
    cells: list[Chosen] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What it is called."""
        return f"{self.name}: {self.group}" if self.group else self.name


def rank(job: StoreJob) -> tuple[dict[Key, Ranked], dict[str, StoreError]]:
    """Rank the nuclei of a store in every order.

    Returns:
        what it has, and by the name of an order why it has not.

    Raises:
        StoreError: it has no nuclei, or is damaged.
    """
    config = job.config
    store = io.open_store(Path(job.path))
    detector = store.which_detector(config.detector)
    xy_N2 = store.nuclei_xy_px0(detector)
    unsure_N = store.read(f"{schema.nuclei_step(detector)}/probability") < config.min_probability
    ranked: dict[Key, Ranked] = {}
    lacking: dict[str, StoreError] = {}
    most = min(config.top, config.per_slide or config.top)
    for name in config.by or orders.DEFAULT:
        try:
            how: dict[str, Any] = {"encoder": config.encoder, "run": config.run}
            for order in orders.orders_of(store, name, detector, **how):
                values_N = np.where(unsure_N, np.nan, order.values_N)
                rows_K = orders.best_rows(values_N, most, lowest=config.lowest)
                n = int(np.isfinite(values_N).sum())
                ranked[name, order.group] = Ranked(
                    order.says, rows_K, values_N[rows_K], xy_N2[rows_K], n
                )
        except StoreError as error:
            lacking[name] = error
    return ranked, lacking


def draw(job: StoreJob) -> dict[int, CellPicture]:
    """Return the pictures of the chosen nuclei of a store, by row.

    Raises:
        CytofmError: there are no pixels.
    """
    config = job.config
    store = io.open_store(Path(job.path))
    detector = store.which_detector(config.detector)
    rows = np.array(job.rows, np.int64)
    pictures = cell_pictures(
        store,
        store.nuclei_xy_px0(detector)[rows],
        outlines_of(store, detector, rows),
        cell_um=config.cell_um,
        slides=config.slides,
        quality=JPEG_QUALITY,
    )
    return dict(zip(job.rows, pictures, strict=True))


def together(of_stores: Mapping[str, Mapping[Key, Ranked]], config: GalleryConfig) -> list[Gallery]:
    """Join the rankings of all stores; of equal values the first slide goes first."""
    wanted = config.by or orders.DEFAULT
    keys = sorted(
        {key for ranked in of_stores.values() for key in ranked},
        key=lambda key: (wanted.index(key[0]), _place(of_stores.values(), key)),
    )
    return [_join(key, of_stores, config) for key in keys if _is_worth_it(key, keys, config)]


def _is_worth_it(key: Key, keys: list[Key], config: GalleryConfig) -> bool:
    """Leave out, unless it was asked for, the one class that a detector gives to all nuclei."""
    alone = sum(name == key[0] for name, _ in keys) == 1
    return bool(config.by) or key[0] != orders.CLASS or not alone


def _place(rankings: Iterable[Mapping[Key, Ranked]], key: Key) -> int:
    """Return where a group stands in the first store that has it: classes keep their order."""
    return next(list(ranked).index(key) for ranked in rankings if key in ranked)


def _join(
    key: Key, of_stores: Mapping[str, Mapping[Key, Ranked]], config: GalleryConfig
) -> Gallery:
    sign = 1 if config.lowest else -1
    gallery, entries = Gallery(*key, says=""), []
    for slide in sorted(of_stores):
        ranked = of_stores[slide].get(key)
        if ranked is None:
            continue
        gallery.says = gallery.says or ranked.says
        gallery.n += ranked.n
        entries += [
            (sign * value, slide, row, xy)
            for value, row, xy in zip(
                ranked.values_K.tolist(), ranked.rows_K.tolist(), ranked.xy_K2.tolist(), strict=True
            )
        ]
    entries.sort(key=lambda entry: entry[:3])
    gallery.cells = [
        Chosen(rank, slide, row, round(x), round(y), sign * value)
        for rank, (value, slide, row, (x, y)) in enumerate(entries[: config.top], start=1)
    ]
    return gallery
