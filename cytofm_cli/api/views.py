"""Tiles and nuclei → views, dumped to Zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import find_stores, store_id, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.errors import UsageError
from cytofm_cli.store.io import is_store
from cytofm_cli.store.schema import STORE_SUFFIX
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.work.batch import Reporter, Status, Task


def make_views(
    stores: Paths,
    out: PathLike,
    config: ViewsConfig | None = None,
    *,
    detector: str | None = None,
    max_tiles: int | None = None,
    seed: int = 0,
    slides: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Write nuclei-centred views of tiles to Zarr, one group a slide.

    Args:
        stores: stores, or folders of stores: one or several.
        out: folder of the dumps; holds no stores.
        config: settings as a whole; instead, each may be given by its name (`recipe="dino"`).
        detector: whose nuclei; None takes the only ones there are.
        max_tiles: at most so many random tiles a slide.
        seed: of all draws.
        slides: folder where the slides lie now, for stores without pixels.
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, listen: see
            `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `ViewsConfig`.

    Returns:
        One outcome a store.

    Raises:
        UsageError: impossible settings, or a folder of stores as `out`.
        InputError: no stores.
    """
    from cytofm_cli.views.recipes import ncp_of, recipe_of
    from cytofm_cli.views.run import ViewsJob

    config = config_of(ViewsConfig, config, settings, "make_views")
    recipe_of(config), ncp_of(config)  # refuse impossible settings before any slide
    manner = Manner(
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        workers=workers,
        threads=threads,
        timeout_s=timeout_s,
        fail_fast=fail_fast,
        fork=fork,
        listen=listen,
    )
    paths = take_shard(find_stores(words_of(stores)), shard, key=store_id)
    folder = Path(out)
    refuse_stores(folder)
    n_workers, n_threads = manner.crew(len(paths))
    jobs = [
        ViewsJob(
            slide_id=store_id(path),
            path=str(path),
            folder=folder,
            config=config,
            detector=detector,
            seed=seed,
            max_tiles=max_tiles,
            slides=path_of(slides),
            overwrite=overwrite,
            dry_run=dry_run,
            threads=n_threads,
        )
        for path in paths
    ]
    return run_cohort("views", jobs, dump_one, folder, manner, workers=n_workers)


def dump_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Write the views of one slide."""
    from cytofm_cli.views.run import dump_views

    return dump_views(task.payload, report.progress, report.note)


def refuse_stores(folder: Path) -> None:
    """Keep dumps apart from stores: both are called .zarr.

    Raises:
        UsageError: stores lie in `folder`.
    """
    inside = folder.glob(f"*{STORE_SUFFIX}") if folder.is_dir() else ()
    if is_store(folder) or any(is_store(path) for path in inside):
        raise UsageError(f"-o {folder}: holds stores.", hint="give views a folder of their own.")
