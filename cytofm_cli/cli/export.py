"""`cytofm export`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.api.inputs import find_stores, store_id, take_shard
from cytofm_cli.cli.options import CommonOptions, SetWords, Sharded, parse_settings
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import CytofmError, SomeSlidesFailedError
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.exporters.plan import ExportPlan

if TYPE_CHECKING:
    from cytofm_cli.exporters.base import Report
    from cytofm_cli.exporters.product import Product


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Sharded, CommonOptions):
    """Settings of [run] that an export has."""


def export(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    settings: SetWords = None,
    *,
    config: ExportConfig,
    common: ExportOptions,
) -> None:
    """Write bags as h5 (TRIDENT, CLAM) or pt files, nuclei as GeoJSON (QuPath) or CSV.

    Files that are there and up to date are skipped.

    Examples:

      cytofm export stores -o trident --to h5

      cytofm export stores -o clam --to h5 --layout clam

      cytofm export stores -o cells --to pt --unit cell --encoder cytofm-tiny

      cytofm export stores -o qupath --to geojson,csv --run RUN
    """
    plan = ExportPlan.of(config, parse_settings(settings))

    def products(path: Path, report: Report) -> list[Product]:
        return plan.products(path, folder, note=out.note, report=report)

    paths = take_shard(find_stores(stores), common.shard, key=store_id)
    _export_all(paths, folder, products, common)


def _export_all(stores: Sequence[Path], folder: Path, products: Any, common: ExportOptions) -> None:
    """Write the files of each store; one that fails does not stop the others.

    Args:
        stores: to export.
        folder: of the export.
        products: gives the products of a store, called as `products(store, report)`.
        common: `overwrite` and `dry_run` matter.

    Raises:
        CytofmError: the error of the only store, that some or all failed, or that a signal came.
    """
    from cytofm_cli.exporters.product import make, status_of
    from cytofm_cli.work.signals import catch_signals

    errors: list[CytofmError] = []
    counts: Counter[str] = Counter()
    n_done = 0
    do = status_of if common.dry_run else make
    with catch_signals() as stop, out.progress_bar("export", len(stores), "stores") as bar:
        for store in stores:
            if stop:
                break
            try:
                for product in products(store, functools.partial(bar.part, store.name)):
                    status = do(product, folder, overwrite=common.overwrite)
                    counts[status] += len(product.files)
                    for file in product.files:
                        record = {"store": str(store), "file": str(file), "status": status}
                        out.data(str(file), record)
            except CytofmError as error:
                errors.append(error)
                if len(stores) > 1:  # the only store's error is raised, and printed, at the end
                    out.error(error, hint=error.hint not in {e.hint for e in errors[:-1]})
            n_done += 1
            bar.finish(store.name)
    _conclude(errors, counts, len(stores), dry_run=common.dry_run)
    if stop and n_done < len(stores):
        raise stop.error()


def _conclude(
    errors: Sequence[CytofmError], counts: Counter[str], n_stores: int, *, dry_run: bool
) -> None:
    if errors and n_stores == 1:
        raise errors[0]
    words = {"written": "would be written" if dry_run else "written", "skipped": "up to date"}
    told = [f"{counts[key]} file(s) {word}" for key, word in words.items() if counts[key]]
    if errors:
        told.append(f"{len(errors)} store(s) failed")
    out.note(f"export: {', '.join(told) or 'no stores in this part'}")
    if errors and len(errors) == n_stores:
        raise type(errors[0])(
            f"none of {n_stores} stores could be written.", hint="the lines above say why."
        )
    if errors:
        raise SomeSlidesFailedError(f"{len(errors)} of {n_stores} stores failed; see above.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "export", export)
