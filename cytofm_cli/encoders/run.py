"""The embed step for one slide: pixels → encoder → one bag in the store.

Threads read, decode and prepare batches while the encoder works on earlier ones. A batch that
does not fit into memory is halved, and smaller ones are used from there on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import as_record, differences
from cytofm_cli.encoders.base import CELL_UM, Encoder, EncoderSpec, store_key
from cytofm_cli.encoders.catalogue import resolve
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.dtype import refuse_overflow, to_dtype
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.sidecar import sidecar
from cytofm_cli.errors import (
    ConfigMismatchError,
    OutOfMemoryError,
    UsageError,
    WeightsError,
)
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.fresh import loss_note, say_risk
from cytofm_cli.store.records import EmbeddingRecord
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.finished import is_done
from cytofm_cli.tiles.read import ordered_map
from cytofm_cli.tiles.run import fingerprint_of, tile_slide
from cytofm_cli.tiles.source import TileSource, open_tiles
from cytofm_cli.work.batch import Status

_CPU_BATCH = 16  # larger ones fall out of the caches
_GPU_BATCH = 256
_ABOUT_FOREIGN_WEIGHTS = ("input_px", "mean", "std", "weights_key")

Report = Callable[[int, int], None]
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
    overwrite: bool = False
    dry_run: bool = False
    threads: int = 1


class Embedder:
    """Embeds slide after slide with an encoder that is loaded once, when first needed."""

    def __init__(self) -> None:
        self._encoder: Encoder | None = None

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
        settings, mark = _settings(job), _input_mark(store, job.config)
        finished = _find_finished(store, job.config.unit, settings, mark)
        if finished is not None and not job.overwrite:
            io.tidy(job.store.parent, job.slide_id, finished)
            _warn_of_old_size(job.config, store.embedding_records(job.config.unit)[finished], note)
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
                config=_in_words_of(
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
                    mean=config.mean,
                    std=config.std,
                    weights_key=config.weights_key,
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
        spec = encoder.spec
        tile = store.tile
        made_from = lineage.made_from(store.steps, *_sources(store, job.config))
        cell_um = job.config.cell_um or spec.cell_um or CELL_UM
        where = f"{job.store}: encoder {spec.name}"
        with _open_instances(store, job.config, cell_um) as instances:
            values, batch_size = embed_tiles(
                instances,
                encoder,
                batch_size=job.config.batch_size or default_batch(job.config.device),
                threads=job.threads,
                report=report,
                refuse=lambda part: refuse_overflow(part, job.config.dtype, where),
            )
            xy_px0 = instances.xy_px0
        side_px: float = tile.tile_px
        if job.config.unit == "cell":
            side_px = cell_um / tile.mpp
        seen_mpp = tile.mpp * side_px / (spec.input_px or side_px)
        if spec.mpp is not None and abs(seen_mpp / spec.mpp - 1) > 0.25:
            note(
                f"warning: {spec.name} was trained at {spec.mpp:g} µm/px and sees "
                f"{seen_mpp:.3g}: its input should cover {spec.mpp * (spec.input_px or 0):.0f} µm."
            )
        rows = to_dtype(values, job.config.dtype, where)
        record = EmbeddingRecord(
            **provenance.stamp(settings, input_fingerprint=mark),
            encoder=spec.name,
            dim=spec.dim,
            n=len(rows),
            unit=job.config.unit,
            seen_mpp=seen_mpp,
            cell_um=cell_um if job.config.unit == "cell" else None,
            **spec.facts(),
            batch_size=batch_size,
            store_codec=tile.store_codec,
            source_codec=tile.source_codec,
            seed=job.config.seed,
            made_from=made_from,
        )
        if gone := _save(job, step, rows, xy_px0, record):
            note(loss_note(job.store, step, gone))


def _save(
    job: EmbedJob,
    step: str,
    rows: NDArray[np.floating[Any]],
    xy_px0: NDArray[np.int32],
    record: EmbeddingRecord,
) -> tuple[str, ...]:
    """Put a bag into the store; return what was made from the former one and is gone."""
    xy_kind = schema.EMBEDDINGS_XY if job.config.unit == "tile" else schema.CELL_EMBEDDINGS_XY
    with io.staging(job.store.parent, job.slide_id, step) as staged:
        arrays.write_rows(staged, schema.EMBEDDINGS, rows)
        arrays.write(staged, xy_kind, xy_px0)
        return commit.commit_group(staged, job.store, step, record)


def embed_tiles(
    tiles: TileSource,
    encoder: Encoder,
    *,
    batch_size: int,
    threads: int,
    report: Report,
    refuse: Callable[[NDArray[np.float32]], None] = lambda _: None,
) -> tuple[NDArray[np.float32], int]:
    """Encode every tile, decoding ahead in threads.

    Args:
        tiles: the pixels.
        encoder: turns them into vectors.
        batch_size: tiles at a time, halved when the device has too little memory.
        threads: decoding threads.
        report: called with (done, total) after each batch.
        refuse: raises if the vectors of a batch cannot be used: not hours later.

    Returns:
        float32 (n, dim) in the order of the tiles, and the batch size that fitted.

    Raises:
        OutOfMemoryError: not even one tile fits.
    """
    n = len(tiles.xy_px0)
    values = np.empty((n, encoder.spec.dim), dtype=np.float32)
    start = 0
    with ThreadPoolExecutor(threads) as pool:
        while start < n:
            prepare = partial(_prepare, tiles, encoder, n, batch_size)
            batches = ordered_map(pool, prepare, range(start, n, batch_size), window=2 * threads)
            try:
                for batch in batches:
                    stop = min(n, start + batch_size)
                    values[start:stop] = encoder.encode(batch)
                    refuse(values[start:stop])
                    start = stop
                    report(start, n)
            except OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
            finally:
                batches.close()
    return values, batch_size


def default_batch(device: str) -> int:
    """Return the batch size to start with."""
    if device == "cpu":
        return _CPU_BATCH
    import sys

    torch = sys.modules.get("torch")  # loaded by encoders that need it; the others run on CPU
    on_gpu = torch is not None and torch.cuda.is_available()
    return _GPU_BATCH if on_gpu else _CPU_BATCH


def digest_of_weights(config: EmbedConfig) -> str | None:
    """Return the SHA-256 of the weights that the settings name, None without a file.

    Raises:
        WeightsError: it is not there, or what a file beside it states is wrong.
    """
    named = resolve(config.encoder, weights=config.weights).weights
    if named is None:
        return None
    if not named.is_file():
        raise WeightsError(f"{named}: no such weight file.", hint="check --weights.")
    sidecar(named)  # a mistake in it is one of all slides: said once
    return provenance.sha256_file(named)


def _prepare(tiles: TileSource, encoder: Encoder, n: int, batch_size: int, start: int) -> Any:
    pixels = [tiles.read(index) for index in range(start, min(n, start + batch_size))]
    return encoder.prepare(np.stack(pixels))


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


def _settings(job: EmbedJob) -> dict[str, Any]:
    """Return the settings that change a value; the weights count by content, not by path."""
    record = as_record(job.config, results_only=True)
    record.pop("weights")
    for name in _ABOUT_FOREIGN_WEIGHTS:
        value = record.pop(name)
        if value is not None:  # stores from before these settings have no such entry
            record[name] = list(value) if isinstance(value, tuple) else value
    if job.config.unit == "tile":
        record.pop("cell_um")
        record.pop("detector")
    if Path(job.config.encoder).is_file():
        record["encoder"] = Path(job.config.encoder).name
    named = resolve(job.config.encoder, weights=job.config.weights).weights
    for name, value in ({} if named is None else sidecar(named)).items():
        record[f"file_{name}"] = list(value) if isinstance(value, tuple) else value
    return record | {"weights_sha256": job.weights_sha256}


def _warn_of_old_size(config: EmbedConfig, record: EmbeddingRecord, note: Note) -> None:
    """Tell where weights from elsewhere were run at timm's size, as before this was recorded."""
    foreign = config.encoder.startswith("timm/vit_") and config.weights is not None
    if foreign and record.assumed is None and config.input_px is None:
        note(
            f"warning: {record.encoder}: was embedded at {record.input_px} px before cytofm "
            "looked at what its weights are laid out for; --overwrite makes it anew."
        )


def _input_mark(store: io.Store, config: EmbedConfig) -> str:
    mark = store.tile.mark
    if config.unit == "tile":
        return mark
    (nuclei,) = set(_sources(store, config)) - {schema.TILE_STEP}
    return f"{mark}-{store.steps[nuclei].config_hash}"


def _sources(store: io.Store, config: EmbedConfig) -> tuple[str, ...]:
    """Name the steps that a bag is made from."""
    if config.unit == "tile":
        return (schema.TILE_STEP,)
    return (schema.TILE_STEP, schema.nuclei_step(store.which_detector(config.detector)))


def _find_finished(
    store: io.Store, unit: str, settings: Mapping[str, Any], mark: str
) -> str | None:
    """Find a finished bag by its settings alone: a done slide needs no encoder loaded."""
    for step, record in store.embedding_records(unit).items():
        if (
            not differences(record.config, _in_words_of(record, settings))
            and record.input_fingerprint == mark
            and store.why_stale(step) is None
        ):
            return step
    return None


def _in_words_of(
    record: EmbeddingRecord | None, settings: Mapping[str, Any], spec: EncoderSpec | None = None
) -> dict[str, Any]:
    """Return settings in the words of a finished step, where both come to the same.

    A record keeps what was typed, and beside it what that came to (`cell_um`, `pooling`).

    Args:
        record: of the finished step, if there is one.
        settings: as typed now.
        spec: of the encoder, which supplies what is not typed; None while it is not loaded.
    """
    words = dict(settings)
    if record is None:
        return words
    defaults = {} if spec is None else asdict(spec) | {"cell_um": spec.cell_um or CELL_UM}
    for key in {*settings, *record.config}:
        then, now = record.config.get(key), settings.get(key)
        was = getattr(record, key, None) if then is None else then
        wanted = defaults.get(key) if now is None else now
        acts = {
            "seed": settings["random_weights"],
            "detector": then is not None and now is not None,  # else the input tells
            "encoder": spec is None or record.encoder != spec.name,
        }
        if not acts.get(key, True) or (was is not None and _plain(was) == _plain(wanted)):
            words[key] = then
    return {key: value for key, value in words.items() if key in record.config or value}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _ensure_tiles(job: TileJob, path: Path, report: Report, note: Note) -> None:
    """Tile a slide unless it is; a store with or without pixels serves alike."""
    as_it_is = replace(job, overwrite=False)  # new embeddings need no new tiles
    try:
        done = is_done(as_it_is, path, fingerprint_of(job.path), pixels_count=False)
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
