"""The embed step for one slide: pixels → encoder → one bag in the store."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cytofm_cli.encoders.base import CELL_UM, Encoder, store_key
from cytofm_cli.encoders.batches import Embedding, Report, default_batch
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.dtype import as_stored, refuse_overflow
from cytofm_cli.encoders.in_regions import rows_in_regions
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.recorded import (
    find_finished,
    in_words_of,
    input_mark,
    settings_of,
    sources_of,
    warn_of_old_size,
)
from cytofm_cli.errors import ConfigMismatchError, UsageError, WeightsError
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.regions.files import RegionFile
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.fresh import loss_note, say_risk
from cytofm_cli.store.records import EmbeddingRecord
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.finished import find_done
from cytofm_cli.tiles.run import fingerprint_of, tile_slide
from cytofm_cli.tiles.source import TileSource, open_tiles, some_rows
from cytofm_cli.work.batch import Status

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """What to do with one slide.

    Attributes:
        slide_id: name of the store.
        path: the store, or the slide if `tile` is given.
        store: the store.
        config: the settings.
        weights_sha256: digest of `config.weights`, None without.
        tile: how to tile the slide first, if it has no store yet; None for a store.
        regions: the file of its regions, if it has one.
        overwrite: replace finished embeddings of this encoder.
        dry_run: write nothing.
        threads: threads for this slide.
    """

    slide_id: str
    path: str
    store: Path
    config: EmbedConfig
    weights_sha256: str | None = None
    tile: TileJob | None = None
    regions: RegionFile | None = None
    overwrite: bool = False
    dry_run: bool = False
    threads: int = 1


class Embedder:
    """Embeds slide after slide with an encoder that is loaded once, when first needed."""

    def __init__(self) -> None:
        self._encoder: Encoder | None = None
        # The same for all slides, and telling it asks for every plug-in there is.
        self._settings_of = functools.lru_cache(maxsize=4)(settings_of)

    def embed(self, job: EmbedJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
        """Embed one slide.

        Returns:
            ("done" or "skipped", facts of the bag).

        Raises:
            CytofmError: the slide cannot be embedded; nothing half-written is left.
        """
        if job.tile is not None:
            io.check_slide_id(job.store.parent, job.slide_id)
            if job.dry_run and not job.store.exists():
                return tile_slide(job.tile, report, note)
            _ensure_tiles(job.tile, job.store, report, note)
        store = io.open_store(job.store)
        regions = None if job.regions is None else job.regions.sha256
        settings = self._settings_of(job.config, job.weights_sha256, regions)
        mark = input_mark(store, job.config)
        finished = find_finished(store, job.config.unit, settings, mark)
        if finished is not None and not job.overwrite:
            commit.settle(job.store, finished)
            warn_of_old_size(job.config, store.embedding_records(job.config.unit)[finished], note)
            return "skipped", _facts(store, finished)
        if job.dry_run:
            say_risk(store.path, store.steps, finished, note)
            return "done", {"store": str(job.store), "n_tiles": store.tile.n_tiles}
        encoder = self._load(job.config, note)
        step = schema.embedding_step(store_key(encoder.spec), job.config.unit)
        with io.claim_step(job.store.parent, job.slide_id, step):
            if not job.overwrite and commit.is_finished(
                job.store,
                step,
                config=in_words_of(
                    store.embedding_records(job.config.unit).get(step), settings, encoder.spec
                ),
                input_fingerprint=mark,
            ):
                return "skipped", _facts(io.open_store(job.store), step)
            self._write(job, store, step, settings, mark, report, note)
        return "done", _facts(io.open_store(job.store), step)

    def _load(self, config: EmbedConfig, note: Note) -> Encoder:
        if self._encoder is None:
            try:
                self._encoder = load_encoder(
                    config.encoder,
                    weights=config.weights,
                    device=config.device,
                    download=config.download,
                    seed=config.seed,
                    random_weights=config.random_weights,
                    pooling=config.pooling,
                    input_px=config.input_px,
                    resize_px=config.resize_px,
                    mean=config.mean,
                    std=config.std,
                    weights_key=config.weights_key,
                    builder=config.builder,
                )
            except (UsageError, WeightsError) as error:
                error.of_all_slides = True
                raise
            for line in getattr(self._encoder, "notes", ()):
                note(line)
        return self._encoder

    def _write(
        self,
        job: EmbedJob,
        store: io.Store,
        step: str,
        settings: Mapping[str, Any],
        mark: str,
        report: Report,
        note: Note,
    ) -> None:
        encoder = self._load(job.config, note)
        config, spec, tile = job.config, encoder.spec, store.tile
        made_from = lineage.made_from(store.steps, *sources_of(store, config))
        rows, regions = rows_in_regions(store, job.regions, config, note)
        cell_um = config.cell_um or spec.cell_um or CELL_UM
        side_px = tile.tile_px if config.unit == "tile" else cell_um / tile.mpp
        seen_mpp = tile.mpp * side_px / (spec.input_px or side_px)
        if spec.mpp is not None and abs(seen_mpp / spec.mpp - 1) > 0.25:
            note(
                f"warning: {spec.name} was trained at {spec.mpp:g} µm/px and sees "
                f"{seen_mpp:.3g}: its input should cover {spec.mpp * (spec.input_px or 0):.0f} µm."
            )
        with io.staging(job.store.parent, job.slide_id, step) as staged:
            with _open_instances(store, config, cell_um) as all_instances:
                instances = all_instances if rows is None else some_rows(all_instances, rows)
                embedding = _stage(staged, job, instances, encoder, round(side_px), report)
                n = len(instances.xy_px0)
            record = EmbeddingRecord(
                **provenance.stamp(settings, input_fingerprint=mark),
                encoder=spec.name,
                dim=spec.dim,
                n=n,
                unit=config.unit,
                seen_mpp=seen_mpp,
                cell_um=cell_um if config.unit == "cell" else None,
                **spec.facts(),
                batch_size=embedding.batch_size,
                store_codec=tile.store_codec,
                source_codec=tile.source_codec,
                seed=config.seed,
                regions=regions,
                made_from=made_from,
            )
            gone = commit.commit_group(staged, job.store, step, record)
        if gone:
            note(loss_note(job.store, step, gone))


def _stage(
    staged: Path,
    job: EmbedJob,
    instances: TileSource,
    encoder: Encoder,
    side_px: int,
    report: Report,
) -> Embedding:
    """Write the arrays of a bag, each window of rows as soon as it is made."""
    dtype, where = job.config.dtype, f"{job.store}: encoder {encoder.spec.name}"
    embedding = Embedding(
        instances,
        encoder,
        batch_size=job.config.batch_size or default_batch(job.config.device, encoder, side_px),
        threads=job.threads,
        report=report,
        refuse=lambda part: refuse_overflow(part, dtype, where),
    )
    shape = (len(instances.xy_px0), encoder.spec.dim)
    rows = as_stored(embedding, dtype, where)
    arrays.write_blocks(staged, schema.EMBEDDINGS, rows, shape=shape, dtype=dtype)
    xy_kind = schema.EMBEDDINGS_XY if job.config.unit == "tile" else schema.CELL_EMBEDDINGS_XY
    arrays.write(staged, xy_kind, instances.xy_px0)
    return embedding


@contextlib.contextmanager
def _open_instances(store: io.Store, config: EmbedConfig, cell_um: float) -> Iterator[TileSource]:
    """Open what a row of the bag is made of: tiles, or crops around nuclei."""
    if config.unit == "tile":
        with open_tiles(store, slides=config.slides) as tiles:
            yield tiles
        return
    cells = open_cells(store, detector=config.detector, cell_um=cell_um, slides=config.slides)
    with cells as crops:
        yield crops


def _ensure_tiles(job: TileJob, path: Path, report: Report, note: Note) -> None:
    """Tile a slide unless it is; a store with or without pixels serves alike."""
    as_it_is = replace(job, overwrite=False)  # new embeddings need no new tiles
    try:
        mark = fingerprint_of(job.path)
        done = find_done(as_it_is, path, mark, pixels_count=False) is not None
    except ConfigMismatchError:
        if not job.overwrite:
            raise
        done = False
    if not done:
        tile_slide(job, report, note)


def _facts(store: io.Store, step: str) -> dict[str, Any]:
    record = store.embedding_record(*step.split("/")[1:])
    return {"store": str(store.path), "step": step, "n": record.n, "dim": record.dim}


def with_tile_defaults(job: TileJob) -> TileJob:
    """Return the tile job of a slide that is embedded without storing its pixels."""
    if job.config.pixels not in ("none", "source"):
        raise UsageError(
            "--pixels has no meaning here: embedding from slides stores no pixels.",
            hint="run `cytofm tile` first to keep them.",
        )
    return replace(job, config=replace(job.config, pixels="none"))
