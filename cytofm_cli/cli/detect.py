"""`cytofm detect`."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import show
from cytofm_cli.cli.plugin_settings import SetWords, StainWord, parse_settings, with_stain
from cytofm_cli.nuclei.config import DetectConfig


def detect(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    settings: SetWords = None,
    stain: StainWord = None,
    *,
    config: DetectConfig,
    run: RunOptions,
) -> None:
    """Find the nuclei of every tile: centroid, area, probability, class, outline.

    Examples:

      cytofm detect stores

      cytofm detect stores --stain mgg --set min_probability=0.5

      cytofm detect stores --detector cellvit --weights CellViT-256-x40-AMP.pth

      cytofm detect stores --detector import --nuclei folder-of-geojson
    """
    from cytofm_cli.api.detect import detect as run_detect

    own = with_stain(parse_settings(settings), stain)
    show("detect", run, functools.partial(run_detect, stores, config, detector_settings=own))


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "detect", detect)
