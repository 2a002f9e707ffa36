"""`cytofm mil`: train heads on bags, score slides with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.cli.options import CommonOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    OutputError,
    SomeSlidesFailedError,
    UsageError,
)
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.store.schema import STORE_SUFFIX

if TYPE_CHECKING:
    from cytofm_cli.mil.bags import Bag
    from cytofm_cli.mil.score import Ensemble, SlideScore


def train(
    bags: Annotated[
        Path, typer.Option(help="Folder of stores, or of h5 (CLAM, TRIDENT) or pt files.")
    ],
    labels: Annotated[Path, typer.Option(help="Table slide_id,label[,group][,split].")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the RUN to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the head; repeat for more."),
    ] = None,
    *,
    config: MilConfig,
    run: CommonOptions,
) -> None:
    """Train a head by grouped cross-validation and judge it on slides it never saw.

    Examples:

      cytofm mil train --bags stores --labels labels.csv -o run

      cytofm mil train --bags stores --labels labels.csv -o floor --method mean
    """
    from cytofm_cli.mil.run import make_plan, train_run

    head = dict(_setting(text) for text in settings or [])
    if run.dry_run:
        plan = make_plan(config, bags, labels, head)
        out.note(f"would train {len(plan.folds)} folds × {config.seeds} seeds")
        return
    with out.progress_bar(f"train {config.method}", 1) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.part("models", done, total)
            out.detail(f"{done}/{total} models: {name}")

        report = train_run(
            config, bags, labels, folder, head=head, overwrite=run.overwrite, progress=progress
        )
    if report.skipped:
        out.detail(f"{folder}: done before, skipped")
    out.note(_one_line(report.metrics))
    out.data(str(folder), {"run": str(folder), "metrics": report.metrics})


def score(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Made by `mil train`.")],
    stores: Annotated[
        list[str], typer.Argument(metavar="STORES", help="Stores, or a folder of h5 or pt files.")
    ],
    table: Annotated[Path, typer.Option("-o", "--out", help="Table of scores to write.")] = Path(
        "scores.csv"
    ),
    *,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    attention: Annotated[
        bool, typer.Option(help="Also write attention of every instance into the stores.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only data and errors.")] = False,
) -> None:
    """Score slides with the ensemble of a RUN; needs no labels.

    A slide that the RUN was trained on is scored by the models that never saw it.

    Examples:

      cytofm mil score run stores -o scores.csv

      cytofm mil score run new-stores -o new.csv --no-attention
    """
    from cytofm_cli.mil.score import load_run, scores_csv
    from cytofm_cli.store.io import output_errors

    out.json, out.quiet = as_json, quiet
    ensemble = load_run(run_folder)
    paths = _find(stores, ensemble.card.encoder)
    if table.is_dir():
        raise OutputError(f"{table}: is a folder.", hint=f"-o {table / 'scores.csv'}")
    with output_errors(table):
        table.parent.mkdir(parents=True, exist_ok=True)
    scores, failures = [], []
    with out.progress_bar("score", len(paths)) as bar:
        for path in paths:
            try:
                scores.append(_score_one(path, run_folder, ensemble, device, attention=attention))
            except CytofmError as error:
                failures.append(error)
                if len(paths) > 1:  # the only slide's error is raised, and printed, at the end
                    out.error(error)
            bar.finish(path.stem)
    if not scores:
        raise _all_failed(failures)
    with output_errors(table):
        partial = table.with_name(f".{table.name}.partial")
        partial.write_text(scores_csv(scores, ensemble.card.classes), encoding="utf-8")
        partial.replace(table)
    out.data(str(table), {"scores": str(table), "slides": len(scores)})
    if failures:
        raise SomeSlidesFailedError(
            f"{len(failures)} of {len(paths)} slides failed, the others are in {table}.",
            hint="mend them, or leave them out, and score again.",
        )


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Made by `mil train`.")],
    *,
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates.", min=100)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a pair.")] = False,
) -> None:
    """Compare runs on the same slides by paired tests, corrected for their number.

    Examples:

      cytofm mil compare run-abmil run-mean

      cytofm mil compare runs/* --json
    """
    from cytofm_cli.mil.compare import compare_runs, read_answers, share_splits

    out.json = as_json
    names = [run.name for run in runs]
    unique = len(set(names)) == len(names)
    answers = [read_answers(run, run.name if unique else str(run)) for run in runs]
    pairs = compare_runs(answers, replicates=replicates, seed=seed)
    if not share_splits(answers):
        out.warn("these runs used different folds; train with `--splits` of one for less noise")
    for pair in pairs:
        gap = pair.bootstrap
        delong = "" if pair.delong is None else f", DeLong p {pair.delong_p_adjusted:.3g}"
        interval = f"[{gap.low:+.3f}, {gap.high:+.3f}]"
        out.data(
            f"{pair.second} - {pair.first}: AUC {pair.auc[1]:.3f} - {pair.auc[0]:.3f} = "
            f"{gap.value:+.3f} {interval}, p {pair.p_adjusted:.3g}{delong}",
            pair.record(),
        )
    out.note(f"p-values are corrected for {len(pairs)} comparison(s) (Holm).")


def benchmark(
    bags: Annotated[
        list[Path], typer.Option(help="Folder of stores or bag files; repeat for more rows.")
    ],
    labels: Annotated[Path, typer.Option(help="Table slide_id,label[,group][,split].")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for runs and tables.")],
    methods: Annotated[
        str, typer.Option(help="Heads, comma-separated; all: every one there is.")
    ] = "mean,abmil",
    encoders: Annotated[
        str | None, typer.Option(help="Encoders, comma-separated: rows of the table.")
    ] = None,
    units: Annotated[str, typer.Option(help="tile, cell or tile,cell.")] = "tile",
    *,
    config: MilConfig,
    run: CommonOptions,
) -> None:
    """Train every head on every encoder's bags, on the same folds; end in a table.

    Examples:

      cytofm mil benchmark --bags stores --labels labels.csv -o bench --methods all

      cytofm mil benchmark --bags stores --encoders handcrafted,uni --labels labels.csv -o bench
    """
    from cytofm_cli.mil.benchmark import benchmark as run_benchmark
    from cytofm_cli.mil.benchmark import make_sources
    from cytofm_cli.registry import mil_methods

    heads = mil_methods.names() if methods == "all" else _words(methods)
    for head in heads:
        mil_methods.load(head)
    sources = make_sources(bags, _words(encoders or config.encoder or ""), _words(units))
    if run.dry_run:
        out.note(
            f"would make {len(sources) * len(heads)} runs: {len(sources)} kinds of bags × "
            f"{len(heads)} heads"
        )
        return
    with out.progress_bar("benchmark", len(sources) * len(heads)) as bar:
        report = run_benchmark(
            config,
            sources,
            heads,
            labels,
            folder,
            overwrite=run.overwrite,
            progress=lambda _done, _total, name: bar.finish(name),
        )
    out.note(report.table)
    out.data(str(folder), {"benchmark": str(folder), "failures": report.failures})
    if report.failures:
        name, reason = next(iter(report.failures.items()))
        raise SomeSlidesFailedError(
            f"{len(report.failures)} run(s) failed; {name}: {reason}",
            hint=f"see {folder / 'failures.jsonl'}",
        )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: must be KEY=VALUE.")
    return key.strip(), value.strip()


def _one_line(metrics: dict[str, Any]) -> str:
    parts = [
        f"{name} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
        for name in ("auc", "accuracy", "recall")
        if (m := metrics.get(name)) and m["value"] is not None
    ]
    size = f"{metrics['slides']} slides, {metrics['groups']} groups"
    return f"{metrics['method']}: {', '.join(parts)}  ({size})"


def _find(words: list[str], encoder: str) -> list[Path]:
    """List the stores or bag files to score, each once."""
    from cytofm_cli.mil.bags import find_bags

    found = {path: None for word in words for path in find_bags(Path(word), encoder or None)}
    return list(found)


def _score_one(
    path: Path, run: Path, ensemble: Ensemble, device: str, *, attention: bool
) -> SlideScore:
    """Score a slide; attention that cannot be written is no reason to lose the score."""
    from cytofm_cli.mil.bags import load_bags
    from cytofm_cli.mil.score import score_bag

    (bag,) = load_bags(path, ensemble.card.encoder or None, ensemble.card.unit)
    result = score_bag(ensemble, bag, device=device)
    if attention and path.suffix == STORE_SUFFIX:
        try:
            _write_attention(path, run.absolute(), ensemble, bag, result)
        except CytofmError as error:
            out.warn(error.one_line())
    return result


def _all_failed(failures: Sequence[CytofmError]) -> CytofmError:
    first = failures[0]
    if len(failures) == 1:
        return first
    return type(first)(f"none of {len(failures)} slides could be scored.", hint=first.hint)


def _write_attention(
    store: Path, run: Path, ensemble: Ensemble, bag: Bag, result: SlideScore
) -> None:
    """Put attention and scores of the instances under `/attention/<run>/<unit>`.

    Raises:
        ConfigMismatchError: another RUN of that name has written there.
    """
    from cytofm_cli import provenance
    from cytofm_cli.mil.score import run_digest
    from cytofm_cli.store import io, schema
    from cytofm_cli.store.zarr3 import write_array

    card = ensemble.card
    step = schema.attention_step(run.name, card.unit)
    steps = io.open_store(store).steps
    source = steps[schema.embedding_step(str(bag.encoder), card.unit)]
    mark = f"{source['config_hash']}-{source['input_fingerprint']}"
    facts = {"run": run_digest(run), "method": card.method, "columns": list(result.columns)}
    try:
        if io.is_finished(store, step, config=facts, input_fingerprint=mark):
            return
    except ConfigMismatchError as error:
        # The same RUN on embeddings that were made anew may replace its own attention.
        if steps[step]["config"] != facts:
            raise ConfigMismatchError(
                f"{store}: keeps the {step} of another RUN named {run.name}.",
                hint="rename the RUN folder to keep both, or use --no-attention.",
            ) from error
    record = provenance.record(
        facts,
        input_fingerprint=mark,
        run_folder=str(run),
        n=len(result.instances_NK),
        dim=len(result.columns),
        basis=result.basis,
        predicted=result.predicted,
    )
    with (
        io.claim_step(store.parent, bag.slide_id, step),
        io.staging(store.parent, bag.slide_id, step) as staged,
    ):
        write_array(staged / "values", result.instances_NK, axes=schema.ATTENTION.axes)
        io.commit_group(staged, store, step, record)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Train, score and compare slide-level heads on bags.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    register_command(group, "train", train)
    group.command("score")(score)
    group.command("compare")(compare)
    register_command(group, "benchmark", benchmark)
    app.add_typer(group, name="mil")
