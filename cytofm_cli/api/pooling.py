"""Stores → one table with a vector a slide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.api.given import PathLike, Paths, config_of, words_of
from cytofm_cli.api.inputs import find_stores, refuse_namesakes
from cytofm_cli.errors import OutputError, UsageError
from cytofm_cli.exporters.config import ExportConfig

SUFFIX = ".h5ad"


@dataclass(frozen=True)
class Pooled:
    """A table of slides.

    Attributes:
        path: the file.
        n_slides: its rows.
        n_values: its columns; 0 where nothing was written.
    """

    path: Path
    n_slides: int
    n_values: int


def pool_slides(
    stores: Paths,
    out: PathLike,
    pool: str | list[str] | None = None,
    config: ExportConfig | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> Pooled:
    """Write a vector a slide, pooled over its tiles or cells without training, as AnnData.

    Args:
        stores: stores, or folders of stores: one or several.
        out: the file, `….h5ad`.
        pool: what is pooled, one or several: mean and max of the embeddings, counts (the share of
            each class among the nuclei, of `cells apply` where there is one, else the detector's).
        config: settings as a whole; instead, each may be given by its name (`unit="cell"`).
        overwrite: replace a file that is there.
        dry_run: write nothing.
        progress: called with (stores done, of how many).
        **settings: `encoder`, `unit`, `detector`, `classes` of `ExportConfig`.

    Raises:
        UsageError: nothing to pool, or a setting that has no effect.
        OutputError: the file is there, or cannot be written.
        StoreError, InputError: a store cannot be pooled, or not as the others.
    """
    from cytofm_cli.exporters.pooled import pool_slides as pool_all

    if pool is not None:
        settings = {**settings, "pool": tuple(words_of(pool))}
    config = config_of(ExportConfig, config, settings, "pool_slides")
    path = Path(out)
    _check(config, path, overwrite=overwrite)
    paths = find_stores(words_of(stores))
    refuse_namesakes(paths, hint="pool them into a file each")
    if dry_run:
        return Pooled(path, len(paths), 0)
    slides = pool_all(
        paths,
        path,
        config.pool or (),
        encoder=config.encoder,
        unit=config.unit or "tile",
        detector=config.detector,
        classes=config.classes,
        report=progress,
    )
    return Pooled(path, len(slides), len(slides[0].values))


def _check(config: ExportConfig, path: Path, *, overwrite: bool) -> None:
    if not config.pool:
        raise UsageError("nothing is pooled.", hint="--pool mean, max or counts")
    for name in ("layout", "run", "measure", "origin"):
        if getattr(config, name) is not None:
            raise UsageError(f"--{name}: has no effect with --pool.")
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: --pool writes one AnnData file.", hint=f"-o slides{SUFFIX}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists.", hint="--overwrite replaces it")
