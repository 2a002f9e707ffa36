"""`cytofm evaluate`: judge frozen encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.inputs import are_stores, find_slides, find_stores, store_id
from cytofm_cli.cli.options import CommonOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.config import ProbeConfig


def probe(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="SLIDES|STORES", help="Slides, or stores.")
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(help="Table slide_id|image,x,y,label[,group]; level-0 pixels."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the RUN to make.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="Table slide_id|image,group: what is held out together.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, weight FILE, or NAME=FILE; repeat to compare [default: handcrafted]."
        ),
    ] = None,
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

      cytofm evaluate probe slides/ --points points.csv -o probe --slide-mpp 0.25

      cytofm evaluate probe stores --points points.csv -o probe --encoder run/encoder.safetensors
    """
    from cytofm_cli.evaluate import tables
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.evaluate.features import Source
    from cytofm_cli.evaluate.notes import plan_notes
    from cytofm_cli.evaluate.plan import make_plan
    from cytofm_cli.evaluate.run import probe_run
    from cytofm_cli.work.device import check_device

    words = inputs or []
    if not words and manifest is None:
        raise UsageError("no slides are given.", hint="cytofm evaluate probe slides/ --points …")
    if points is None or folder is None:
        raise UsageError("needs labelled points and a folder.", hint="--points points.csv -o RUN")
    check_device(config.device)  # a wrong one is told before anything is read
    choices = choose(
        encoder or ["handcrafted"],
        weights=weights,
        random_weights=random_weights,
        seed=config.seed,
    )
    if words and manifest is None and are_stores(words):
        sources = [Source(store_id(path), str(path)) for path in find_stores(words)]
    else:
        refs = find_slides(words, manifest)
        sources = [Source(ref.slide_id, ref.path, ref.mpp) for ref in refs]
    if run.dry_run:
        plan = make_plan(config, sources, points, choices, groups=groups)
        for line in plan_notes(plan):
            out.warn(line)
        for task in plan.tasks:
            out.note(tables.task_line(task.name, task.classes, task.counts))
        out.note(
            f"would judge {len(choices)} encoder(s) on {len(plan.points)} {config.unit}s: "
            f"{', '.join(task.name for task in plan.tasks)}"
        )
        return
    with out.progress_bar("evaluate", len(choices), "encoders", "cells") as bar:
        report = probe_run(
            config,
            sources,
            points,
            choices,
            folder,
            groups=groups,
            overwrite=run.overwrite,
            progress=bar.part,
            note=out.warn,
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    for name, of in report.metrics["tasks"].items():
        out.note(tables.task_line(name, of["classes"], of["counts"]))
    for line in report.metrics.get("notes", []):  # a RUN of an older version has none
        out.warn(line)
    for label in report.metrics["encoders"]:
        found = {name: of["encoders"][label] for name, of in report.metrics["tasks"].items()}
        out.data(
            tables.one_line(label, report.metrics),
            {"encoder": label, "run": str(folder), "tasks": found},
        )
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
