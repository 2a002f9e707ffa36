"""Tiles or cells → embeddings: one bag a slide."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import (
    SlideRef,
    are_stores,
    check_reader,
    find_slides,
    find_stores,
    store_id,
    take_shard,
)
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.api.regions import regions_of
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.registry import encoders
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.device import check_device

if TYPE_CHECKING:
    from cytofm_cli.encoders.run import Embedder, EmbedJob
    from cytofm_cli.regions.files import RegionFile


def embed(
    inputs: Paths | None = None,
    out: PathLike | None = None,
    config: EmbedConfig | None = None,
    *,
    tile: TileConfig | None = None,
    manifest: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    gpus: int | None = None,
    on: str | None = None,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Turn tiles or cells into embeddings: one bag a slide, in its store.

    Args:
        inputs: stores or folders of stores; or slides, to embed in one pass without storing
            pixels: one or several.
        out: folder of the stores, when slides are given.
        config: settings as a whole; instead, each may be given by its name
            (`encoder="handcrafted"`, `unit="cell"`).
        tile: how slides are cut into tiles; of no use for stores.
        manifest: table slide_id,path[,mpp] of slides.
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, gpus, on,
            listen: see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `EmbedConfig`.

    Returns:
        One outcome a slide.

    Raises:
        UsageError: no such encoder or device, or impossible settings.
        WeightsError: weights are missing or do not fit.
        InputError: no stores or slides.
        OutputError: `out` cannot be written.
    """
    from cytofm_cli.encoders.recorded import digest_of_weights

    config = config_of(EmbedConfig, config, settings, "embed")
    tile = config_of(TileConfig, tile, {}, "embed")
    manner = Manner(
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        workers=workers,
        threads=threads,
        timeout_s=timeout_s,
        fail_fast=fail_fast,
        fork=fork,
        gpus=gpus,
        on=on,
        listen=listen,
    )
    words = words_of(inputs)
    if not words and manifest is None:
        raise UsageError("nothing to embed.", hint="cytofm embed stores --encoder handcrafted")
    digest = digest_of_weights(config)
    check_encoder(config)
    check_reader(tile.reader)
    if words and manifest is None and are_stores(words):
        all_stores = find_stores(words)
        folder = all_stores[0].parent
        _refuse_other_folder(path_of(out), folder)
        regions = regions_of(config, [store_id(path) for path in all_stores], manner.warn)
        paths = take_shard(all_stores, shard, key=store_id)
        n_workers, n_threads = crew_for(config, manner, len(paths))
        jobs = store_jobs(paths, config, digest, regions, manner, n_threads)
    else:
        if out is None:
            raise UsageError("embedding slides needs a folder for the stores.", hint="-o stores")
        folder = Path(out)
        refs = find_slides(words, path_of(manifest), warn=manner.warn)
        ids = [ref.slide_id for ref in refs]
        regions = regions_of(config, ids, manner.warn)
        of_tiles = regions_of(tile, ids, manner.warn) if tile.regions != config.regions else regions
        refs = take_shard(refs, shard, key=lambda ref: ref.slide_id)
        n_workers, n_threads = crew_for(config, manner, len(refs))
        jobs = _slide_jobs(
            refs, config, tile, digest, (regions, of_tiles), manner, folder, n_threads
        )
    return run_cohort("embed", jobs, Embedding(), folder, manner, workers=n_workers)


class Embedding:
    """Embeds slide after slide; the model stays loaded. Each process gets its own."""

    def __init__(self) -> None:
        self._embedder: Embedder | None = None

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Embed one slide."""
        from cytofm_cli.encoders.run import Embedder

        if self._embedder is None:
            if multiprocessing.parent_process() is not None:  # a caller's own threads are its own
                _take_threads(task.payload.threads)
            self._embedder = Embedder()
        return self._embedder.embed(task.payload, report.progress, report.note)


def _take_threads(n: int) -> None:
    """Compute with so many threads in this child process."""
    os.environ["OMP_NUM_THREADS"] = str(n)
    if torch := sys.modules.get("torch"):  # loaded before the fork, it looks no more
        torch.set_num_threads(n)


def _refuse_other_folder(out: Path | None, folder: Path) -> None:
    if out is not None and out.resolve() != folder.resolve():
        raise UsageError(
            "embeddings go into the stores that are given; -o is for slides.",
            hint="leave -o out, or copy the stores first.",
        )


def check_encoder(config: EmbedConfig) -> None:
    """Refuse, before any slide, an encoder that cannot be loaded for any of them."""
    from cytofm_cli.encoders import catalogue

    request = catalogue.resolve(config.encoder, weights=config.weights)
    given = request.weights is not None or config.download or config.random_weights
    if not given and catalogue.needs_weights(config.encoder):
        raise WeightsError(
            f"encoder {config.encoder!r} needs weights.",
            hint="--weights FILE; --random-weights is a floor to compare with.",
        )
    require = encoders.find(request.plugin).require
    if require is not None and request.name.startswith(f"{request.plugin}/"):
        require(request.model)
    check_device(config.device)


def crew_for(config: EmbedConfig, manner: Manner, n: int) -> tuple[int, int]:
    """Use one process on a GPU: it holds the model; else spread slides over processors."""
    if manner.workers is None and config.device != "cpu" and _gpu_is_there():
        return 1, manner.crew(1)[1]
    return manner.crew(n)


def _gpu_is_there() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return Path("/dev/nvidiactl").exists() and not hidden


def store_jobs(
    paths: Sequence[Path],
    config: EmbedConfig,
    digest: str | None,
    regions: Mapping[str, RegionFile],
    manner: Manner,
    threads: int,
) -> list[EmbedJob]:
    """Return what to do with each store, also with those that are still to be made."""
    from cytofm_cli.encoders.run import EmbedJob

    return [
        EmbedJob(
            slide_id=store_id(path),
            path=str(path),
            store=path,
            config=config,
            weights_sha256=digest,
            regions=regions.get(store_id(path)),
            overwrite=manner.overwrite,
            dry_run=manner.dry_run,
            threads=threads,
        )
        for path in paths
    ]


def _slide_jobs(
    refs: Sequence[SlideRef],
    config: EmbedConfig,
    tile: TileConfig,
    digest: str | None,
    regions: tuple[Mapping[str, RegionFile], Mapping[str, RegionFile]],
    manner: Manner,
    folder: Path,
    threads: int,
) -> list[EmbedJob]:
    from cytofm_cli.encoders.run import EmbedJob, with_tile_defaults
    from cytofm_cli.store.io import store_path

    return [
        EmbedJob(
            slide_id=ref.slide_id,
            path=ref.path,
            store=store_path(folder, ref.slide_id),
            config=config,
            weights_sha256=digest,
            tile=with_tile_defaults(
                TileJob(
                    slide_id=ref.slide_id,
                    path=ref.path,
                    mpp=ref.mpp,
                    stores=folder,
                    config=tile,
                    overwrite=manner.overwrite,
                    dry_run=manner.dry_run,
                    threads=threads,
                    regions=regions[1].get(ref.slide_id),
                )
            ),
            regions=regions[0].get(ref.slide_id),
            overwrite=manner.overwrite,
            dry_run=manner.dry_run,
            threads=threads,
        )
        for ref in refs
    ]
