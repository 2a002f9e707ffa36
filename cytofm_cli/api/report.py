"""RUNs of `mil train` and their stores → a page to look at."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.failures import refuse_passing
from cytofm_cli.api.given import PathLike, Paths, config_of, words_of
from cytofm_cli.api.inputs import find_stores, refuse_namesakes, store_id
from cytofm_cli.errors import UsageError
from cytofm_cli.report.answers import RunAnswers, names_of, read_run
from cytofm_cli.report.config import ReportConfig
from cytofm_cli.report.evidence import Evidence, SlideJob, gather
from cytofm_cli.report.output import folder_of, refuse_existing, write_page
from cytofm_cli.report.report import by_notability, class_shown, report_page
from cytofm_cli.words import named
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.files import read_plain


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Attributes:
        path: of the page.
        n_bytes: of the page and the pictures beside it.
        n_slides: rows of its table.
        n_pictured: slides with pictures.
        files: folder of pictures beside it; None: all are within.
        warnings: what stands first in it.
    """

    path: Path
    n_bytes: int
    n_slides: int
    n_pictured: int
    files: Path | None
    warnings: tuple[str, ...]


def make_report(
    runs: Paths,
    stores: Paths | None,
    out: PathLike,
    config: ReportConfig | None = None,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fork: bool = False,
    on: str | None = None,
    listen: Listen | None = None,
    **settings: Any,
) -> Report:
    """Write a page about RUNs of `mil train`: how good they are, and the cells that decided.

    What is missing (a store, a slide, attention) is said on the page and is no error.

    Args:
        runs: folders of RUNs; the answers of the first are shown slide by slide.
        stores: stores of its slides, or folders of stores; None: no pictures.
        out: the page, e.g. `report.html`.
        config: settings as a whole; instead, each may be given by its name (`cells=20`).
        overwrite: replace a page that is there.
        workers, threads, timeout_s, fork, on, listen: see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `ReportConfig`.

    Raises:
        UsageError: no RUN, or one twice.
        InputError: no finished RUN of `mil train`, or no such store.
        OutputError: `out` exists, or cannot be written.
        TryAgainError: see `refuse_passing`.
    """
    config = config_of(ReportConfig, config, settings, "make_report")
    page = Path(out)
    refuse_existing(page, overwrite=overwrite)
    paths = [Path(word) for word in words_of(runs)]
    _refuse_doubles(paths)
    answers = [read_run(p, name) for p, name in zip(paths, names_of(paths), strict=True)]
    found = find_stores(words_of(stores)) if stores is not None else []
    manner = Manner(
        workers=workers, threads=threads, timeout_s=timeout_s, fork=fork, listen=listen,
        on=on, only_reads=True,
    )  # fmt: skip
    jobs, notes = _jobs(answers[0], found, config)
    evidence = _gather(jobs, page.parent, manner)
    failures = _failures(found)
    made = report_page(answers, evidence, config, folder_of(page), failures=failures, notes=notes)
    n_bytes = write_page(page, made.html, made.files)
    return Report(
        path=page,
        n_bytes=n_bytes,
        n_slides=len(answers[0].answers.slide_ids),
        n_pictured=sum(seen.thumbnail is not None for seen in evidence.values()),
        files=page.with_name(folder_of(page)) if made.files else None,
        warnings=made.warnings,
    )


def gather_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Read and draw what the store of one slide shows."""
    return "done", {"evidence": gather(task.payload)}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell RUNs from stores: a RUN has a config.toml. What is neither is taken for a RUN if first.

    Returns:
        words that name RUNs, and those that name stores.
    """
    runs: list[str] = []
    stores: list[str] = []
    for word in words:
        is_run = (Path(word) / "config.toml").is_file()
        (runs if is_run or not (runs or stores) else stores).append(word)
    return runs, stores


def _refuse_doubles(paths: Sequence[Path]) -> None:
    if not paths:
        raise UsageError("a report needs a RUN.", hint="`cytofm report RUN STORES`")
    places = [path.resolve() for path in paths]
    if twice := [path for path, at in zip(paths, places, strict=True) if places.count(at) > 1]:
        raise UsageError(f"{twice[0]}: is named twice.", hint="compare different RUNs")


def _jobs(
    run: RunAnswers, found: Sequence[Path], config: ReportConfig
) -> tuple[list[SlideJob], list[str]]:
    """Return what to read of which slide, and what is odd about the stores."""
    ids = run.answers.slide_ids
    if not found:
        return [], ["no STORES are given: no pictures, no quality of slides"]
    refuse_namesakes(found, hint="give the stores that the RUN was trained on")
    path_of = {store_id(path): path for path in found}
    drawn = {ids[s] for s in by_notability(run)[: config.pictures]}
    jobs = [
        SlideJob(
            slide_id=name,
            path=str(path_of[name]),
            run=run.path.resolve().name,
            digest=run.digest,
            unit=run.unit,
            of_class=class_shown(run, s),
            pictures=name in drawn,
            cells=config.cells,
            cell_um=config.cell_um,
            slides=config.slides,
        )
        for s, name in enumerate(ids)
        if name in path_of
    ]
    return jobs, _about_stores(run, path_of, len(jobs), config)


def _about_stores(
    run: RunAnswers, path_of: Mapping[str, Path], n_jobs: int, config: ReportConfig
) -> list[str]:
    ids = run.answers.slide_ids
    notes = []
    if lacking := [name for name in ids if name not in path_of]:
        notes.append(f"no store of {len(lacking)} of {len(ids)} slides: {named(lacking)}")
    if others := [name for name in path_of if name not in set(ids)]:
        notes.append(
            f"{len(others)} store(s) of slides that {run.name} did not judge are left out: "
            f"{named(others)}"
        )
    if n_jobs > config.pictures:
        notes.append(
            f"pictures of {config.pictures} of {n_jobs} slides, wrong answers and the most "
            "notable first; --pictures N shows more"
        )
    return notes


def _gather(jobs: Sequence[SlideJob], folder: Path, manner: Manner) -> dict[str, Evidence]:
    if not jobs:
        return {}
    n_workers, _ = manner.crew(len(jobs))
    outcomes = run_cohort("report", jobs, gather_one, folder, manner, workers=n_workers)
    refuse_passing(outcomes)
    return {
        outcome.slide_id: outcome.facts["evidence"]
        if outcome.error is None
        else Evidence(outcome.slide_id, store=outcome.path, warnings=(outcome.error.one_line(),))
        for outcome in outcomes
    }


def _failures(stores: Sequence[Path]) -> list[dict[str, str]]:
    """Read what steps noted as failed beside the stores."""
    failures = []
    for folder in sorted({path.parent for path in stores}):
        for file in sorted(folder.glob("failures*.jsonl")):
            text = ""
            with contextlib.suppress(OSError):
                text = read_plain(file).decode("utf-8", "replace")
            for line in text.splitlines():
                try:
                    record = json.loads(line)
                    failures.append(
                        {
                            "slide": str(record["slide_id"]),
                            "command": str(record["command"]),
                            "error": str(record["error"]),
                        }
                    )
                except (ValueError, KeyError, TypeError):
                    continue
    return failures
