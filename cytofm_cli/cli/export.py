"""`cytofm export`."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.cli.options import SlideOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import show
from cytofm_cli.cli.plugin_settings import SetWords, parse_settings
from cytofm_cli.errors import UsageError
from cytofm_cli.exporters.config import ExportConfig


def export(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    settings: SetWords = None,
    *,
    config: ExportConfig,
    run: SlideOptions,
) -> None:
    """Write bags as h5 (TRIDENT, CLAM), pt or h5ad (AnnData), nuclei as GeoJSON (QuPath) or CSV.

    Files that are there and up to date are skipped.

    Examples:

      cytofm export stores -o trident --to h5

      cytofm export stores -o clam --to h5 --layout clam

      cytofm export stores -o cells --to h5ad --encoder cytofm-tiny

      cytofm export stores -o cells --to spatialdata --set image_px=2048

      cytofm export stores -o qupath --to geojson,csv --run RUN

      cytofm export stores -o slides.h5ad --pool mean,counts --unit cell
    """
    if config.pool is not None:
        _pool(stores, folder, config, settings, run)
        return
    from cytofm_cli.api.export import export_stores

    own = parse_settings(settings)
    step = functools.partial(export_stores, stores, folder, config, exporter_settings=own)
    show("export", run, step, items="stores", parts="nuclei", sums=_sums)


def _pool(
    stores: list[str], path: Path, config: ExportConfig, own: list[str] | None, run: SlideOptions
) -> None:
    """Write one table of all slides."""
    from cytofm_cli.api.pooling import pool_slides

    if own or run.shard:
        raise UsageError("--pool makes one file: it takes neither --set nor --shard.")
    with out.progress_bar("export", len(stores), "stores", "slides") as bar:
        table = pool_slides(
            stores,
            path,
            config=config,
            overwrite=run.overwrite,
            dry_run=run.dry_run,
            progress=lambda done, total: bar.part("slides", done, total),
        )
    if run.dry_run:
        out.note(f"would pool {table.n_slides} slides into {path}")
        return
    out.note(f"{table.n_slides} slides, {table.n_values} numbers each")
    out.data(str(path), {"file": str(path), "slides": table.n_slides, "values": table.n_values})


def _sums(outcomes: Outcomes, *, planned: bool) -> str:
    """Say how many files are there, and how many stores have none."""
    counts: Counter[str] = Counter(
        made["status"] for outcome in outcomes for made in outcome.facts.get("files", ())
    )
    words = {"written": "would be written" if planned else "written", "skipped": "up to date"}
    told = [f"{counts[key]} file(s) {word}" for key, word in words.items() if counts[key]]
    ends = {
        "failed": "failed",
        "refused": "kept with other settings",
        "held": "held by other processes",
    }
    stores: Counter[str] = Counter(outcome.status for outcome in outcomes)
    told += [f"{stores[key]} store(s) {word}" for key, word in ends.items() if stores[key]]
    return ", ".join(told)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "export", export)
