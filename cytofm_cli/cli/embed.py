"""`cytofm embed`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import show
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.tiles.config import TileConfig


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
    from cytofm_cli.api.embed import embed as run_embed

    step = functools.partial(run_embed, inputs, out_folder, config, tile=tile, manifest=manifest)
    show("embed", run, step)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "embed", embed)
