"""`cytofm pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.api.inputs import find_stores
from cytofm_cli.cli.options import CommonOptions, Settings, parse_settings
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.config import option
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.views.config import RECIPES, ViewsConfig

if TYPE_CHECKING:
    from cytofm_cli.pretrain.plan import Plan


@dataclass(frozen=True, kw_only=True)
class PretrainViews(ViewsConfig):
    """The settings of the views, but that the method brings its recipe."""

    recipe: str | None = option(  # type: ignore[assignment]
        None, "set of views [default: the method's]", choices=RECIPES
    )


def pretrain(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the RUN.")],
    settings: Settings = None,
    slides: Annotated[
        Path | None,
        typer.Option(help="Folder where the slides lie now, for stores without pixels."),
    ] = None,
    *,
    config: PretrainConfig,
    views: PretrainViews,
    run: CommonOptions,
) -> None:
    """Pretrain an encoder on tiles and nuclei, without labels; resumes by itself.

    Examples:

      cytofm pretrain stores -o run --method dino --encoder sr-vit-tiny --steps 20000

      torchrun --nproc-per-node 4 -m cytofm_cli pretrain stores -o run --batch 1024
    """
    from cytofm_cli.pretrain import run as runs
    from cytofm_cli.pretrain.plan import make_plan

    given = {field.name: getattr(views, field.name) for field in fields(ViewsConfig)}
    plain = ViewsConfig(**{**given, "recipe": views.recipe or _recipe(config.method)})
    paths = find_stores(stores)
    chosen = parse_settings(settings)
    if run.dry_run:
        plan = make_plan(config, plain, paths, chosen, slides=slides)
        out.data(str(folder), _record(plan))
        out.note(_one_line(plan))
        return
    with out.progress_bar(f"pretrain {config.method}", 1, "runs", "steps") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.part("training", done, total, f"loss {loss:.4g}")

        report = runs.pretrain(
            config,
            plain,
            paths,
            folder,
            settings=chosen,
            slides=slides,
            overwrite=run.overwrite,
            note=out.note,
            progress=progress,
        )
    if not report.is_main:
        return
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    encoder = str(folder / report.encoder.name)
    out.data(encoder, report.summary | {"run": str(folder), "encoder_file": encoder})


def _recipe(method: str) -> str:
    """Return the views of a method: those of its name, or for plug-ins of others DINO's."""
    return method if method in RECIPES else "dino"


def _record(plan: Plan) -> dict[str, Any]:
    return {name: dict(section) for name, section in plan.record.items()}


def _one_line(plan: Plan) -> str:
    length = plan.length
    epochs = length.n_steps * length.batch / plan.index.n_tiles
    return (
        f"would train {plan.config.method} with {plan.config.encoder} for {length.n_steps} steps "
        f"of {length.batch} tiles, {epochs:.1f} passes over {plan.index.n_tiles} tiles"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "pretrain", pretrain)
