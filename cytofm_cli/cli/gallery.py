"""`cytofm gallery`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import DrawingOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import Counting
from cytofm_cli.report.config import GalleryConfig


def gallery(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for page and sheets.")],
    *,
    config: GalleryConfig,
    run: DrawingOptions,
) -> None:
    """Show the cells of slides in order: the largest, the darkest, the most unlike the rest.

    Needs nuclei and no RUN. outlier, the distance from most cells of a slide, needs embeddings of
    cells; classes those of `cells apply`, attention that of `mil score`.

    Examples:

      cytofm gallery stores -o gallery

      cytofm gallery stores -o large --by area_um2,outlier --per-slide 5

      cytofm gallery stores -o looked-at --by attention --run RUN
    """
    from cytofm_cli.api.gallery import make_gallery

    with ExitStack() as stack:
        listen = Counting("gallery", stack)
        made = make_gallery(stores, folder, config, **run.flags(), listen=listen)
    for line in made.warnings:
        out.warn(line)
    for one in made.galleries:
        out.note(f"{one.title}: {len(one.cells)} of {one.n} nuclei")
    record = {
        "gallery": str(made.page),
        "files": list(made.files),
        "orders": {one.title: len(one.cells) for one in made.galleries},
        "warnings": list(made.warnings),
    }
    out.data(str(made.page), record)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "gallery", gallery)
