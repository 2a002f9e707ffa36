"""`cytofm view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import ConfigOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.viewer.config import ViewConfig


def view(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", help="RUN whose attention is shown; twice: side by side."),
    ] = None,
    export_marks: Annotated[
        Path | None,
        typer.Option(help="Write the marks to FILE.csv, or to a folder of GeoJSON, and stop."),
    ] = None,
    *,
    config: ViewConfig,
    run: ConfigOptions,
) -> None:
    """Look at slides, nuclei and attention in a browser, and mark cells.

    The page is for this machine alone: open the whole address that is printed, it holds a token.
    Ctrl-C ends it. From elsewhere: ssh -L 8123:localhost:8123, and --port 8123 here.

    Examples:

      cytofm view stores

      cytofm view stores --run model --run other-model

      cytofm view stores --run model --export-marks marks.csv
    """
    from cytofm_cli.api import view as viewing

    if export_marks is not None:
        for path in viewing.export_marks(stores, export_marks, runs, marks=config.marks):
            out.data(str(path), {"file": str(path)})
        return

    def started(url: str) -> None:
        out.data(url, {"url": url})
        out.note("view: open this address in a browser of this machine; Ctrl-C ends it")
        if config.open:
            import webbrowser

            webbrowser.open(url)

    viewing.view(
        stores, runs, slides=config.slides, marks=config.marks, port=config.port, started=started
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "view", view)
