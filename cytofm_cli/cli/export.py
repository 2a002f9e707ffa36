"""`cytofm export`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.cli.inputs import find_stores
from cytofm_cli.cli.options import CommonOptions, SetWords, parse_settings
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.config import Layer, resolve
from cytofm_cli.errors import CytofmError, SomeSlidesFailedError, UsageError
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.registry import ExporterPlugin, exporters

if TYPE_CHECKING:
    from cytofm_cli.exporters.base import Report
    from cytofm_cli.exporters.product import Product

_OF_ALL = ("to", "slides")  # settings that every exporter takes


def export(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    settings: SetWords = None,
    *,
    config: ExportConfig,
    common: CommonOptions,
) -> None:
    """Write bags as h5 (TRIDENT, CLAM) or pt files, nuclei as GeoJSON (QuPath) or CSV.

    Files that are there and up to date are skipped.

    Examples:

      cytofm export stores -o trident --to h5

      cytofm export stores -o clam --to h5 --layout clam

      cytofm export stores -o cells --to pt --unit cell --encoder cytofm-tiny

      cytofm export stores -o qupath --to geojson,csv --run RUN
    """
    chosen = _chosen(config.to)
    _refuse_unused(config, chosen)
    own = _own_settings(chosen, parse_settings(settings))

    def products(path: Path, report: Report) -> list[Product]:
        from cytofm_cli.exporters.base import ExportRequest
        from cytofm_cli.store.io import open_store

        shared: dict[str, Any] = {}
        store = open_store(path)
        return [
            product
            for name, plugin in chosen.items()
            for product in plugin.make(
                ExportRequest(
                    store=store,
                    folder=folder,
                    config=config,
                    own=own.get(name),
                    note=out.note,
                    report=report,
                    shared=shared,
                )
            )
        ]

    _export_all(find_stores(stores), folder, products, common)


def _chosen(to: Sequence[str]) -> dict[str, ExporterPlugin]:
    """Return the exporters that are named, each once, in their order.

    Raises:
        UsageError: there is no such one.
    """
    known = exporters.names()
    for word in to:
        if exporters.key(word) not in known:
            raise UsageError(f"--to {word}: choose {', '.join(exporters.words())}.")
    if not to:
        raise UsageError("--to: nothing is named.", hint=f"choose {', '.join(exporters.words())}")
    return {name: exporters.load(name) for name in dict.fromkeys(map(exporters.key, to))}


def _refuse_unused(config: ExportConfig, chosen: Mapping[str, ExporterPlugin]) -> None:
    """Refuse a setting that no exporter of this call looks at."""
    every = exporters.usable()
    for name, value in vars(config).items():
        if name in _OF_ALL or value is None:
            continue
        takers = [kind for kind, plugin in every.items() if name in plugin.options]
        if set(takers) & set(chosen):
            continue
        kinds = f"--to {' or '.join(takers)}"
        for what in dict.fromkeys(what for kind in takers for what in every[kind].what):
            if takers == [kind for kind, plugin in every.items() if what in plugin.what]:
                kinds = f"{what} ({kinds})"
        raise UsageError(
            f"--{name} is for {kinds}, not for --to {','.join(chosen)}.", hint="leave it away"
        )


def _own_settings(chosen: Mapping[str, ExporterPlugin], given: Layer) -> dict[str, Any]:
    """Return the exporters' own settings, by exporter.

    Raises:
        UsageError: a setting that none of them has, or that several could mean.
    """
    configs = {name: plugin.config for name, plugin in chosen.items() if plugin.config}
    if given and len(configs) != 1:
        raise UsageError(
            f"--set: {len(configs)} of --to {','.join(chosen)} have settings of their own.",
            hint="one at a time" if configs else "leave it away",
        )
    return {name: resolve(config, name, given) for name, config in configs.items()}


def _export_all(stores: Sequence[Path], folder: Path, products: Any, common: CommonOptions) -> None:
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
    out.note(f"export: {', '.join(told)}")
    if errors and len(errors) == n_stores:
        raise type(errors[0])(
            f"none of {n_stores} stores could be written.", hint="the lines above say why."
        )
    if errors:
        raise SomeSlidesFailedError(f"{len(errors)} of {n_stores} stores failed; see above.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "export", export)
