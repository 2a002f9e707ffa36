"""`cytofm pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import CommonOptions, SlidesNow
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.pretrain.config import PackConfig
from cytofm_cli.units import human_bytes


def pack(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    file: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    slides: SlidesNow = None,
    *,
    config: PackConfig,
    run: CommonOptions,
) -> None:
    """Pack tiles or cells into one file that `pretrain` reads anywhere.

    Examples:

      cytofm pack stores -o cells.pack

      cytofm pack stores -o cells.pack --unit cell --cell-um 24 --codec png

      cytofm pretrain cells.pack -o run --encoder sr-vit-nano
    """
    from cytofm_cli.api.pack import pack as write

    if run.dry_run:
        from cytofm_cli.api.inputs import find_stores

        out.note(f"would pack {len(find_stores(stores))} store(s) into {file}")
        return
    with out.progress_bar("pack", 1, "files", "images") as bar:
        report = write(
            stores,
            file,
            config,
            slides=slides,
            overwrite=run.overwrite,
            progress=lambda done, total: bar.part("packing", done, total),
        )
    for line in report.notes:
        out.note(line)
    facts = report.facts
    out.data(str(file), {"file": str(file), **facts})
    out.note(
        f"{file}: {facts['n_tiles']} images of {facts['n_slides']} slides, "
        f"{human_bytes(facts['bytes'])}"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "pack", pack)
