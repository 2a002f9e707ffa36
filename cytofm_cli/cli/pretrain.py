"""`cytofm pretrain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.api.inputs import find_stores_and_packs
from cytofm_cli.cli.options import CommonOptions, SlidesNow
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.plugin_settings import SetWords, parse_settings
from cytofm_cli.config import read_toml
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.views.config import ViewsConfig

if TYPE_CHECKING:
    from cytofm_cli.pretrain.plan import Plan


def pretrain(
    stores: Annotated[list[str], typer.Argument(help="Stores, folders of stores, or packs.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the RUN.")],
    settings: SetWords = None,
    slides: SlidesNow = None,
    *,
    config: PretrainConfig,
    views: PretrainViews,
    run: CommonOptions,
) -> None:
    """Pretrain an encoder on tiles and nuclei, without labels; resumes by itself.

    In a --config file the settings of the method stand in a table of its name: [dino].

    Examples:

      cytofm pretrain stores -o run --encoder sr-vit-tiny --steps 20000

      torchrun --nproc-per-node 4 -m cytofm_cli pretrain stores -o run
    """
    plain = views_of(config.method, views, config.encoder)
    chosen = _of_file(run.config, config.method) | parse_settings(settings)
    if run.dry_run:
        _say_plan(config, plain, find_stores_and_packs(stores), folder, chosen, slides)
    else:
        _pretrain(config, plain, stores, folder, chosen, slides, overwrite=run.overwrite)


def _of_file(file: Path | None, method: str) -> dict[str, Any]:
    """Return the settings of the method that a configuration file states.

    Raises:
        UsageError: its table is none.
    """
    table = {} if file is None else read_toml(file).get(method, {})
    if not isinstance(table, dict):
        raise UsageError(f"{file}: [{method}] must be a table.")
    return table


def _say_plan(
    config: PretrainConfig,
    views: ViewsConfig,
    paths: Sequence[Path],
    folder: Path,
    chosen: Mapping[str, Any],
    slides: Path | None,
) -> None:
    """Say what would be trained."""
    from cytofm_cli.pretrain.plan import make_plan

    plan = make_plan(config, views, paths, chosen, slides=slides)
    out.data(str(folder), _record(plan))
    out.note(_one_line(plan))


def _pretrain(
    config: PretrainConfig,
    views: ViewsConfig,
    stores: Sequence[str],
    folder: Path,
    chosen: Mapping[str, Any],
    slides: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Train, and say where the encoder is."""
    from cytofm_cli.api.pretrain import pretrain_encoder

    with out.progress_bar(f"pretrain {config.method}", 1, "runs", "steps") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.part("training", done, total, f"loss {loss:.4g}")

        report = pretrain_encoder(
            stores,
            folder,
            config,
            views=views,
            method_settings=chosen,
            slides=slides,
            overwrite=overwrite,
            note=out.note,
            progress=progress,
        )
    if not report.is_main:
        return
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    encoder = str(folder / report.encoder.name)
    out.data(encoder, report.summary | {"run": str(folder), "encoder_file": encoder})


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
