"""`cytofm heatmap`."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.api.heatmap import heatmap as draw
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.cli.options import SlideOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import show
from cytofm_cli.maps.config import HeatmapConfig


def heatmap(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Made by `mil train`.")],
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    of_class: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="The class that the map speaks for [default: the slide's answer as a whole where "
            "the head has such a map, else the positive class].",
        ),
    ] = None,
    *,
    config: HeatmapConfig,
    run: SlideOptions,
) -> None:
    """Draw the attention or the instance scores of a RUN on slides.

    An OME-TIFF pyramid a slide (QuPath, ASAP), a PNG on its thumbnail, GeoJSON (QuPath). What
    `mil score` has stored is drawn if it is up to date, else the slide is scored. Files that are
    up to date are skipped.

    Examples:

      cytofm heatmap run stores -o maps

      cytofm heatmap run stores -o scores --what score --class HSIL --to png
    """
    step = functools.partial(draw, run_folder, stores, folder, config, of_class=of_class)
    show("heatmap", run, step, sums=_sums)


def _sums(outcomes: Outcomes, *, planned: bool) -> str:
    """Say how many files are there, and how many slides have none."""
    counts: Counter[str] = Counter(
        made["status"] for outcome in outcomes for made in outcome.facts.get("files", ())
    )
    words = {"written": "would be written" if planned else "written", "skipped": "up to date"}
    told = [f"{counts[key]} file(s) {word}" for key, word in words.items() if counts[key]]
    failed = len(outcomes.failed)
    return ", ".join(told + ([f"{failed} slide(s) failed"] if failed else []))


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "heatmap", heatmap)
