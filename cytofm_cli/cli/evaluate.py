"""`cytofm evaluate`: judge frozen encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.cli.options import CommonOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.config import ProbeConfig

if TYPE_CHECKING:
    from cytofm_cli.evaluate.choice import Choice
    from cytofm_cli.evaluate.features import Source


PointsTable = Annotated[
    Path | None,
    typer.Option(
        help="Table slide_id|image,x,y,label[,group]; level-0 pixels [default: the labels that "
        "stores of `tile --cells` hold]."
    ),
]
GroupsTable = Annotated[
    Path | None, typer.Option(help="Table slide_id|image,group: what is held out together.")
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(help="NAME, weight FILE, or NAME=FILE; repeat to compare [default: handcrafted]."),
]


def probe(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="SLIDES|STORES", help="Slides, or stores.")
    ] = None,
    points: PointsTable = None,
    folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the RUN to make.")
    ] = None,
    groups: GroupsTable = None,
    encoder: Encoders = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weight file of the one encoder that needs one.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option(help="Random weights for encoders named without a file: a floor.")
    ] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] of slides.")
    ] = None,
    *,
    config: ProbeConfig,
    run: CommonOptions,
) -> None:
    """Judge frozen encoders on labelled cells: k-NN, linear and few-shot probes.

    Whole groups (patients, blocks of staining) are held out; intervals are over slides.

    Examples:

      cytofm evaluate probe slides --points points.csv -o run --slide-mpp 0.25

      cytofm evaluate probe stores --points p.csv -o out --encoder a.safetensors

      cytofm evaluate probe cell-stores --groups patients.csv -o run
    """
    from cytofm_cli.api.probe import probe as judge
    from cytofm_cli.api.probe import sources_of
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.work.device import check_device

    words = inputs or []
    if not words and manifest is None:
        raise UsageError("no slides are given.", hint="cytofm evaluate probe slides/ --points …")
    if folder is None:
        raise UsageError("needs a folder.", hint="--points points.csv -o RUN")
    named = encoder or ["handcrafted"]
    how: dict[str, Any] = {"weights": weights, "random_weights": random_weights}
    if run.dry_run:
        check_device(config.device)
        choices = choose(named, **how, seed=config.seed)
        _say_plan(config, sources_of(words, manifest, warn=out.warn), points, choices, groups)
        return
    with out.progress_bar("evaluate", len(named), "encoders", "cells") as bar:
        report = judge(
            words,
            points,
            folder,
            config,
            encoders=named,
            **how,
            groups=groups,
            manifest=manifest,
            overwrite=run.overwrite,
            note=out.warn,
            progress=bar.part,
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    _say_results(report.metrics, folder)


def _say_plan(
    config: ProbeConfig,
    sources: Sequence[Source],
    points: Path | None,
    choices: Sequence[Choice],
    groups: Path | None,
) -> None:
    """Say what would be judged."""
    from cytofm_cli.evaluate import tables
    from cytofm_cli.evaluate.notes import plan_notes
    from cytofm_cli.evaluate.plan import make_plan

    plan = make_plan(config, sources, points, choices, groups=groups)
    for line in plan_notes(plan):
        out.warn(line)
    for task in plan.tasks:
        out.note(tables.task_line(task.name, task.classes, task.counts))
    out.note(
        f"would judge {len(choices)} encoder(s) on {len(plan.points)} {config.unit}s: "
        f"{', '.join(task.name for task in plan.tasks)}"
    )


def _say_results(metrics: Mapping[str, Any], folder: Path) -> None:
    from cytofm_cli.evaluate import tables

    for name, of in metrics["tasks"].items():
        out.note(tables.task_line(name, of["classes"], of["counts"]))
    for line in metrics.get("notes", []):  # a RUN of an older version has none
        out.warn(line)
    for label in metrics["encoders"]:
        of_tasks = {name: of["encoders"][label] for name, of in metrics["tasks"].items()}
        record = {"encoder": label, "run": str(folder), "tasks": of_tasks}
        out.data(tables.one_line(label, metrics), record)
    out.note(f"see {folder / 'table.md'}")


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Judge frozen encoders on labelled cells and tiles.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.callback()(_group)
    register_command(group, "probe", probe)
    app.add_typer(group, name="evaluate")


def _group() -> None:
    """Judge frozen encoders on labelled cells and tiles."""
