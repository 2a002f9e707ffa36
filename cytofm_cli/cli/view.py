"""`cytofm view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import SlidesNow
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import UsageError


def view(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", help="RUN whose attention is shown; twice: side by side."),
    ] = None,
    slides: SlidesNow = None,
    marks: Annotated[
        Path | None,
        typer.Option(help="File of the marks [default: RUN.marks.jsonl beside the RUN or stores]."),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port of this machine to listen on; 0: a free one.", min=0)
    ] = 0,
    export_marks: Annotated[
        Path | None,
        typer.Option(help="Write the marks to FILE.csv, or to a folder of GeoJSON, and stop."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
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
        for path in viewing.export_marks(stores, export_marks, runs, marks=marks):
            out.data(str(path), {"file": str(path)})
        return
    if port > 65535:
        raise UsageError(f"--port {port}: ports end at 65535.")

    def started(url: str) -> None:
        out.data(url, {"url": url})
        out.note("view: open this address in a browser of this machine; Ctrl-C ends it")
        if open_page:
            import webbrowser

            webbrowser.open(url)

    viewing.view(stores, runs, slides=slides, marks=marks, port=port, started=started)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "view", view)
