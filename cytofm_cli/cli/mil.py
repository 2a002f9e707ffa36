"""`cytofm mil`: train heads on bags, score slides with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytofm_cli.cli.mil_score import score
from cytofm_cli.cli.options import CommonOptions, ConfigOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.plugin_settings import SetWords, TuneWords, parse_settings, parse_tune
from cytofm_cli.errors import SomeSlidesFailedError, UsageError
from cytofm_cli.mil.config import BenchmarkConfig, CompareConfig, MilConfig, MilSettings

if TYPE_CHECKING:
    from cytofm_cli.mil.plan import Plan
    from cytofm_cli.mil.sources import Source
    from cytofm_cli.stats.compare import Comparison

Head = Mapping[str, str]
Tune = Mapping[str, Sequence[str]]


def train(
    bags: Annotated[
        Path, typer.Option(help="Folder of stores, or of h5 (CLAM, TRIDENT) or pt files.")
    ],
    labels: Annotated[Path, typer.Option(help="Table slide_id,label[,group][,split].")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the RUN to make.")],
    settings: SetWords = None,
    tune: TuneWords = None,
    *,
    config: MilConfig,
    run: CommonOptions,
) -> None:
    """Train a head by grouped cross-validation and judge it on slides it never saw.

    Examples:

      cytofm mil train --bags stores --labels labels.csv -o run

      cytofm mil train --bags stores --labels labels.csv -o floor --method mean

      cytofm mil train --bags stores --labels y.csv -o tuned --tune lr=1e-4,3e-4
    """
    head, values = parse_settings(settings), parse_tune(tune)
    if run.dry_run:
        _say_plan(config, bags, labels, folder, head, values)
    else:
        _train(config, bags, labels, folder, head, values, overwrite=run.overwrite)


def _say_plan(
    config: MilConfig, bags: Path, labels: Path, folder: Path, head: Head, tune: Tune
) -> None:
    """Say what training would do."""
    from cytofm_cli.mil.cache import bag_file
    from cytofm_cli.mil.plan import make_plan

    _check_used(config, labels)
    with bag_file(folder) as cache:
        plan = make_plan(config, bags, labels, head, tune=tune, cache=cache)
    _describe(plan)
    search = f", after trying {len(plan.candidates)} settings in each" if tune else ""
    out.note(f"would train {len(plan.folds)} folds × {config.seeds} seeds{search}")


def _train(
    config: MilConfig,
    bags: Path,
    labels: Path,
    folder: Path,
    head: Head,
    tune: Tune,
    *,
    overwrite: bool,
) -> None:
    """Train and judge, and say the result."""
    from cytofm_cli.api.train import train as train_head
    from cytofm_cli.mil.describe import result_line

    _say_lost(folder)
    with out.progress_bar(f"train {config.method}", 1, "runs", "models") as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.part("run", done, total, name)
            out.detail(f"{done}/{total} models: {name}")

        report = train_head(
            bags,
            labels,
            folder,
            config,
            head_settings=head,
            tune=tune,
            spawn=True,
            overwrite=overwrite,
            progress=progress,
            passing=lambda done, most, loss: bar.say(f"pass {done}/{most}, loss {loss:.3g}"),
            started=_describe,
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    for line in report.metrics["notes"]:
        out.warn(line)
    out.note(result_line(report.metrics))
    out.data(str(folder), {"run": str(folder), "metrics": report.metrics})


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Made by `mil train`.")],
    *,
    config: CompareConfig,
    run: ConfigOptions,
) -> None:
    """Compare runs on the same slides by paired tests, corrected for their number.

    Examples:

      cytofm mil compare run-abmil run-mean

      cytofm mil compare runs/* --json
    """
    from cytofm_cli.mil.answers import read_answers
    from cytofm_cli.mil.describe import positive_line
    from cytofm_cli.stats.compare import cautions, compare_runs, share_splits

    places = [path.resolve() for path in runs]
    if twice := [path for path, at in zip(runs, places, strict=True) if places.count(at) > 1]:
        raise UsageError(f"{twice[0]}: is named twice.", hint="compare different RUNs")
    names = [path.name for path in runs]
    unique = len(set(names)) == len(names)
    answers = [read_answers(path, path.name if unique else str(path)) for path in runs]
    pairs = compare_runs(answers, swaps=config.replicates, seed=config.seed)
    out.note(positive_line(answers[0].classes))
    for line in cautions(answers[0]):
        out.warn(line)
    if not share_splits(answers):
        out.warn("these runs used different folds; train with `--splits` of one for less noise")
    for pair in pairs:
        out.data(_pair_line(pair), pair.record())
    out.note(f"p-values are corrected for {len(pairs)} comparison(s) (Holm).")


def _pair_line(pair: Comparison) -> str:
    """Say how two runs differ."""
    from cytofm_cli.stats.cautions import interval_text

    gap = pair.difference
    return (
        f"{pair.second} - {pair.first}: AUC {pair.auc[1]:.3f} - {pair.auc[0]:.3f} = "
        f"{gap.value:+.3f} {interval_text(gap.low, gap.high, '+.3f')}, "
        f"p {pair.p_adjusted:.3g}"
    )


def benchmark(
    bags: Annotated[
        list[Path], typer.Option(help="Folder of stores or bag files; repeat for more rows.")
    ],
    labels: Annotated[Path, typer.Option(help="Table slide_id,label[,group][,split].")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for runs and tables.")],
    tune: TuneWords = None,
    ensemble: Annotated[
        bool,
        typer.Option(
            help="Compare on other slides: the mean probability of all models (each calibrated in "
            "its fold) against one model trained on the whole cohort."
        ),
    ] = False,
    outside: Annotated[
        Path | None,
        typer.Option(help="Bags of these slides [default: they lie among --bags]."),
    ] = None,
    outside_labels: Annotated[
        Path | None, typer.Option(help="Table of their labels; patients that no run knows.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Make the runs on a cluster of dask.distributed: tls://host:port, a scheduler "
            "file, or slurm (pbs, lsf, sge, htcondor, oar), which submits --workers jobs."
        ),
    ] = None,
    *,
    config: BenchmarkConfig,
    run: CommonOptions,
) -> None:
    """Train every head on every encoder's bags, on the same folds; end in a table.

    Examples:

      cytofm mil benchmark --bags stores --labels labels.csv -o out --method all

      cytofm mil benchmark --bags stores --bags h5 --labels labels.csv -o out
    """
    from cytofm_cli.mil.benchmark import check_folder, check_tuned
    from cytofm_cli.mil.sources import describe_all, make_sources

    heads = _heads(config)
    values = parse_tune(tune)
    if ensemble != (outside_labels is not None) or (outside is not None and not ensemble):
        raise UsageError(
            "the comparison on other slides needs them.",
            hint="--ensemble --outside-labels other.csv [--outside STORES]",
        )
    check_tuned(values)
    _check_used(config, labels)
    sources = make_sources(bags, config.encoder or (), config.unit)
    lines, notes = describe_all(config, sources, labels)
    for line in lines:
        out.note(line)
    for line in notes:
        out.warn(line)
    if run.dry_run:
        check_folder(config, sources, heads, labels, folder, overwrite=run.overwrite)
        out.note(
            f"would make {len(sources) * len(heads)} runs: {len(sources)} kinds of bags × "
            f"{len(heads)} heads"
        )
        return
    _benchmark(config, sources, heads, labels, folder, values, overwrite=run.overwrite, on=on)
    if outside_labels is not None:
        _compare_ensembles(config, sources, heads, labels, folder, outside_labels, outside, values)


def _heads(config: BenchmarkConfig) -> Sequence[str]:
    """Name the heads of a benchmark, each once; all are those that read embeddings.

    Raises:
        UsageError: one is not known, or named twice.
    """
    from cytofm_cli.registry import mil_methods

    heads: Sequence[str] = config.method
    if heads == ("all",):
        every = mil_methods.names()
        heads = [name for name in every if not mil_methods.load(name).make.needs_classes]
    for head in heads:
        mil_methods.load(head)
    if twice := [head for head in heads if heads.count(head) > 1]:
        raise UsageError(f"--method {twice[0]} is named twice.")
    return heads


def _benchmark(
    config: BenchmarkConfig,
    sources: Sequence[Source],
    heads: Sequence[str],
    labels: Path,
    folder: Path,
    tune: Tune,
    *,
    overwrite: bool,
    on: str | None,
) -> None:
    """Make the runs and the table, and say what came of them."""
    from cytofm_cli.mil.benchmark import RUNS, run_name
    from cytofm_cli.mil.benchmark import benchmark as run_benchmark

    for place in [folder / RUNS / run_name(s.name, head) for s in sources for head in heads]:
        _say_lost(place)
    with out.progress_bar("benchmark", len(sources) * len(heads), "runs", "models") as bar:
        report = run_benchmark(
            config,
            sources,
            heads,
            labels,
            folder,
            tune=tune,
            overwrite=overwrite,
            on=on,
            warn=out.warn,
            progress=lambda _done, _total, name: bar.finish(name),
        )
    out.note(report.table.splitlines())
    if report.left_out:
        out.note(
            f"{len(report.left_out)} older run(s) in {folder / RUNS} are not in the table: "
            f"{', '.join(report.left_out)}"
        )
    record = {"benchmark": str(folder), "failures": report.failures, "left_out": report.left_out}
    out.data(str(folder), record)
    if report.failures:
        name, reason = next(iter(report.failures.items()))
        raise SomeSlidesFailedError(
            f"{len(report.failures)} run(s) failed; {name}: {reason}",
            hint=f"see {folder / 'failures.jsonl'}",
        )


def _compare_ensembles(
    config: BenchmarkConfig,
    sources: Sequence[Source],
    heads: Sequence[str],
    labels: Path,
    folder: Path,
    outside_labels: Path,
    outside: Path | None,
    tune: Tune,
) -> None:
    """Compare all models of each run with one on everything, and show the table."""
    from cytofm_cli.mil.benchmark import compare_ensembles

    with out.progress_bar("ensemble", len(sources) * len(heads), "runs", "models") as bar:
        table = compare_ensembles(
            config,
            sources,
            heads,
            labels,
            folder,
            outside_labels,
            outside=outside,
            tune=tune,
            progress=lambda _done, _total, name: bar.finish(name),
        )
    out.note(table.splitlines())


def _check_used(config: MilSettings, labels: Path) -> None:
    from cytofm_cli.mil.config import check_used
    from cytofm_cli.mil.labels import read_labels

    table = read_labels(labels, label_column=config.label, group_column=config.group)
    check_used(config, has_splits=table.splits is not None)


def _say_lost(run: Path) -> None:
    from cytofm_cli.mil.run_folder import lost
    from cytofm_cli.words import named

    if gone := lost(run):
        out.warn(f"{run}: is made again, because files are gone: {named(gone)}")


def _describe(plan: Plan) -> None:
    """Say what is learnt from what, and what was assumed."""
    from cytofm_cli.mil.describe import bags_text, describe

    for line in describe(plan.cohort, plan.config):
        out.note(line)
    out.note(f"bags: {bags_text(plan.origin, plan.config.unit)}")
    for line in plan.notes:
        out.warn(line)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Train, score and compare slide-level heads on bags.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    register_command(group, "train", train)
    register_command(group, "score", score)
    register_command(group, "compare", compare)
    register_command(group, "benchmark", benchmark)
    app.add_typer(group, name="mil")
