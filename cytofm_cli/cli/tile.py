"""`cytofm tile`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import EngineOptions, Out
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import show
from cytofm_cli.tiles.config import TileConfig


def tile(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Slides, folders, globs, or - for a list on stdin.")
    ] = None,
    out_folder: Out = Path("stores"),
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] instead of, or besides, inputs.")
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Images of cells instead of slides: table file[,slide_id,label,mpp,x,y], or a "
            "folder, .tar or .zip. Inputs then name what holds the table's files."
        ),
    ] = None,
    cell_fill: Annotated[
        str,
        typer.Option(
            metavar="auto|border|black|white|0..255",
            help="What surrounds a cell; another background of cut-out cells is painted over. "
            "auto: their own, else the colour of each image's border.",
        ),
    ] = "auto",
    preview: Annotated[
        Path | None, typer.Option(help="Folder for pictures of the mask and the chosen tiles.")
    ] = None,
    *,
    config: TileConfig,
    run: EngineOptions,
) -> None:
    """Tile slides into one Zarr store a slide.

    Examples:

      cytofm tile slides/ -o stores

      cytofm tile fields/*.jpg -o stores --slide-mpp 0.25 --tile-px 256

      cytofm tile slides/ -o stores --select random --max-tiles 100

      cytofm tile cells.tar --cells cells.csv -o stores
    """
    from cytofm_cli.api.tile import tile as run_tile

    step = functools.partial(
        run_tile,
        *(inputs, out_folder, config),
        manifest=manifest,
        cells=cells,
        cell_fill=cell_fill,
        preview=preview,
    )
    show("tile", run, step)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "tile", tile)
