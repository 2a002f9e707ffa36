"""Encoders × heads on the same splits: many runs, one table.

Every cell is an ordinary RUN under `OUT/runs/`; a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cytofm_cli.config import field_types
from cytofm_cli.errors import CytofmError, InputError, StoppedError, UsageError
from cytofm_cli.mil import splits, tables
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.cache import bag_file
from cytofm_cli.mil.cells import cores
from cytofm_cli.mil.compare import Comparison, compare_runs, read_answers
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.labels import build_cohort, read_labels
from cytofm_cli.mil.pool import in_processes, stop_requests
from cytofm_cli.mil.run import make_folds, train_run
from cytofm_cli.mil.run_folder import SPLITS, read_metrics
from cytofm_cli.run_record import write_text
from cytofm_cli.store.io import output_errors

RUNS, FAILURES = "runs", "failures.jsonl"


@dataclass(frozen=True)
class Source:
    """One kind of bags: a row of the table.

    Attributes:
        name: row label.
        bags: folder of stores or bag files.
        encoder: whose embeddings; None if there is one kind.
        unit: "tile" or "cell".
    """

    name: str
    bags: Path
    encoder: str | None
    unit: str


@dataclass(frozen=True)
class BenchmarkReport:
    """A finished benchmark.

    Attributes:
        path: OUT.
        table: the Markdown table.
        failures: names of the runs that failed, with the reason.
    """

    path: Path
    table: str
    failures: dict[str, str]


def make_sources(
    bags: Sequence[Path], encoders: Sequence[str], units: Sequence[str]
) -> list[Source]:
    """List every folder × encoder × unit, with short names that tell them apart.

    Raises:
        UsageError: two would have the same name.
    """
    sources: list[Source] = []
    for folder in bags:
        for encoder in encoders or (None,):
            for unit in units:
                parts = [encoder or folder.name]
                if encoder and len(bags) > 1:
                    parts.insert(0, folder.name)
                if len(units) > 1:
                    parts.append(unit)
                sources.append(Source(" ".join(parts), folder, encoder, unit))
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UsageError("two kinds of bags have the same name.", hint="rename a folder of bags")
    return sources


def benchmark(
    config: MilConfig,
    sources: Sequence[Source],
    methods: Sequence[str],
    labels: Path,
    out: Path,
    *,
    tune: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchmarkReport:
    """Train every head on every kind of bags, on the same folds, and write the tables.

    Args:
        config: settings of all runs; method, encoder, unit and splits are filled in.
        sources: rows of the table.
        methods: columns of the table.
        labels: table of labels.
        out: folder for runs and tables.
        tune: values to try for settings of the recipe, in every run; see `train_run`.
        overwrite: make runs with other settings anew.
        progress: called with (runs done, of how many, name of the last).

    Raises:
        InputError: every run failed.
        UsageError: a setting to tune that not every head has.
    """
    check_tuned(tune or {})
    jobs = {
        f"{_slug(source.name)}-{method}": replace(
            config,
            method=method,
            encoder=source.encoder,
            unit=source.unit,
            splits=out / SPLITS,
        )
        for source in sources
        for method in methods
    }
    folder_of = {
        f"{_slug(source.name)}-{method}": source.bags for source in sources for method in methods
    }
    with output_errors(out):
        (out / RUNS).mkdir(parents=True, exist_ok=True)
        _write_splits(config, sources[0], labels, out)
        failures = _run_all(jobs, folder_of, labels, out, tune, overwrite, progress or _silent)
        write_text(out / FAILURES, "".join(_line(n, why) for n, why in failures.items()))
        if len(failures) == len(jobs):
            raise InputError(f"every run failed; the first: {next(iter(failures.values()))}")
        table = write_tables(out, [s.name for s in sources], methods, config)
    return BenchmarkReport(out, table, failures)


def write_tables(out: Path, rows: Sequence[str], methods: Sequence[str], config: MilConfig) -> str:
    """Write table.md, table.csv, table.tex and comparisons.json from the finished runs."""
    cells = {}
    answers = {}
    for row in rows:
        for method in methods:
            run = out / RUNS / f"{_slug(row)}-{method}"
            if (run / "metrics.json").is_file():
                cells[row, method] = read_metrics(run)
                answers[row, method] = read_answers(run, f"{row} {method}")
    pairs: list[Comparison] = []
    if len(answers) > 1:
        pairs = compare_runs(list(answers.values()), replicates=config.bootstrap, seed=config.seed)
    table = tables.Table(tuple(rows), tuple(methods), cells, pairs)
    markdown = tables.markdown(table)
    write_text(out / "table.md", markdown)
    write_text(out / "table.csv", tables.as_csv(table))
    write_text(out / "table.tex", tables.latex(table))
    write_text(out / "comparisons.json", json.dumps([p.record() for p in pairs], indent=2) + "\n")
    return markdown


def check_tuned(tune: Mapping[str, Sequence[str]]) -> None:
    """Refuse to tune a setting that not every head has.

    Raises:
        UsageError: there is one.
    """
    if not tune:
        return  # what follows imports torch
    from cytofm_cli.mil.base import Recipe

    shared = field_types(Recipe)
    if own := [key for key in tune if key not in shared]:
        raise UsageError(
            f"--tune {own[0]}: not a setting that all heads share.",
            hint="tune lr, weight_decay or epochs here, those of a head by `cytofm mil train`",
        )


def _write_splits(config: MilConfig, source: Source, labels: Path, out: Path) -> None:
    """Draw the folds once, from the first kind of bags; all others must hold the same slides."""
    if (out / SPLITS).is_file():
        return
    with bag_file(out / SPLITS) as cache:
        cohort = build_cohort(
            load_bags(source.bags, source.encoder, source.unit, cache),
            read_labels(labels, label_column=config.label),
            classes=config.classes,
            allow_missing=config.allow_missing,
        )
        folds = make_folds(config, cohort)
    write_text(out / SPLITS, splits.to_csv(folds, cohort.slide_ids, cohort.groups))


def _run_all(
    jobs: Mapping[str, MilConfig],
    folder_of: Mapping[str, Path],
    labels: Path,
    out: Path,
    tune: Mapping[str, Sequence[str]] | None,
    overwrite: bool,
    progress: Callable[[int, int, str], None],
) -> dict[str, str]:
    """Run the jobs in processes, one model at a time in each; return what failed and why."""
    some = next(iter(jobs.values()))
    devices = some.device.split(",")
    workers = min(some.workers or (cores() if devices == ["cpu"] else len(devices)), len(jobs))
    failures: dict[str, str] = {}
    tasks = [
        (
            name,
            asdict(replace(job, workers=1, device=devices[i % len(devices)])),
            folder_of[name],
            labels,
            out / RUNS / name,
            dict(tune or {}),
            overwrite,
        )
        for i, (name, job) in enumerate(jobs.items())
    ]
    if workers == 1:
        for done, task in enumerate(tasks, start=1):
            _note(failures, task[0], _run_one(task))
            progress(done, len(tasks), task[0])
        return failures
    with stop_requests() as stop, closing(in_processes(_run_one, tasks, workers, stop)) as ended:
        for done, (task, reason) in enumerate(ended, start=1):
            _note(failures, task[0], reason)
            progress(done, len(tasks), task[0])
    return {name: failures[name] for name in jobs if name in failures}


def _run_one(
    task: tuple[str, dict[str, Any], Path, Path, Path, dict[str, Sequence[str]], bool],
) -> str | None:
    """Train one cell of the table; return why it failed, if it did."""
    _, settings, bags, labels, run, tune, overwrite = task
    try:
        train_run(MilConfig(**settings), bags, labels, run, tune=tune, overwrite=overwrite)
    except StoppedError:
        raise
    except CytofmError as error:
        return error.one_line()
    return None


def _note(failures: dict[str, str], name: str, reason: str | None) -> None:
    if reason is not None:
        failures[name] = reason


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "_" for c in name)


def _line(name: str, reason: str) -> str:
    return json.dumps({"run": name, "error": reason}, ensure_ascii=False) + "\n"


def _silent(done: int, total: int, name: str) -> None:
    pass
