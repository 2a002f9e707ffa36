"""`cytofm report`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import ReportOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import Counting
from cytofm_cli.report.config import ReportConfig
from cytofm_cli.units import human_bytes


def report(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN… STORES…", help="Made by `mil train`; stores of their slides."),
    ],
    page: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path(
        "report.html"
    ),
    *,
    config: ReportConfig,
    run: ReportOptions,
) -> None:
    """Write one page about RUNs: metrics, curves, every slide, and the cells that decided.

    The page opens from the disk without a network. Cells stand in order of the attention or scores
    that `mil score RUN STORES` has put into the stores. Several RUNs are compared.

    Examples:

      cytofm report run stores -o report.html

      cytofm report run-abmil run-mean stores -o both.html --cells 20
    """
    from cytofm_cli.api.report import make_report, split_words

    runs, stores = split_words(words)
    with ExitStack() as stack:
        made = make_report(
            runs,
            stores or None,
            page,
            config,
            **run.flags(),
            listen=Counting("report", stack),
        )
    for line in made.warnings:
        out.warn(line)
    beside = f", pictures in {made.files}" if made.files else ""
    out.note(
        f"report: {made.n_slides} slides, {made.n_pictured} with pictures, "
        f"{human_bytes(made.n_bytes)}{beside}"
    )
    record = {
        "report": str(made.path),
        "files": None if made.files is None else str(made.files),
        "bytes": made.n_bytes,
        "slides": made.n_slides,
        "pictured": made.n_pictured,
        "warnings": list(made.warnings),
    }
    out.data(str(made.path), record)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "report", report)
