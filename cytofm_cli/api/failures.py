"""`failures.jsonl`: the slides that a step could not do, and why."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import (
    OutOfMemoryError,
    SlideError,
    SlideKilledError,
    SlideTimeoutError,
    TryAgainError,
    without_secrets,
)
from cytofm_cli.work.batch import Loss, Outcome, Task
from cytofm_cli.work.claim import ClaimHeldError, claim
from cytofm_cli.work.files import output_errors, read_plain, write_text

_WAIT_S: Final = 60.0
# By command and slide; None: not failed any more.
Records = dict[tuple[str, str], dict[str, Any] | None]


class FailureLog:
    """`failures.jsonl`: one line for each slide that this command could not do.

    Rewritten whole and renamed on every change, so it is always readable; a slide that is
    done later leaves it; without failures there is no file. Array jobs write one each; several
    commands may share one, each puts its changes into what the others have written.

    Args:
        folder: where it lies.
        command: name of the step in its lines, e.g. "tile".
        shard: part of an array job, "i/n"; None: not one.
    """

    def __init__(self, folder: Path, command: str, shard: str | None) -> None:
        part = f".{shard.replace('/', '-of-')}" if shard else ""
        self.path = folder / f"failures{part}.jsonl"
        self._command = command
        self._records = self._read()
        self._changes: Records = {}

    def update(self, outcome: Outcome) -> None:
        """Note or clear the failure of one slide; one that others are at stays as it is."""
        key = (self._command, outcome.slide_id)
        former, record = self._records.get(key), None
        if outcome.status == "failed" and outcome.error is not None:
            record = {
                "command": self._command,
                "slide_id": outcome.slide_id,
                "path": without_secrets(outcome.path),
                "error": outcome.error.message,
                "hint": outcome.error.hint,
                "kind": type(outcome.error).__name__,
                "attempts": _attempts(former) + 1,
                "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **outcome.facts,
            }
        if outcome.status != "held" and former != record:
            self._changes[key] = record
            with contextlib.suppress(ClaimHeldError):  # with the next one, or by `flush`
                self.flush()

    def flush(self) -> None:
        """Write the changes that are not written yet, if there are any.

        Raises:
            ClaimHeldError: other commands keep changing the file.
        """
        if not self._changes:
            return
        held = self.path.with_name(f".{self.path.name}.claim")
        with output_errors(self.path.parent), claim(held, wait_s=_WAIT_S):
            self._records = self._read() | self._changes
            self._write()
        self._changes = {}

    def _read(self) -> Records:
        records: Records = {}
        if self.path.is_file():
            for line in read_plain(self.path).decode("utf-8", "replace").split("\n"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    records[record["command"], record["slide_id"]] = record
        return records

    def _write(self) -> None:
        told = (json.dumps(r, ensure_ascii=False) for r in self._records.values() if r is not None)
        lines = [without_secrets(line) for line in told]  # a trace may name what was opened
        if lines:
            write_text(self.path, "\n".join(lines) + "\n")
        else:
            self.path.unlink(missing_ok=True)


def _attempts(former: dict[str, Any] | None) -> int:
    told = (former or {}).get("attempts")
    return told if isinstance(told, int) else 0


def explain(task: Task, loss: Loss) -> SlideError:
    """Say why a slide was lost."""
    if loss.why == "stalled":
        return SlideTimeoutError(
            f"{task.path}: no progress for {loss.detail}; given up.",
            hint="is the disk slow? then raise --timeout-s; else the file is damaged.",
        )
    if loss.why == "killed":
        return SlideKilledError(
            f"{task.path}: the process was killed, most likely for lack of memory.",
            hint="give the job more memory, or fewer --workers.",
        )
    if loss.why == "out of memory":
        return SlideKilledError(f"{task.path}: out of memory.", hint="use fewer --workers.")
    return SlideError(
        f"{task.path}: crashed the reading library ({loss.detail}).",
        hint="the file is damaged; scan it again.",
    )


def refuse_passing(outcomes: Iterable[Outcome]) -> None:
    """End what shows all slides together where one is missing for a reason that passes.

    A page without it would be taken for whole, and the same command would find it there.

    Raises:
        TryAgainError: its process was killed, or had to wait.
    """
    for error in (outcome.error for outcome in outcomes):
        if isinstance(error, TryAgainError):
            raise error
        if isinstance(error, SlideKilledError):
            raise OutOfMemoryError(error.message, hint=error.hint)
