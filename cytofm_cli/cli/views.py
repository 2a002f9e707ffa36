"""`cytofm views`."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.api.inputs import find_stores, store_id, take_shard
from cytofm_cli.cli.options import SlideOptions, SlidesNow
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import show
from cytofm_cli.errors import UsageError
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.files import output_errors, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cytofm_cli.views.preview import ShownTile


def views(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the contact sheet and the dumps.")
    ],
    preview: Annotated[
        int, typer.Option(help="Draw so many random tiles on a contact sheet.", min=0, max=100)
    ] = 0,
    dump: Annotated[
        bool | None,
        typer.Option(
            "--dump/--no-dump", help="Write all views to Zarr [default: unless --preview]."
        ),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Whose nuclei [default: the only ones].")
    ] = None,
    max_tiles: Annotated[
        int | None, typer.Option(help="Dump at most so many random tiles a slide.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all draws.", min=0)] = 0,
    slides: SlidesNow = None,
    *,
    config: ViewsConfig,
    run: SlideOptions,
) -> None:
    """Make nuclei-centred views: a contact sheet to judge them by, or a Zarr dump.

    Examples:

      cytofm views stores -o views --preview 4

      cytofm views stores -o out --recipe dinov2 --preset paper --max-tiles 100
    """
    from cytofm_cli.api.views import make_views, refuse_stores
    from cytofm_cli.views.recipes import recipe_of

    dump = not preview if dump is None else dump
    if not dump and not preview:
        raise UsageError("nothing to make.", hint="--preview 4 draws a contact sheet.")
    recipe_of(config)  # refuse impossible settings before any slide
    paths = take_shard(find_stores(stores), run.shard, key=store_id)
    refuse_stores(folder)
    source: dict[str, Any] = {"detector": detector, "seed": seed, "slides": slides}
    if dump:
        step = functools.partial(make_views, stores, folder, config, max_tiles=max_tiles, **source)
        show("views", run, step)
    # After the dump: its children are forked, and a process with torch's threads must not fork.
    if preview and not run.dry_run:
        _preview(paths, preview, folder, config, run, **source)


def _preview(
    paths: list[Path], n: int, folder: Path, config: ViewsConfig, run: SlideOptions, **how: Any
) -> None:
    import torch

    from cytofm_cli.views.preview import preview

    torch.set_num_threads(run.threads or cpu_count())
    sheet, shown = preview(paths, n, config=config, **how)
    target = folder / f"preview-{config.recipe}-{config.preset}.png"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _save(target, sheet)
    _tell(shown, n)
    out.data(str(target), {"preview": str(target), "tiles": [asdict(tile) for tile in shown]})


def _save(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Write a sheet with 256 colours: shuffled pixels take three times the bytes in full."""
    import pyvips

    picture = pyvips.Image.new_from_array(sheet).copy(interpretation="srgb")
    write_bytes(path, picture.pngsave_buffer(palette=True, Q=90, dither=1.0))


def _tell(shown: list[ShownTile], n: int) -> None:
    for number, tile in enumerate(shown, start=1):
        out.detail(f"tile {number}: {tile.slide_id}, tile {tile.tile}, {tile.n_nuclei} nuclei")
    if len(shown) < n:
        out.note(f"views: only {len(shown)} tiles to draw")
    without = sum(tile.n_nuclei == 0 for tile in shown)
    if without:
        out.note(f"views: {without} of {len(shown)} tiles drawn have no nuclei: plain views")


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "views", views)
