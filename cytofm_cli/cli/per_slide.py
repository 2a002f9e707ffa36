"""Run a step over many slides: progress, one line a slide, `failures.jsonl`, the exit code."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.out import out
from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    SlideError,
    SlideTimeoutError,
    SomeSlidesFailedError,
    TryAgainError,
)
from cytofm_cli.work.batch import Loss, Note, Outcome, Progress, Task, Work, run_batch
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.files import output_errors, write_text

# A slide that another process holds is looked at again before the command says "try again".
_LOOKS_AT_HELD = 3
_BETWEEN_LOOKS_S = 1.0


def crew_size(run: RunOptions, n_slides: int) -> tuple[int, int]:
    """Split the processors over slides: (slides at a time, threads for each)."""
    processors = run.threads or cpu_count()
    workers = min(run.workers or processors, max(1, n_slides))
    return workers, max(1, processors // workers)


def run_slides(
    command: str, tasks: Sequence[Task], work: Work, run: RunOptions, folder: Path, *, workers: int
) -> list[Outcome]:
    """Work on every slide and report each; raise at the end if any failed.

    Args:
        command: name in `failures.jsonl`, e.g. "tile".
        tasks: the slides.
        work: see `cytofm_cli.work.batch.run_batch`.
        run: flags of the command.
        folder: where `failures.jsonl` goes.
        workers: slides at a time.

    Returns:
        The outcomes, when none failed.

    Raises:
        CytofmError: one slide failed of one (its own error), all failed (exit 3), some failed
            (exit 4), some are held by other processes (exit 75), or a signal came.
    """
    with output_errors(folder):
        if not run.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        failures = FailureLog(folder, command, run)
    if not tasks:
        out.note(f"{command}: no slides in this part")
    outcomes = _run_once(tasks, work, run, failures, command=command, workers=workers)
    for _ in range(_LOOKS_AT_HELD):
        held = {outcome.slide_id for outcome in outcomes if outcome.status == "held"}
        if not held:
            break
        # By now the others may have finished them, or have been killed.
        time.sleep(_BETWEEN_LOOKS_S)
        again = [task for task in tasks if task.slide_id in held]
        outcomes = [outcome for outcome in outcomes if outcome.slide_id not in held]
        outcomes += _run_once(again, work, run, failures, command=command, workers=1)
    _conclude(command, outcomes, None if run.dry_run else failures.path)
    return outcomes


def _run_once(
    tasks: Sequence[Task],
    work: Work,
    run: RunOptions,
    failures: FailureLog,
    *,
    command: str,
    workers: int,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    said: set[str] = set()  # notes and hints: what is true of all slides, each would say
    with (
        out.progress_bar(command, len(tasks)) as bar,
        contextlib.closing(
            run_batch(work, tasks, workers=workers, stall_s=run.timeout_s, explain=explain)
        ) as events,
    ):
        for event in events:
            if isinstance(event, Progress):
                bar.part(event.slide_id, event.done, event.total)
            elif isinstance(event, Note):
                if event.text not in said:
                    out.note(event.text)
                said.add(event.text)
            else:
                bar.finish(event.slide_id)
                if event.error is not None and event.error.of_all_slides:
                    raise event.error
                outcomes.append(event)
                _report(event, run, said, alone=len(tasks) == 1)
                if not run.dry_run:
                    failures.update(event)
                if run.fail_fast and event.status == "failed" and event.error is not None:
                    raise event.error
    return outcomes


def explain(task: Task, loss: Loss) -> SlideError:
    """Say why a slide was lost."""
    if loss.why == "stalled":
        return SlideTimeoutError(
            f"{task.path}: no progress for {loss.detail}; given up.",
            hint="is the disk slow? then raise --timeout-s; else the file is damaged.",
        )
    if loss.why == "killed":
        return SlideError(
            f"{task.path}: the process was killed, most likely for lack of memory.",
            hint="give the job more memory, or fewer --workers.",
        )
    if loss.why == "out of memory":
        return SlideError(f"{task.path}: out of memory.", hint="use fewer --workers.")
    return SlideError(
        f"{task.path}: crashed the reading library ({loss.detail}).",
        hint="the file is damaged; scan it again.",
    )


class FailureLog:
    """`failures.jsonl`: one line for each slide that this command could not do.

    Rewritten whole and renamed on every change, so it is always readable; a slide that is
    done later leaves it; without failures there is no file. Array jobs write one each.
    """

    def __init__(self, folder: Path, command: str, run: RunOptions) -> None:
        part = f".{run.shard.replace('/', '-of-')}" if run.shard else ""
        self.path = folder / f"failures{part}.jsonl"
        self._command = command
        self._records = self._read()

    def update(self, outcome: Outcome) -> None:
        """Note or clear the failure of one slide."""
        key = (self._command, outcome.slide_id)
        former = self._records.pop(key, None)
        if outcome.status == "failed" and outcome.error is not None:
            self._records[key] = {
                "command": self._command,
                "slide_id": outcome.slide_id,
                "path": outcome.path,
                "error": outcome.error.message,
                "hint": outcome.error.hint,
                "kind": type(outcome.error).__name__,
                "attempts": int((former or {}).get("attempts", 0)) + 1,
                "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **outcome.facts,
            }
        if former != self._records.get(key):
            self._write()

    def _read(self) -> dict[tuple[str, str], dict[str, Any]]:
        records = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    records[record["command"], record["slide_id"]] = record
        return records

    def _write(self) -> None:
        with output_errors(self.path.parent):
            if not self._records:
                self.path.unlink(missing_ok=True)
                return
            lines = (json.dumps(r, ensure_ascii=False) for r in self._records.values())
            write_text(self.path, "\n".join(lines) + "\n")


def _report(outcome: Outcome, run: RunOptions, said: set[str], *, alone: bool) -> None:
    record = {
        "slide_id": outcome.slide_id,
        "path": outcome.path,
        "status": "planned" if run.dry_run and outcome.status == "done" else outcome.status,
        "seconds": round(outcome.seconds, 3),
        **{key: value for key, value in outcome.facts.items() if key != "traceback"},
    }
    if outcome.status == "held":
        out.detail(f"{outcome.slide_id}: another process is at it")
        return
    if outcome.error is not None:
        if not alone:  # the only slide's error is raised, and printed, at the end
            out.error(outcome.error, hint=outcome.error.hint not in said)
            said.add(outcome.error.hint or "")
        if out.verbose > 1 and "traceback" in outcome.facts:
            out.note(outcome.facts["traceback"])
        record |= {"error": outcome.error.message, "hint": outcome.error.hint}
        if out.json:
            out.data("", record)
        return
    if outcome.status == "skipped":
        out.detail(f"{outcome.slide_id}: done before, skipped")
    elif not alone and (told := _holdings([outcome])):
        out.note(f"{outcome.slide_id}: {told}")
    out.data(str(outcome.facts.get("store", outcome.path)), record)


def _conclude(command: str, outcomes: Sequence[Outcome], log: Path | None) -> None:
    """Sum up; `log` is the file that names the failures, None for a dry run, which writes none."""
    errors = [o.error for o in outcomes if o.status == "failed" and o.error is not None]
    if len(outcomes) == 1 and outcomes[0].status in ("failed", "refused") and outcomes[0].error:
        raise outcomes[0].error
    counts: Counter[str] = Counter(outcome.status for outcome in outcomes)
    words = {
        "done": "planned" if log is None else "done",
        "skipped": "skipped (done before)",
        "held": "held by other processes",
        "refused": "kept with other settings",
    }
    told = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
    if errors:
        told.append(f"{len(errors)} failed")
    if told:
        out.note(f"{command}: {', '.join(told)}{_sums(outcomes)}")
    if errors and len(errors) == len(outcomes):
        raise _AllFailedError(errors, _where(log))
    if errors:
        raise SomeSlidesFailedError(
            f"{len(errors)} of {len(outcomes)} slides failed, {_rest(counts, log)}.",
            hint=_where(log),
        )
    if counts["refused"]:
        raise ConfigMismatchError(
            f"{counts['refused']} of {len(outcomes)} slides are finished with other settings and "
            "kept as they are; see above.",
            hint="--overwrite makes them anew.",
        )
    if counts["held"]:
        raise TryAgainError(
            f"{counts['held']} slides are being done by other processes.", hint="run again later."
        )


def _where(log: Path | None) -> str:
    return "the lines above say why." if log is None else f"{log} says why."


def _rest(counts: Counter[str], log: Path | None) -> str:
    """Say what became of the slides that did not fail."""
    if not counts["refused"] and not counts["held"]:
        return f"the others are {'planned' if log is None else 'done'}"
    told = [f"{counts['refused']} are kept with other settings"] if counts["refused"] else []
    told += [f"{counts['held']} are held by other processes"] if counts["held"] else []
    return " and ".join(told)


def _sums(outcomes: Sequence[Outcome]) -> str:
    """Add up what the slides hold: tiles, nuclei, rows of bags."""
    tiles = [outcome.facts["n_tiles"] for outcome in outcomes if "n_tiles" in outcome.facts]
    told = [f"{sum(tiles)} tiles"] if tiles else []
    if held := _holdings(outcomes):
        told.append(held)
    return f": {', '.join(told)}" if told else ""


def _holdings(outcomes: Sequence[Outcome]) -> str:
    """Say how many nuclei or rows a step has put where; "" if it made neither."""
    found = [outcome.facts for outcome in outcomes if {"step", "n"} <= outcome.facts.keys()]
    if not found:
        return ""
    kind = str(found[0]["step"]).partition("/")[0]
    what = "nuclei" if kind == "nuclei" else f"rows of {found[0].get('dim', '?')} numbers"
    return f"{sum(facts['n'] for facts in found)} {what} in {found[0]['step']}"


class _AllFailedError(CytofmError):
    """Nothing could be done: the exit code is that of the slides' errors if they agree."""

    def __init__(self, errors: Sequence[CytofmError], hint: str) -> None:
        super().__init__(f"none of {len(errors)} slides could be used.", hint=hint)
        codes = {error.exit_code for error in errors}
        self.exit_code = codes.pop() if len(codes) == 1 else 3  # type: ignore[misc]


class Job(Protocol):
    """What a step is told about one slide."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        ...

    @property
    def path(self) -> str:
        """Path of the slide or of its store."""
        ...


def tasks_with(jobs: Sequence[Job]) -> list[Task]:
    """Wrap jobs as tasks."""
    return [Task(slide_id=job.slide_id, path=job.path, payload=job) for job in jobs]
