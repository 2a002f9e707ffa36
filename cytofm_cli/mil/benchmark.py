"""Encoders × heads on the same splits: many runs, one table.

Every cell is an ordinary RUN under `OUT/runs/`; a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path

from cytofm_cli.config import as_record, field_types
from cytofm_cli.errors import (
    InputError,
    UsageError,
)
from cytofm_cli.mil import tables
from cytofm_cli.mil.answers import read_answers
from cytofm_cli.mil.benchmark_runs import make_here, make_on, tasks_of
from cytofm_cli.mil.config import MilConfig, MilSettings
from cytofm_cli.mil.plan import make_folds
from cytofm_cli.mil.run_folder import METRICS, SPLITS, read_config, read_metrics
from cytofm_cli.mil.sources import Source, cohort_of
from cytofm_cli.mil.splits import to_csv
from cytofm_cli.runs.folder import refuse_changes
from cytofm_cli.runs.record import changes
from cytofm_cli.stats.compare import Comparison, compare_runs
from cytofm_cli.words import named
from cytofm_cli.work.device import find_device
from cytofm_cli.work.files import output_errors, read_plain, write_text
from cytofm_cli.work.joining import check_place

RUNS, FAILURES, ENSEMBLE = "runs", "failures.jsonl", "ensemble"
# Settings whose effect is compared: whose features, classes and patients by each run, folds here.
IMPLIED = {"encoder", "splits", "group", "positive", "protocol", "folds", "inner_folds"}
IMPLIED |= {"repeats", "test_fraction"}


@dataclass(frozen=True)
class BenchmarkReport:
    """A finished benchmark.

    Attributes:
        path: OUT.
        table: the Markdown table.
        failures: names of the runs that failed, with the reason.
        left_out: names of older runs in the folder, which are not in the table.
    """

    path: Path
    table: str
    failures: dict[str, str]
    left_out: list[str]


def benchmark(
    config: MilSettings,
    sources: Sequence[Source],
    methods: Sequence[str],
    labels: Path,
    out: Path,
    *,
    tune: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
    on: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
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
        on: cluster on whose workers the runs are made, see `cytofm_cli.work.joining.join`.
        warn: told that the connection to it is not secret.
        progress: called with (runs done, of how many, name of the last).

    Raises:
        TryAgainError: the scheduler of the cluster is gone.
        ConfigMismatchError: `out` holds folds or runs of these names with other settings.
        InputError: every run failed.
        UsageError: a setting to tune that not every head has.
    """
    check_tuned(tune or {})
    if on is not None:
        check_place(on)
    jobs = _jobs(config, sources, methods, out)
    folder_of = {run_name(s.name, method): s.bags for s in sources for method in methods}
    layout = check_folder(config, sources, methods, labels, out, overwrite=overwrite)
    with output_errors(out):
        (out / RUNS).mkdir(parents=True, exist_ok=True)
        write_text(out / SPLITS, layout)
        runs = {name: out / RUNS / name for name in jobs}
        tasks = tasks_of(jobs, folder_of, labels, runs, tune or {}, overwrite=overwrite)
        if on is None:
            failures = make_here(tasks, config.workers, progress or _silent)
        else:
            failures = make_on(on, tasks, config.workers, warn, progress or _silent)
        write_text(out / FAILURES, "".join(_line(n, why) for n, why in failures.items()))
        if len(failures) == len(jobs):
            raise InputError(f"every run failed; the first: {next(iter(failures.values()))}")
        table = write_tables(out, [s.name for s in sources], methods, config, failures)
    return BenchmarkReport(out, table, failures, left_out(out, jobs))


def compare_ensembles(
    config: MilSettings,
    sources: Sequence[Source],
    methods: Sequence[str],
    labels: Path,
    out: Path,
    outside_labels: Path,
    *,
    outside: Path | None = None,
    tune: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> str:
    """Compare, for each finished run, all its models with one on everything, on other slides.

    Args:
        config, sources, methods, labels, out, tune: those of `benchmark`, which is done.
        outside_labels: table of the slides that no run knows.
        outside: folder of their bags; None: they lie among the others.
        progress: called with (runs done, of how many, name of the last).

    Returns:
        the Markdown table, which also stands in `ensemble.md`.

    Raises:
        InputError, LabelError: see `ensemble.against_one`.
    """
    from cytofm_cli.mil.ensemble import against_one, markdown

    jobs = _jobs(config, sources, methods, out)
    results = {}
    for source in sources:
        for method in methods:
            name = run_name(source.name, method)
            if (out / RUNS / name / METRICS).is_file():
                results[source.name, method] = against_one(
                    jobs[name],
                    source.bags,
                    labels,
                    out / RUNS / name,
                    outside or source.bags,
                    outside_labels,
                    out / ENSEMBLE / name,
                    tune=tune,
                )
            (progress or _silent)(len(results), len(jobs), name)
    table = markdown(results)
    write_text(out / f"{ENSEMBLE}.md", table)
    return table


def check_folder(
    config: MilSettings,
    sources: Sequence[Source],
    methods: Sequence[str],
    labels: Path,
    out: Path,
    *,
    overwrite: bool = False,
) -> str:
    """Draw the folds, and refuse a folder whose folds or runs are of other settings.

    Arguments are those of `benchmark`.

    Returns:
        content of splits.csv.

    Raises:
        ConfigMismatchError: the folder is of other settings; names them.
        InputError, LabelError: see `build_cohort`, `cross_validation`.
    """
    cohort = cohort_of(config, sources[0], labels)
    layout = to_csv(make_folds(config, cohort), cohort.slide_ids, cohort.groups)
    if overwrite:
        return layout
    changed = _other_runs(_jobs(config, sources, methods, out), out, cohort.classes)
    if not changed and (out / SPLITS).is_file():
        old = read_plain(out / SPLITS).decode("utf-8")
        changed = [] if old == layout else [f"{SPLITS} ({_apart(old, layout)})"]
    refuse_changes(out, changed, overwrite="makes these runs anew")
    return layout


def left_out(out: Path, jobs: Iterable[str]) -> list[str]:
    """Name the finished runs in a benchmark's folder that are none of these."""
    there = {path.parent.name for path in (out / RUNS).glob("*/metrics.json")}
    return sorted(there - set(jobs))


def write_tables(
    out: Path,
    rows: Sequence[str],
    methods: Sequence[str],
    config: MilSettings,
    failures: Container[str] = (),
) -> str:
    """Write table.md, table.csv, table.tex and comparisons.json.

    Args:
        out: folder of the benchmark.
        rows: names of the sources.
        methods: heads.
        config: settings of all runs.
        failures: runs that failed in this call: what lies there is of an older one.
    """
    cells = {}
    answers = {}
    for row in rows:
        for method in methods:
            run = out / RUNS / run_name(row, method)
            if run.name not in failures and (run / "metrics.json").is_file():
                cells[row, method] = read_metrics(run)
                answers[row, method] = read_answers(run, f"{row} {method}")
    pairs: list[Comparison] = []
    untested = ""
    if len(answers) > 1:
        try:
            pairs = compare_runs(list(answers.values()), swaps=config.bootstrap, seed=config.seed)
        except InputError as error:  # --allow-missing leaves rows with other slides
            untested = error.message
    table = tables.Table(tuple(rows), tuple(methods), cells, pairs, untested)
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


def _jobs(
    config: MilSettings, sources: Sequence[Source], methods: Sequence[str], out: Path
) -> dict[str, MilConfig]:
    """List the runs by name.

    Raises:
        UsageError: two rows would write into one folder, or there is no such device.
    """
    shared = {field.name: getattr(config, field.name) for field in fields(MilSettings)}
    shared["splits"] = out / SPLITS
    names = [run_name(source.name, methods[0]) for source in sources]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UsageError(
            f"two kinds of bags would both lie in {RUNS}/{doubled[0]}.",
            hint="rename a folder of bags: letters, digits, dots and _ tell folders apart",
        )
    devices = cycle([str(find_device(name)) for name in config.device.split(",")])
    return {
        run_name(source.name, method): MilConfig(
            **(
                shared
                | {"method": method, "encoder": source.encoder, "unit": source.unit}
                | {"device": next(devices)}
            )
        )
        for source in sources
        for method in methods
    }


def _other_runs(jobs: Mapping[str, MilConfig], out: Path, classes: Sequence[str]) -> list[str]:
    """Name the runs that are there with other settings; what they read, each run compares."""
    changed = []
    for name, job in jobs.items():
        run = out / RUNS / name
        if (run / METRICS).is_file():
            wanted = as_record(job, results_only=True)
            compared = sorted(wanted.keys() - IMPLIED)
            record = read_config(run)
            old = {k: v for k, v in record.get("mil", {}).items() if k in compared}
            then = {"mil": old, "task": {"classes": record.get("task", {}).get("classes")}}
            now = {"mil": {k: wanted[k] for k in compared}, "task": {"classes": list(classes)}}
            if apart := changes(then, now):
                changed.append(f"{name} ({', '.join(apart)})")
    return changed


def _apart(old: str, new: str) -> str:
    """Say in what two splits.csv differ."""
    rows = [list(csv.reader(io.StringIO(text, newline=""))) for text in (old, new)]
    folds = [sum(name.startswith("fold") for name in table[0]) if table else 0 for table in rows]
    if folds[0] != folds[1]:
        return f"{folds[0]} folds → {folds[1]}"
    slides = [{row[0] for row in table[1:] if row} for table in rows]
    if other := slides[0] ^ slides[1]:
        return f"slides that are in one only: {named(other)}"
    return "the same slides in other folds: another seed, or other labels or groups"


def run_name(row: str, method: str) -> str:
    """Return the name of the folder of a cell's RUN, under `OUT/runs/`."""
    return f"{_slug(row)}-{method}"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "_" for c in name)


def _line(name: str, reason: str) -> str:
    return json.dumps({"run": name, "error": reason}, ensure_ascii=False) + "\n"


def _silent(done: int, total: int, name: str) -> None:
    pass
