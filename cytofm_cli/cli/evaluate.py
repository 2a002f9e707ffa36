"""`cytofm evaluate`: judge frozen encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.cli.options import CommonOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.condition_config import RetentionConfig, RobustnessConfig
from cytofm_cli.evaluate.config import ProbeConfig

if TYPE_CHECKING:
    from cytofm_cli.evaluate.choice import Choice
    from cytofm_cli.evaluate.features import Source
    from cytofm_cli.runs.folder import RunReport


PointsTable = Annotated[
    Path | None,
    typer.Option(
        help="Table slide_id|image,x,y,label[,group]; level-0 pixels [default: the labels that "
        "stores of `tile --cells` hold, or, with --unit tile, of `tile --regions`]."
    ),
]
GroupsTable = Annotated[
    Path | None, typer.Option(help="Table slide_id|image,group: what is held out together.")
]
Inputs = Annotated[
    list[str] | None, typer.Argument(metavar="SLIDES|STORES", help="Slides, or stores.")
]
RunFolder = Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the RUN to make.")]
Weights = Annotated[
    Path | None, typer.Option(help="Weight file of the one encoder that needs one.")
]
RandomWeights = Annotated[
    bool, typer.Option(help="Random weights for encoders named without a file: a floor.")
]
Manifest = Annotated[Path | None, typer.Option(help="Table slide_id,path[,mpp] of slides.")]
Encoders = Annotated[
    list[str] | None,
    typer.Option(help="NAME, weight FILE, or NAME=FILE; repeat to compare [default: handcrafted]."),
]


def probe(
    inputs: Inputs = None,
    points: PointsTable = None,
    folder: RunFolder = None,
    groups: GroupsTable = None,
    encoder: Encoders = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    manifest: Manifest = None,
    *,
    config: ProbeConfig,
    run: CommonOptions,
) -> None:
    """Judge frozen encoders on labelled cells: k-NN, linear and few-shot probes.

    Whole groups (patients, blocks of staining) are held out; intervals are over them.

    Examples:

      cytofm evaluate probe slides --points points.csv -o run --slide-mpp 0.25

      cytofm evaluate probe stores --points p.csv -o out --encoder a.safetensors

      cytofm evaluate probe cell-stores --groups patients.csv -o run
    """
    from cytofm_cli.api.probe import probe as judge
    from cytofm_cli.api.probe import sources_of
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.work.device import check_device

    words, folder = _given(inputs, manifest, folder, "probe slides/ --points points.csv")
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


def robustness(
    inputs: Inputs = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help="Table slide_id|image,x,y,label of cells; level-0 pixels [default: the nuclei, or "
            "tiles, that stores hold]."
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Table slide_a,slide_b[,group] of slides that show the same places: registered, "
            "or planes of one stack; instead of --perturb."
        ),
    ] = None,
    folder: RunFolder = None,
    encoder: Encoders = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    manifest: Manifest = None,
    *,
    config: RobustnessConfig,
    run: CommonOptions,
) -> None:
    """Judge how far stain, scanner and file move the features of the same cells or tiles.

    Cosine and top-k accuracy as PLISM defines them, beside the chance level and the cosine of
    different places: of slides in pairs, or of cells that are perturbed.

    Examples:

      cytofm evaluate robustness stores -o run --encoder cytofm-tiny

      cytofm evaluate robustness stores -o run --perturb jpeg:50,stain:0.2

      cytofm evaluate robustness stores -o run --unit tile --pairs pairs.csv
    """
    from cytofm_cli.api.probe import sources_of
    from cytofm_cli.api.robustness import robustness as judge
    from cytofm_cli.evaluate import condition_tables as tables
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.evaluate.robustness import make_plan

    words, folder = _given(inputs, manifest, folder, "robustness stores/")
    named = encoder or ["handcrafted"]
    how: dict[str, Any] = {"weights": weights, "random_weights": random_weights}
    tables_given: dict[str, Any] = {"points": points, "pairs": pairs}
    if run.dry_run:
        choices = choose(named, **how, seed=config.seed)
        sources = sources_of(words, manifest, warn=out.warn)
        plan = make_plan(config, sources, choices, **tables_given)
        by = f"{len(plan.pairs)} pairs" if pairs else f"{len(config.perturb)} perturbations"
        n = len(plan.places.points)
        out.note(f"would judge {len(choices)} encoder(s) on {n} {config.unit}s: {by}")
        return
    with out.progress_bar("robustness", len(named), "encoders", "images") as bar:
        report = judge(
            words,
            folder,
            config,
            encoders=named,
            **how,
            **tables_given,
            manifest=manifest,
            overwrite=run.overwrite,
            note=out.warn,
            progress=bar.part,
        )
    _say_conditions(report, tables.robustness_line, "groups", "leaderboard")


def retention(
    inputs: Inputs = None,
    points: PointsTable = None,
    folder: RunFolder = None,
    groups: GroupsTable = None,
    encoder: Encoders = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    manifest: Manifest = None,
    *,
    config: RetentionConfig,
    run: CommonOptions,
) -> None:
    """Judge how much a probe of cells loses on cells that are perturbed.

    The linear and k-NN probes of `evaluate probe` learn from unchanged cells, and are asked about
    perturbed ones of other groups (patients, blocks of staining).

    Examples:

      cytofm evaluate retention stores --points p.csv -o run

      cytofm evaluate retention stores --points p.csv -o r --perturb jpeg:30
    """
    from cytofm_cli.api.probe import sources_of
    from cytofm_cli.api.robustness import retention as judge
    from cytofm_cli.evaluate import condition_tables as tables
    from cytofm_cli.evaluate.choice import choose

    words, folder = _given(inputs, manifest, folder, "retention stores/ --points points.csv")
    named = encoder or ["handcrafted"]
    how: dict[str, Any] = {"weights": weights, "random_weights": random_weights}
    if run.dry_run:
        choices = choose(named, **how, seed=config.seed)
        sources = sources_of(words, manifest, warn=out.warn)
        _say_plan(config.as_probe(), sources, points, choices, groups)
        return
    with out.progress_bar("retention", len(named), "encoders", "images") as bar:
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
    for line in report.metrics["notes"]:
        out.warn(line)
    _say_conditions(report, tables.retention_line)


def _given(
    inputs: list[str] | None, manifest: Path | None, folder: Path | None, example: str
) -> tuple[list[str], Path]:
    """Return what is judged and the folder of the RUN.

    Raises:
        UsageError: one of them is missing.
    """
    if not inputs and manifest is None:
        raise UsageError("no slides are given.", hint=f"cytofm evaluate {example} -o RUN")
    if folder is None:
        raise UsageError("needs a folder.", hint="-o RUN")
    return inputs or [], folder


def _say_conditions(
    report: RunReport, line: Callable[[str, Mapping[str, Any]], str], *more: str
) -> None:
    """Say what came out for each encoder; `more` of the metrics have an entry for each."""
    metrics, folder = report.metrics, report.path
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    for label in metrics["encoders"]:
        rows = [row for row in metrics["comparisons"] if row["encoder"] == label]
        record = {"encoder": label, "run": str(folder), "comparisons": rows}
        out.data(line(label, metrics), record | {name: metrics[name][label] for name in more})
    out.note(f"see {folder / 'table.md'}")


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
    register_command(group, "robustness", robustness)
    register_command(group, "retention", retention)
    app.add_typer(group, name="evaluate")


def _group() -> None:
    """Judge frozen encoders on labelled cells and tiles."""
