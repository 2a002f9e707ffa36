"""`cytofm cells`: learn classes of cells, give them to nuclei, count them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.cells.config import ApplyConfig, CellsConfig, CountConfig
from cytofm_cli.cli.options import CommonOptions, ConfigOptions, RunOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import show
from cytofm_cli.errors import UsageError

if TYPE_CHECKING:
    from cytofm_cli.cells.count import SlideCount

_SHOWN = (0.0, 0.7, 0.9)  # thresholds of the coverage that is printed


def train(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="SLIDES|STORES", help="Slides, or stores.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Table slide_id|image,x,y,label[,group]; level-0 pixels [default: the labels "
            "that stores of `tile --cells` hold]."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the RUN to make.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="Table slide_id|image,group: what is held out together.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="NAME, weight FILE, or NAME=FILE.")] = "cytofm-tiny",
    weights: Annotated[
        Path | None, typer.Option(help="Weight file of an encoder that needs one.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option(help="Random weights for it: a floor to compare with.")
    ] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] of slides.")
    ] = None,
    *,
    config: CellsConfig,
    run: CommonOptions,
) -> None:
    """Learn classes of cells from labelled points, judged on groups held out.

    Examples:

      cytofm cells train stores --labels points.csv -o run

      cytofm cells train stores --labels points.csv -o run --model mlp --ordinal

      cytofm cells train stores-of-cells --groups patients.csv -o run
    """
    from cytofm_cli.api.cells import train_cells

    words = inputs or []
    if not words and manifest is None:
        raise UsageError("no slides are given.", hint="cytofm cells train stores/ --labels …")
    if folder is None:
        raise UsageError("needs a folder for the RUN.", hint="-o RUN")
    how: dict[str, Any] = {"weights": weights, "random_weights": random_weights, "groups": groups}
    if run.dry_run:
        _say_plan(config, words, labels, encoder, manifest, how)
        return
    with out.progress_bar("cells train", 1, "runs", "parts") as bar:
        report = train_cells(
            words,
            labels,
            folder,
            config,
            encoder=encoder,
            manifest=manifest,
            **how,
            overwrite=run.overwrite,
            note=out.warn,
            progress=lambda name, done, total: bar.part("run", done, total, name),
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    _say_results(report.metrics, folder)


def _say_plan(
    config: CellsConfig,
    words: list[str],
    labels: Path | None,
    encoder: str,
    manifest: Path | None,
    how: Mapping[str, Any],
) -> None:
    """Say what would be learnt."""
    from cytofm_cli.api.probe import sources_of
    from cytofm_cli.cells.plan import make_plan
    from cytofm_cli.evaluate import tables
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.work.device import check_device

    check_device(config.device)
    given = {name: how[name] for name in ("weights", "random_weights")}
    (choice,) = choose([encoder], **given, seed=config.seed)
    sources = sources_of(words, manifest, warn=out.warn)
    plan = make_plan(config, sources, labels, choice, groups=how["groups"])
    for line in plan.notes:
        out.warn(line)
    out.note(tables.task_line(plan.task.name, plan.task.classes, plan.task.counts))
    out.note(
        f"would learn {config.model} on {len(plan.task.rows_N)} cells of "
        f"{len(set(plan.points.groups))} groups in {plan.n_folds} folds, by {choice.label}"
    )


def _say_results(metrics: Mapping[str, Any], folder: Path) -> None:
    from cytofm_cli.stats.cautions import interval_text

    def text(estimate: Mapping[str, float | None]) -> str:
        if estimate["value"] is None:
            return "–"
        return f"{estimate['value']:.3f} {interval_text(estimate['low'], estimate['high'])}"

    for line in metrics.get("notes", []):
        out.warn(line)
    for name, of in metrics["classes"].items():
        out.note(f"{name}: {of['cells']} cells, recall {text(of['recall'])}, AUC {text(of['auc'])}")
    if "calibration" in metrics:
        before, after = metrics["calibration"]["before"], metrics["calibration"]["after"]
        out.note(
            f"temperature {metrics['calibration']['temperature']:.2f}: calibration error "
            f"{before['ece']:.3f} → {after['ece']:.3f}, Brier {before['brier']:.3f} → "
            f"{after['brier']:.3f}"
        )
    for row in metrics.get("coverage", []):
        if row["threshold"] in (*_SHOWN, metrics["abstain"]):
            right = "" if row["accuracy"] is None else f", accuracy {row['accuracy']:.3f}"
            out.note(f"above {row['threshold']:g}: {row['coverage']:.1%} of cells{right}")
    line = (
        f"{metrics['encoder']['label']} {metrics['model']}: AUC {text(metrics['auc'])}, balanced "
        f"accuracy {text(metrics['balanced_accuracy'])}"
    )
    out.data(line, {"run": str(folder), "metrics": metrics})


def apply(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Made by `cells train`.")],
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    *,
    config: ApplyConfig,
    run: RunOptions,
) -> None:
    """Give every nucleus a class and its probabilities, in the stores.

    A slide whose cells the RUN has learnt from is judged by the classifier that had held it out.

    Examples:

      cytofm cells apply run stores

      cytofm cells apply run stores --abstain 0.7 --groups patients.csv
    """
    from cytofm_cli.api.cells import apply_cells

    step = functools.partial(apply_cells, run_folder, stores, config)
    show("cells apply", run, step, parts="nuclei")


def count(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    table: Annotated[
        Path | None, typer.Option("-o", "--out", help="Table to write [default: only shown].")
    ] = None,
    *,
    config: CountConfig,
    run: ConfigOptions,
) -> None:
    """Count the classes of nuclei by slide: numbers, shares, mean probabilities.

    Examples:

      cytofm cells count stores -o counts.csv

      cytofm cells count stores -o sure.csv --min-probability 0.9
    """
    from cytofm_cli.api.cells import count_cells

    counts = count_cells(stores, table, config)
    for line in counts.notes:
        out.warn(line)
    for of in counts:
        out.data(_line(of), _record(of))
    if len(counts) + len(counts.failures) > 1:
        for error in counts.failures.values():
            out.error(error)
    if table is not None and len(counts):
        out.note(f"counts: {table}")
    counts.raise_failures()


def _line(of: SlideCount) -> str:
    counts = ", ".join(
        f"{name} {n}" for name, n in zip(of.classes, of.count_C.tolist(), strict=True)
    )
    left = f"; {of.n_abstained} abstained" if of.n_abstained else ""
    left += f"; {of.n_below} below the gate" if of.n_below else ""
    return f"{of.slide_id}: {counts}{left}"


def _record(of: SlideCount) -> dict[str, Any]:
    def known(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value

    def by_class(values: list[float]) -> dict[str, float | None]:
        return dict(zip(of.classes, map(known, values), strict=True))

    return {
        "slide_id": of.slide_id,
        "run": of.run,
        "basis": of.basis,
        "nuclei": of.n,
        "abstained": of.n_abstained,
        "below_gate": of.n_below,
        "n": by_class(of.count_C.tolist()),
        "share": by_class(of.share_C.tolist()),
        "mean": by_class(of.mean_C.tolist()),
        "top": by_class(of.top_C.tolist()),
        "top_score": known(of.top_score),
    }


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Learn classes of cells, give them to nuclei, count them.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    register_command(group, "train", train)
    register_command(group, "apply", apply)
    register_command(group, "count", count)
    app.add_typer(group, name="cells")
