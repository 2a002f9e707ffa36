"""`cytofm embed`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.cli.inputs import (
    are_stores,
    check_reader,
    find_slides,
    find_stores,
    store_id,
    take_shard,
)
from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import crew_size, run_slides, tasks_with
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.registry import encoders
from cytofm_cli.store.schema import STORE_SUFFIX
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.device import check_device

if TYPE_CHECKING:
    from cytofm_cli.encoders.run import Embedder, EmbedJob


def embed(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Stores, or slides to embed in one pass without storing pixels."),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of stores, when slides are given.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] of slides.")
    ] = None,
    *,
    config: EmbedConfig,
    tile: TileConfig,
    run: RunOptions,
) -> None:
    """Turn tiles into embeddings: one bag a slide.

    Examples:

      cytofm embed stores --encoder handcrafted

      cytofm embed stores --unit cell

      cytofm embed stores --encoder timm/vit_small_patch16_224 --weights vits.pt

      cytofm embed slides/ -o stores --encoder uni --weights uni.bin
    """
    from cytofm_cli.encoders.run import digest_of_weights

    words = inputs or []
    if not words and manifest is None:
        raise UsageError("nothing to embed.", hint="cytofm embed stores --encoder handcrafted")
    digest = digest_of_weights(config)
    _check_encoder(config)
    check_reader(tile.reader)
    if words and manifest is None and are_stores(words):
        paths = take_shard(find_stores(words), run.shard, key=store_id)
        folder = paths[0].parent if paths else Path()
        if out_folder is not None and out_folder.resolve() != folder.resolve():
            raise UsageError(
                "embeddings go into the stores that are given; -o is for slides.",
                hint="leave -o out, or copy the stores first.",
            )
        workers, threads = _crew(config, run, len(paths))
        jobs = _store_jobs(paths, config, digest, run, threads)
    else:
        if out_folder is None:
            raise UsageError("embedding slides needs a folder for the stores.", hint="-o stores")
        folder = out_folder
        refs = take_shard(find_slides(words, manifest), run.shard, key=lambda ref: ref.slide_id)
        workers, threads = _crew(config, run, len(refs))
        jobs = _slide_jobs(refs, config, tile, digest, run, folder, threads)
    run_slides("embed", tasks_with(jobs), work, run, folder, workers=workers)


_embedder: list[Embedder] = []  # one a child process: the model stays loaded between slides


def work(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Embed one slide in a child process."""
    from cytofm_cli.encoders.run import Embedder

    if not _embedder:
        os.environ["OMP_NUM_THREADS"] = str(task.payload.threads)
        if torch := sys.modules.get("torch"):  # loaded before the fork, it looks no more
            torch.set_num_threads(task.payload.threads)
        _embedder.append(Embedder())
    return _embedder[0].embed(task.payload, report.progress, report.note)


def _check_encoder(config: EmbedConfig) -> None:
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


def _crew(config: EmbedConfig, run: RunOptions, n: int) -> tuple[int, int]:
    """Use one process on a GPU: it holds the model; else spread slides over processors."""
    if run.workers is None and config.device != "cpu" and _gpu_is_there():
        return 1, crew_size(run, 1)[1]
    return crew_size(run, n)


def _gpu_is_there() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return Path("/dev/nvidiactl").exists() and not hidden


def _store_jobs(
    paths: list[Path], config: EmbedConfig, digest: str | None, run: RunOptions, threads: int
) -> list[EmbedJob]:
    from cytofm_cli.encoders.run import EmbedJob

    return [
        EmbedJob(
            slide_id=path.name.removesuffix(STORE_SUFFIX),
            path=str(path),
            store=path,
            config=config,
            weights_sha256=digest,
            overwrite=run.overwrite,
            dry_run=run.dry_run,
            threads=threads,
        )
        for path in paths
    ]


def _slide_jobs(
    refs: list[Any],
    config: EmbedConfig,
    tile: TileConfig,
    digest: str | None,
    run: RunOptions,
    folder: Path,
    threads: int,
) -> list[EmbedJob]:
    from cytofm_cli.encoders.run import EmbedJob, with_tile_defaults
    from cytofm_cli.store.io import store_path
    from cytofm_cli.tiles.config import TileJob

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
                    overwrite=run.overwrite,
                    dry_run=run.dry_run,
                    threads=threads,
                )
            ),
            overwrite=run.overwrite,
            dry_run=run.dry_run,
            threads=threads,
        )
        for ref in refs
    ]


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "embed", embed)
