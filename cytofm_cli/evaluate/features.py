"""From labelled points to feature vectors: crops or tiles, read from slides or stores.

Crops are those of `cytofm embed --unit cell` (`nuclei.crops`).
Legend: N instances, D features.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.base import Encoder, store_key
from cytofm_cli.encoders.batches import default_batch, embed_tiles
from cytofm_cli.errors import InputError, LabelError, UsageError
from cytofm_cli.evaluate.points import Points
from cytofm_cli.nuclei.crops import CellCrops
from cytofm_cli.slides.open import open_slide
from cytofm_cli.stats.classes import as_found, class_order, is_bethesda
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store, is_store, open_store
from cytofm_cli.store.records import is_part
from cytofm_cli.tiles.field import Field, SlideField, TiledField, open_field
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import plan_reading, resolve_mpp
from cytofm_cli.tiles.source import TileSource, open_tiles, some_rows
from cytofm_cli.words import named

log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
WHITE = 255
_POINTS = 256


@dataclass(frozen=True)
class Source:
    """Where the pixels of a slide are.

    Attributes:
        slide_id: its name.
        path: a store, or a slide.
        mpp: µm/px that a manifest states for a slide.
    """

    slide_id: str
    path: str
    mpp: float | None = None

    @property
    def store(self) -> Store | None:
        """The store, opened; None for a slide."""
        return open_store(Path(self.path)) if is_store(Path(self.path)) else None


@functools.cache
def _warn_once(text: str) -> None:
    log.warning(text)


@contextlib.contextmanager
def open_source(
    source: Source, *, mpp: float | None = None, slides: Path | None = None
) -> Iterator[tuple[Field, int]]:
    """Open a slide (level 0) or the tiles of a store as one image.

    Args:
        source: the slide or store.
        mpp: µm/px of a slide that states none.
        slides: folder where the slides of stores lie now.

    Returns:
        the image, and the grey level beyond its edge.

    Raises:
        MissingMppError: nobody states the resolution.
        SlideError, StoreError: it cannot be read.
    """
    store = source.store
    if store is not None:
        fill = store.tile.fill
        with open_field(store, slides=slides) as field:
            yield field, fill
        return
    with open_slide(source.path) as reader:
        resolution = resolve_mpp(reader.info, manifest_mpp=source.mpp, slide_mpp=mpp)
        slide_mpp = resolution.mpp
        if resolution.warning:
            _warn_once(f"warning: {source.slide_id}: {resolution.warning}")
        plan = plan_reading(
            reader.info, slide_mpp=slide_mpp, target_mpp=slide_mpp, tile_px=1, tolerance=0.0
        )
        yield SlideField(reader, plan, np.zeros((0, 2), np.int32), WHITE), WHITE


def locate(
    points: Points,
    sources: Sequence[Source],
    *,
    mpp: float | None = None,
    slides: Path | None = None,
) -> tuple[Points, int]:
    """Check that all points lie on their slides; leave out those whose pixels are not kept.

    A store that keeps pixels keeps those of its tiles only.

    Returns:
        the points that can be read, and how many cannot.

    Raises:
        LabelError: a point beyond the edge of its slide, or none that can be read.
    """
    kept: list[int] = []
    for source in sources:
        rows = points.of_slide(source.slide_id)
        if not len(rows):
            continue
        with open_source(source, mpp=mpp, slides=slides) as (field, _):
            xy = points.xy_px0[rows] / field.downsample
            size = np.array(field.size_px) + 1.0  # a level is rounded to whole pixels
            outside = np.any((xy < 0) | (xy > size), axis=1)
            if outside.any():
                first = points.xy_px0[rows[outside][0]]
                raise LabelError(
                    f"slide {source.slide_id}: {int(outside.sum())} point(s) lie outside it, the "
                    f"first at x {first[0]:g}, y {first[1]:g}; it has "
                    f"{field.size_px.w * field.downsample:.0f} × "
                    f"{field.size_px.h * field.downsample:.0f} px.",
                    hint="x and y are level-0 pixels from the top left corner",
                )
            there = np.ones(len(rows), dtype=bool)
            if isinstance(field, TiledField):
                there = _in_tiles(xy, field)
            kept.extend(rows[there].tolist())
    if not kept:
        raise LabelError("no point lies in a tile that the stores keep.", hint="give the slides")
    return points.take(sorted(kept)), len(points) - len(kept)


def _in_tiles(xy_N2: NDArray[np.float64], field: TiledField) -> NDArray[np.bool_]:
    """Tell which points lie in a tile; some at a time, as a store may have many of both."""
    boxes = np.array(field.boxes, dtype=np.float64).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    there = np.zeros(len(xy_N2), dtype=bool)
    for start in range(0, len(xy_N2), _POINTS):
        part = xy_N2[start : start + _POINTS, None]
        in_box = np.all((part >= low) & (part <= high), axis=2)
        there[start : start + _POINTS] = np.any(in_box, axis=1)
    return there


@contextlib.contextmanager
def open_crops(
    source: Source,
    xy_px0: NDArray[np.floating],
    *,
    crop_um: float,
    mpp: float | None = None,
    slides: Path | None = None,
) -> Iterator[CellCrops]:
    """Open the crops around points of a slide or store.

    Args:
        source: the slide or store.
        xy_px0: centres, (N, 2), level-0 pixels.
        crop_um: side of a crop, µm.
        mpp: µm/px of a slide that states none.
        slides: folder where the slides of stores lie now.
    """
    with open_source(source, mpp=mpp, slides=slides) as (field, fill):
        side_px = max(1, round(crop_um / field.mpp))
        yield CellCrops(field, xy_px0.astype(np.float32), side_px=side_px, fill=fill)


def cell_features(
    points: Points,
    sources: Sequence[Source],
    encoder: Encoder,
    *,
    crop_um: float,
    mpp: float | None = None,
    slides: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int = 1,
    report: Report = lambda done, total: None,
) -> NDArray[np.float32]:
    """Encode a crop around every point.

    Args:
        points: where; sorted by slide.
        sources: of all their slides.
        encoder: turns crops into vectors.
        crop_um: side of a crop, µm.
        mpp: µm/px of slides that state none.
        slides: folder where the slides of stores lie now.
        device: what the batch size is chosen for.
        batch_size: crops at a time.
        threads: that read ahead.
        report: called with (done, total) instances.

    Returns:
        float32 (N, D) in the order of the points.
    """

    @contextlib.contextmanager
    def crops(source: Source, rows: NDArray[np.int64]) -> Iterator[TileSource]:
        how: dict[str, Any] = {"crop_um": crop_um, "mpp": mpp, "slides": slides}
        with open_crops(source, points.xy_px0[rows], **how) as opened:
            yield opened

    return _encode(points, sources, encoder, crops, device, batch_size, threads, report)


def tile_features(
    points: Points,
    sources: Sequence[Source],
    encoder: Encoder,
    *,
    slides: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int = 1,
    report: Report = lambda done, total: None,
) -> NDArray[np.float32]:
    """Encode labelled tiles of stores (see `label_tiles`); arguments as of `cell_features`."""

    @contextlib.contextmanager
    def tiles(source: Source, rows: NDArray[np.int64]) -> Iterator[TileSource]:
        assert points.tile_N is not None
        with open_tiles(_store_of(source), slides=slides) as all_tiles:
            yield some_rows(all_tiles, points.tile_N[rows])

    return _encode(points, sources, encoder, tiles, device, batch_size, threads, report)


def stored_features(
    points: Points, sources: Sequence[Source], name: str, weights_sha256: str | None
) -> NDArray[np.float32] | None:
    """Return the tile embeddings that the stores hold of an encoder; None unless all do.

    Args:
        points: labelled tiles.
        sources: stores.
        name: of the encoder.
        weights_sha256: digest that its weights must have; None: any.
    """
    assert points.tile_N is not None
    key = store_key_of(name)
    parts = []
    for source in sources:
        rows = points.of_slide(source.slide_id)
        if not len(rows):
            continue
        store = _store_of(source)
        record = store.embedding_records("tile").get(schema.embedding_step(key, "tile"))
        if record is None or weights_sha256 not in (None, record.weights_sha256):
            return None
        if is_part(record.regions):  # its rows are not those of the tiles
            return None
        parts.append(store.embeddings(key, "tile").values[points.tile_N[rows]])
    return np.concatenate(parts).astype(np.float32)


def label_tiles(
    points: Points, sources: Sequence[Source], *, rule: str, positive: Sequence[str] | None
) -> Points:
    """Label the tiles of stores by the points inside; tiles without a point are left out.

    Args:
        points: labelled points.
        sources: stores.
        rule: "worst": the worst label inside, by the Bethesda order or by number; "any": one
            of `positive` where there is one, else any other label inside.
        positive: labels for "any".

    Raises:
        UsageError: "any" without `positive`; slides instead of stores.
        LabelError: "worst" for labels without an order; no point in any tile.
    """
    order = _order_of(points.labels, rule, positive) if rule == "any" else None
    slides, corners, labels, groups, numbers = [], [], [], [], []
    for source in sources:
        rows = points.of_slide(source.slide_id)
        if not len(rows):
            continue
        store = _store_of(source)
        xy_px0 = store.tile_xy_px0
        side_px0 = plan_of(store).tile_px0
        for number, corner in enumerate(xy_px0):
            offset = points.xy_px0[rows] - corner
            inside = rows[((offset >= 0) & (offset < side_px0)).all(1)]
            if len(inside):
                slides.append(source.slide_id)
                corners.append(corner)
                of_tile = {points.labels[i] for i in inside}
                if len(of_tile) > 1 and order is None:  # one label alone is the worst
                    order = _order_of(points.labels, rule, positive)
                labels.append(max(of_tile, key=order.index) if order else min(of_tile))
                groups.append(points.groups[inside[0]])
                numbers.append(number)
    if not slides:
        raise LabelError("no point lies in a tile of the stores.", hint="--unit cell, or tile anew")
    return Points(
        tuple(slides),
        np.array(corners, dtype=np.float64),
        tuple(labels),
        tuple(groups),
        np.array(numbers, dtype=np.int64),
        points.notes,
    )


def check_finite(features_ND: NDArray[np.floating], points: Points, encoder: str) -> None:
    """Refuse features that are not numbers.

    Raises:
        InputError: NaN or infinite values.
    """
    bad = np.flatnonzero(~np.isfinite(features_ND).all(1))
    if len(bad):
        raise InputError(
            f"encoder {encoder} gave NaN or infinite features for {len(bad)} of {len(points)} "
            f"instances (slides {named({points.slides[i] for i in bad})}).",
            hint="check the weights",
        )


def store_key_of(name: str) -> str:
    """Return the group's name of an encoder in a store."""
    from cytofm_cli.encoders.base import EncoderSpec

    return store_key(EncoderSpec(name=name, dim=0, input_px=None))


def _encode(
    points: Points,
    sources: Sequence[Source],
    encoder: Encoder,
    open_instances: Callable[
        [Source, NDArray[np.int64]], contextlib.AbstractContextManager[TileSource]
    ],
    device: str,
    batch_size: int | None,
    threads: int,
    report: Report,
) -> NDArray[np.float32]:
    values_ND = np.empty((len(points), encoder.spec.dim), dtype=np.float32)
    batch, done = batch_size or default_batch(device, encoder), 0

    def tell(part: int, _: int) -> None:
        report(done + part, len(points))

    for source in sources:
        rows = points.of_slide(source.slide_id)
        if not len(rows):
            continue
        with open_instances(source, rows) as instances:
            values_ND[rows], batch = embed_tiles(
                instances,
                encoder,
                batch_size=batch,
                threads=threads,
                report=tell,
            )
        done += len(rows)
    check_finite(values_ND, points, encoder.spec.name)
    return values_ND


def _store_of(source: Source) -> Store:
    store = source.store
    if store is None:
        raise UsageError(
            f"{source.path}: --unit tile needs stores.", hint="make them with `cytofm tile`."
        )
    return store


def _order_of(labels: Sequence[str], rule: str, positive: Sequence[str] | None) -> tuple[str, ...]:
    """Return the labels from least to most important."""
    ordered = class_order(labels)
    if rule == "any":
        if not positive:
            raise UsageError("--tile-label any needs --positive.", hint="--positive LABEL,LABEL")
        wanted = as_found(labels, positive, "--positive", what="point", whole=False)
        return (*(name for name in ordered if name not in wanted), *wanted)
    if is_bethesda(ordered) or all(name.lstrip("-").isdigit() for name in ordered):
        return ordered
    raise LabelError(
        f"labels {named(ordered)} have no order, so a tile has no worst one.",
        hint="--tile-label any --positive LABEL",
    )
