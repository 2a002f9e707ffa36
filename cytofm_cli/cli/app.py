"""The tree of commands. Only the command that is called is imported."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Annotated

import typer

# name: (module, line in `cytofm --help`). A module has `register(app)`.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart", "Simulate a cohort and run the whole pipeline, in minutes."),
    "simulate": ("simulate", "Simulate slides whose truth is known: cells, outlines, labels."),
    "run": ("run", "Tile, detect and embed slides: all steps in one command."),
    "tile": ("tile", "Tile slides into one Zarr store a slide."),
    "detect": ("detect", "Find the nuclei of every tile."),
    "views": ("views", "Make nuclei-centred views: a contact sheet, or a Zarr dump."),
    "pack": ("pack", "Pack tiles or cells into one file for pretraining."),
    "pretrain": ("pretrain", "Pretrain an encoder on tiles and nuclei, without labels."),
    "generate": ("generate", "Train generators of cells, make images with them, judge these."),
    "embed": ("embed", "Turn tiles into embeddings: one bag a slide."),
    "evaluate": ("evaluate", "Judge frozen encoders on labelled cells and tiles."),
    "attention": ("attention", "Show what an encoder's heads look at: nuclei, or the rest."),
    "cells": ("cells", "Learn classes of cells, give them to nuclei, count them."),
    "mil": ("mil", "Train, score and compare slide-level heads on bags."),
    "report": ("report", "Write a page about RUNs: metrics, slides, deciding cells."),
    "gallery": ("gallery", "Show cells by class, size, density or oddness."),
    "heatmap": ("heatmap", "Draw the attention or scores of a RUN on its slides."),
    "export": ("export", "Write bags as h5, pt or h5ad, nuclei as GeoJSON or CSV."),
    "view": ("view", "Look at slides and attention in a browser, and mark cells."),
    "info": ("info", "Say what slides and stores hold."),
    "status": ("status", "Say how far a cohort is: done, running, failed, left."),
    "verify": ("verify", "Read every chunk of stores, and say which are damaged."),
    "encoders": ("listing", "List the encoders that can be loaded."),
    "detectors": ("listing", "List the nuclei detectors."),
    "methods": ("listing", "List the methods of MIL and pretraining, or one's settings."),
    "doctor": ("doctor", "Check this installation and machine."),
}

# What stands at the end of a command's help: where there is more to read.
PAGES: dict[str, str] = {
    "quickstart": "README.md",
    "simulate": "docs/simulate.md",
    "run": "README.md, docs/settings.md",
    "tile": "docs/tiles.md, docs/cell-images.md, docs/settings.md",
    "detect": "docs/nuclei.md",
    "views": "docs/views.md",
    "pack": "docs/pretraining.md",
    "pretrain": "docs/pretraining.md",
    "generate": "docs/generate.md",
    "embed": "docs/tiles.md, docs/cytofm-tiny.md",
    "evaluate": "docs/pretraining.md, docs/robustness.md",
    "attention": "docs/attention.md",
    "cells": "docs/cell-classifier.md",
    "mil": "README.md, docs/mil-benchmark.md",
    "report": "docs/report.md",
    "gallery": "docs/report.md",
    "heatmap": "docs/heatmaps.md, docs/qupath.md",
    "export": "README.md, docs/qupath.md",
    "view": "docs/viewer.md",
    "info": "docs/tiles.md",
    "status": "docs/clusters.md",
    "verify": "docs/tiles.md, SECURITY.md",
    "encoders": "README.md, docs/cytofm-tiny.md",
    "detectors": "docs/nuclei.md",
    "methods": "README.md, docs/pretraining.md",
    "doctor": "docs/clusters.md",
}

_HELP = """From glass slide to slide-level answer, for cytology.

Start with:  cytofm quickstart

Then on your own slides:  cytofm run slides/ -o out  ·  cytofm mil train --bags out/stores
--labels labels.csv --unit cell -o model  ·  cytofm run slides/ -o out --model model
"""
_EPILOG = (
    "Every setting can also stand in a TOML file (--config) or in the environment "
    "(CYTOFM_TILE_MPP=0.25): docs/settings.md. Exit codes: 0 done, 1 our bug, 2 usage, 3 unusable "
    "input, 4 some slides failed, 75 try again, 130 and 143 stopped."
)


def build(arguments: Sequence[str]) -> typer.Typer:
    """Build the command tree for these arguments; other commands are only listed."""
    app = typer.Typer(
        name="cytofm",
        help=_HELP,
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        rich_markup_mode=None,
    )
    app.callback(help=_HELP, epilog=_EPILOG)(_root)
    words = _completed_words() if "_CYTOFM_COMPLETE" in os.environ else arguments
    called = next((word for word in words if not word.startswith("-")), None)
    for name, (module, line) in COMMANDS.items():
        if name == called:
            importlib.import_module(f"cytofm_cli.cli.{module}").register(app)
        else:
            app.command(name, help=line)(_listed_only)
    if called in COMMANDS:
        from cytofm_cli.cli.command import improve

        improve(app, PAGES)
    return app


def _completed_words() -> list[str]:
    """Return the words that the shell asks to complete, without `cytofm` itself."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:]


def _listed_only() -> None:
    """Stand in for a command that is not called in this run."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from cytofm_cli import __version__

        print(f"cytofm {__version__}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    pass
