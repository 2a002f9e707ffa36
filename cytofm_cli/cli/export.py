"""`cytofm export`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytofm_cli.api.inputs import find_stores
from cytofm_cli.cli.out import out
from cytofm_cli.errors import CytofmError, SomeSlidesFailedError, UsageError

if TYPE_CHECKING:
    from cytofm_cli.exporters.product import Product

Report = Callable[[int, int], None]
_BAGS = ("h5", "pt")
_NUCLEI = ("geojson", "csv")
_LAYOUTS = ("trident", "clam")
_UNITS = ("tile", "cell")
_ORIGINS = ("bounds", "slide")


def export(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    to: Annotated[
        str, typer.Option(help="Kinds of files, with commas.", metavar="|".join(_BAGS + _NUCLEI))
    ] = "h5",
    layout: Annotated[
        str | None,
        typer.Option(help="Whose h5 layout [default: trident].", metavar="|".join(_LAYOUTS)),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Which embeddings [default: the only ones].")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="Bags of what [default: tile].", metavar="|".join(_UNITS))
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Whose nuclei [default: the only ones].")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="RUN whose attention of cells goes with the nuclei [default: the only]."),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            help="Where GeoJSON counts from: the scanned part, as QuPath [default], or the slide.",
            metavar="|".join(_ORIGINS),
        ),
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="Where the slides lie now, for stores without pixels.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Make finished files anew, also with other settings."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only data and errors.")] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No progress display.")
    ] = False,
) -> None:
    """Write bags as h5 (TRIDENT, CLAM) or pt files, nuclei as GeoJSON (QuPath) or CSV.

    Files that are there and up to date are skipped.

    Examples:

      cytofm export stores -o trident --to h5

      cytofm export stores -o clam --to h5 --layout clam

      cytofm export stores -o cells --to pt --unit cell --encoder cytofm-tiny

      cytofm export stores -o qupath --to geojson,csv --run RUN
    """
    out.json, out.quiet, out.progress = as_json, quiet, not no_progress
    kinds = _kinds(to)
    _refuse_unused(kinds, bags={"--layout": layout if "h5" in kinds else None, "--encoder": encoder,
                                "--unit": unit},
                   nuclei={"--detector": detector, "--run": run, "--origin": origin})  # fmt: skip
    if layout is not None and "h5" not in kinds:
        raise UsageError(f"--layout is for --to h5, not for {to}.")
    layout = _choice("--layout", layout or "trident", _LAYOUTS)
    unit = _choice("--unit", unit or "tile", _UNITS)
    origin = _choice("--origin", origin or "bounds", _ORIGINS)

    def products(path: Path, report: Report) -> list[Product]:
        from cytofm_cli.exporters import bags
        from cytofm_cli.store.io import open_store

        store = open_store(path)
        made = [
            bags.product(
                store, folder, layout if kind == "h5" else kind, encoder=encoder, unit=unit
            )
            for kind in kinds
            if kind in _BAGS
        ]
        of_nuclei = [kind for kind in kinds if kind in _NUCLEI]
        if of_nuclei:
            from cytofm_cli.exporters import nuclei

            wanted = nuclei.Wanted(detector=detector, run=run, origin=origin, slides=slides)
            made += nuclei.products(store, folder, of_nuclei, wanted, out.note, report)
        return made

    _export_all(find_stores(stores), folder, products, overwrite=overwrite)


def _kinds(to: str) -> list[str]:
    kinds = list(dict.fromkeys(word.strip() for word in to.split(",") if word.strip()))
    for kind in kinds or [to]:
        _choice("--to", kind, _BAGS + _NUCLEI)
    return kinds


def _choice(flag: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UsageError(f"{flag} {value}: choose {', '.join(choices)}.")
    return value


def _refuse_unused(
    kinds: Sequence[str], *, bags: dict[str, str | None], nuclei: dict[str, str | None]
) -> None:
    """Refuse an option that no kind of file looks at."""
    for flags, of_kinds, what in ((bags, _BAGS, "bags"), (nuclei, _NUCLEI, "nuclei")):
        given = [flag for flag, value in flags.items() if value is not None]
        if given and not set(kinds) & set(of_kinds):
            raise UsageError(
                f"{given[0]} is for {what} (--to {' or '.join(of_kinds)}), not for "
                f"--to {','.join(kinds)}.",
                hint="leave it away",
            )


def _export_all(
    stores: Sequence[Path],
    folder: Path,
    products: Callable[[Path, Report], list[Product]],
    *,
    overwrite: bool,
) -> None:
    """Write the files of each store; one that fails does not stop the others.

    Raises:
        CytofmError: the error of the only store, that some or all failed, or that a signal came.
    """
    from cytofm_cli.exporters.product import make
    from cytofm_cli.work.signals import catch_signals

    errors: list[CytofmError] = []
    counts: Counter[str] = Counter()
    n_done = 0
    with catch_signals() as stop, out.progress_bar("export", len(stores), "stores") as bar:
        for store in stores:
            if stop:
                break
            try:
                for product in products(store, functools.partial(bar.part, store.name)):
                    status = make(product, folder, overwrite=overwrite)
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
    _conclude(errors, counts, len(stores))
    if stop and n_done < len(stores):
        raise stop.error()


def _conclude(errors: Sequence[CytofmError], counts: Counter[str], n_stores: int) -> None:
    if errors and n_stores == 1:
        raise errors[0]
    words = {"written": "written", "skipped": "up to date"}
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
    app.command("export")(export)
