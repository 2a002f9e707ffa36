"""`cytofm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.inputs import find_stores
from cytofm_cli.cli.out import out
from cytofm_cli.errors import UsageError

_FORMATS = ("h5", "pt")
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
) -> None:
    """Write bags as h5 (TRIDENT, CLAM) or pt files, which existing MIL code reads.

    Examples:

      cytofm export stores -o trident --to h5

      cytofm export stores -o clam --to h5 --layout clam

      cytofm export stores -o tensors --to pt --encoder handcrafted
    """
    from cytofm_cli.store import export as exporters
    from cytofm_cli.store.io import open_store

    if to not in _FORMATS:
        raise UsageError(f"--to {to}: choose {', '.join(_FORMATS)}.")
    if layout not in _LAYOUTS:
        raise UsageError(f"--layout {layout}: choose {', '.join(_LAYOUTS)}.")
    write = {
        "pt": exporters.export_pt,
        "trident": exporters.export_trident,
        "clam": exporters.export_clam,
    }[to if to == "pt" else layout]
    for path in find_stores(stores):
        for file in write(open_store(path), folder, encoder=encoder):
            out.data(str(file))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)
