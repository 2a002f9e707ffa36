"""The files of one slide's heat map, and how they are made.

What `mil score` has stored is drawn if it is of this RUN and of what the store holds now; else the
slide is scored. Stores are not changed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cytofm_cli.config import as_record
from cytofm_cli.errors import InputError, StoreError
from cytofm_cli.exporters.maps import write_geojson
from cytofm_cli.exporters.product import Product
from cytofm_cli.maps.config import HeatmapConfig
from cytofm_cli.maps.heat import Levels, Painter, Places, choose_column, levels_of, title_of
from cytofm_cli.maps.ome_tiff import Plane, write_ome_tiff
from cytofm_cli.maps.picture import page, table_of, thumbnail
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil.attention import read_attention
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.run_folder import run_digest
from cytofm_cli.mil.score import Ensemble, SlideScore, score_bag
from cytofm_cli.nuclei.place import BOUNDS, SlidePlace, place_of
from cytofm_cli.pictures.files import save_png
from cytofm_cli.store import lineage, schema
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.store.tables import NucleusTable
from cytofm_cli.units import Box

SUFFIXES: Final = {"ome-tiff": ".ome.tiff", "png": ".png", "geojson": ".geojson"}
DISK_UM: Final = 4.0  # radius of a cell without outline
_TILE_PX: Final = 16  # pixels of the map along a tile
_CELL_UM: Final = 1.0  # µm/px of the map of cells
Note = Callable[[str], None]


@dataclass(frozen=True)
class HeatRequest:
    """What is drawn of every slide.

    Attributes:
        run: folder of the RUN.
        ensemble: its models.
        config: the settings.
        of_class: the class that the map speaks for; None: see `choose_column`.
        folder: for the files.
    """

    run: Path
    ensemble: Ensemble
    config: HeatmapConfig
    of_class: str | None
    folder: Path


@dataclass(frozen=True)
class Heat:
    """The map of a slide, before it is drawn.

    Attributes:
        store: of the slide.
        score: attention and scores of its instances.
        column: which of them is drawn.
        levels: as colours.
        places: where they lie.
        place: where the slide lies.
        stored: they were in the store.
    """

    store: Store
    score: SlideScore
    column: str
    levels: Levels
    places: Places
    place: SlidePlace
    stored: bool

    @property
    def frame(self) -> Box:
        """The part of level 0 that is drawn: what was scanned, as QuPath has it."""
        return self.place.frame(BOUNDS)


def products(
    path: Path, request: HeatRequest, note: Note
) -> tuple[list[Product], Callable[[], Heat]]:
    """Return the files of a store, and what gives its map, made when it is first asked for.

    Raises:
        StoreError: it holds no embeddings of the RUN's kind.
    """
    store = open_store(path)
    if store.tile.apart is not None:
        raise InputError(
            f"{path}: holds images of single cells, which lie nowhere together: no map.",
            hint="`cytofm mil score` writes their attention",
        )
    step = _bag_step(store, request.ensemble)
    store.require_fresh(step)
    settings = {
        **as_record(request.config, results_only=True),
        "to": None,
        "groups": None,
        "class": request.of_class,
        "run": run_digest(request.run),
    }
    heat = functools.cache(lambda: _heat(store, step, request, note))
    steps = [store.steps[step]]
    writers = {"ome-tiff": _write_tiff, "png": _write_png, "geojson": _write_map}
    made = []
    for kind in dict.fromkeys(request.config.to):
        file = request.folder / f"{store.slide_id}{SUFFIXES[kind]}"
        write = functools.partial(_write, writers[kind], heat, file, request)
        made.append(Product([file], settings, steps, write))
    return made, heat


def _write(
    writer: Callable[[Heat, Path, HeatRequest], None],
    heat: Callable[[], Heat],
    file: Path,
    request: HeatRequest,
) -> None:
    writer(heat(), file, request)


def _bag_step(store: Store, ensemble: Ensemble) -> str:
    """Return the step that holds the bag of a slide.

    Raises:
        StoreError: there is none of the RUN's encoder.
    """
    encoder, unit = ensemble.origin.encoder or None, ensemble.card.unit
    if origins.is_classes(encoder):
        named = (encoder or "").partition(":")[2] or None
        return schema.classes_step(store.which_classes(named))
    return schema.embedding_step(store.which_encoder(encoder, unit), unit)


def _heat(store: Store, step: str, request: HeatRequest, note: Note) -> Heat:
    ensemble, config = request.ensemble, request.config
    score = read_attention(store, step, request.run, ensemble)
    stored = score is not None
    if score is None:
        encoder = ensemble.origin.encoder or None
        (bag,) = load_bags(store.path, encoder, ensemble.card.unit)
        score = score_bag(ensemble, bag, device=config.device, allow_mixed=config.allow_mixed)
    column = choose_column(
        score.columns, ensemble.card.classes, config.what, request.of_class, ensemble.card.method
    )
    values_N = score.instances_NK[:, score.columns.index(column)]
    levels = levels_of(values_N, raw=config.raw, where=store.slide_id, what=config.what)
    places = _places(store, step, config)
    if len(places.xy_px0) != len(values_N):
        raise StoreError(
            f"{store.path}: {len(values_N)} values for {len(places.xy_px0)} instances.",
            hint="score the slide again with `cytofm mil score`",
        )
    return Heat(store, score, column, levels, places, place_of(store, note), stored)


def _places(store: Store, step: str, config: HeatmapConfig) -> Places:
    """Return where the instances of a bag lie; cells with the outlines of their nuclei."""
    if step.endswith("/tile"):
        return Places(store.read(f"{step}/xy_px0"), float(store.tile.tile_px0))
    disk = DISK_UM / store.slide.mpp
    parents = [name for name in lineage.parents_of(store.steps, step) if name.startswith("nuclei/")]
    detector = parents[0].partition("/")[2] if len(parents) == 1 else None
    nuclei: NucleusTable | None = None
    if detector is not None and schema.nuclei_step(detector) in store.steps:
        nuclei = store.nuclei(detector)
    if step.startswith("classes/"):
        found = store.nuclei(store.classes_record(step.partition("/")[2]).detector)
        nuclei, xy_px0 = found, np.round(found.xy_px0).astype(np.int32)
    else:
        xy_px0 = store.read(f"{step}/xy_px0")
    alike = nuclei is not None and np.array_equal(np.round(nuclei.xy_px0).astype(np.int32), xy_px0)
    return Places(xy_px0, None, nuclei if alike and config.cells == "outline" else None, disk)


def _lines(heat: Heat, request: HeatRequest) -> list[str]:
    """Say which values of what are drawn."""
    score, unit = heat.score, request.ensemble.card.unit
    scale = "percentiles within the slide" if heat.levels.ranked else "raw values"
    kind = "" if request.config.what == "attention" else f": {score.score_kind}"
    return [
        f"{score.slide_id}: {title_of(heat.column, score.predicted)}{kind}, {scale}",
        f"RUN {request.run.name}, head {request.ensemble.card.method}, mean of {score.n_models} "
        f"models ({score.basis}), predicted {score.predicted}; {len(score.instances_NK)} {unit}s",
    ]


def downsample_of(heat: Heat, mpp: float | None) -> int:
    """Return level-0 pixels to a pixel of the map: whole, so that maps lie on level 0."""
    mpp0, side = heat.store.slide.mpp, heat.places.side_px0
    usual = _CELL_UM / mpp0 if side is None else side / _TILE_PX
    return max(1, round(usual if mpp is None else mpp / mpp0))


def _write_tiff(heat: Heat, file: Path, request: HeatRequest) -> None:
    config, frame = request.config, heat.frame
    step = downsample_of(heat, config.mpp)
    width, height = math.ceil(frame.w / step), math.ceil(frame.h / step)
    painter = Painter(heat.places, heat.levels.level_N, step, (frame.x, frame.y))
    table = table_of(config.colours)
    lines = _lines(heat, request)
    plane = Plane(width, height, step * heat.store.slide.mpp, lines[0], "; ".join(lines))
    write_ome_tiff(file, plane, lambda top, rows: table[painter.paint(top, rows, width)])


def _write_png(heat: Heat, file: Path, request: HeatRequest) -> None:
    store = heat.store
    slide = thumbnail(store.read(schema.THUMBNAIL.path))
    height, width = slide.shape[:2]
    step = max(store.slide.size_px0[0] / width, store.slide.size_px0[1] / height)
    tones = Painter(heat.places, heat.levels.level_N, step).paint(0, height, width)
    colours = request.config.colours
    save_png(
        file,
        page(
            slide, tones, heat.levels, _lines(heat, request),
            colours=colours, mpp=step * store.slide.mpp,
        ),
    )  # fmt: skip


def _write_map(heat: Heat, file: Path, request: HeatRequest) -> None:
    # The writer asks of a bag only where its instances lie.
    bag = Bag(
        heat.score.slide_id, np.empty((len(heat.places.xy_px0), 0), np.float32), heat.places.xy_px0
    )
    write_geojson(
        file.parent,
        bag,
        heat.score,
        heat.places.side_px0,
        origin_px0=heat.frame[:2],
        outline=heat.places.outline if heat.places.nuclei is not None else None,
    )
