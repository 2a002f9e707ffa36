"""`cytofm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.inputs import find_stores
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import each_of
from cytofm_cli.errors import UsageError

_FORMATS = ("h5", "pt", "geojson", "csv")
_LAYOUTS = ("trident", "clam")


def export(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    to: Annotated[str, typer.Option(help="Kind of file.", metavar="|".join(_FORMATS))] = "h5",
    layout: Annotated[
        str, typer.Option(help="Whose h5 layout.", metavar="|".join(_LAYOUTS))
    ] = "trident",
    encoder: Annotated[
        str | None, typer.Option(help="Which embeddings [default: the only ones].")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Whose nuclei [default: the only ones].")
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="Where the slides lie now, for stores without pixels.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only data and errors.")] = False,
) -> None:
    """Write bags as h5 (TRIDENT, CLAM) or pt files, nuclei as GeoJSON (QuPath) or CSV.

    Examples:

      cytofm export stores -o trident --to h5

      cytofm export stores -o clam --to h5 --layout clam

      cytofm export stores -o tensors --to pt --encoder handcrafted

      cytofm export stores -o qupath --to geojson
    """
    out.json, out.quiet = as_json, quiet
    from cytofm_cli.store import export as exporters
    from cytofm_cli.store.io import open_store

    if to not in _FORMATS:
        raise UsageError(f"--to {to}: choose {', '.join(_FORMATS)}.")
    if layout not in _LAYOUTS:
        raise UsageError(f"--layout {layout}: choose {', '.join(_LAYOUTS)}.")

    def write(path: Path) -> list[Path]:
        store = open_store(path)
        if to in ("geojson", "csv"):
            from cytofm_cli.nuclei import export as nuclei

            write_nuclei = nuclei.export_geojson if to == "geojson" else nuclei.export_csv
            return write_nuclei(store, folder, detector=detector, slides=slides)
        write_bag = {
            "pt": exporters.export_pt,
            "trident": exporters.export_trident,
            "clam": exporters.export_clam,
        }[to if to == "pt" else layout]
        return write_bag(store, folder, encoder=encoder)

    each_of(find_stores(stores), write)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)
