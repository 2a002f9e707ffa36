"""The one sink for everything a command says.

stdout is data (paths, one a line, or one JSON object a line with --json) and nothing else;
notes, warnings, progress and errors go to stderr. The format depends on flags alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from cytofm_cli.errors import CytofmError

_PLAIN_PROGRESS_EVERY_S = 60.0


@dataclass
class Out:
    """Where a command writes.

    Attributes:
        json: one JSON object a line on stdout instead of plain lines.
        quiet: no notes and no progress.
        verbose: 1 adds details, 2 adds traces of our own code.
        progress: show progress on stderr.
    """

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    progress: bool = True
    _warned: set[str] = field(default_factory=set)

    def data(self, text: str, record: dict[str, Any] | None = None) -> None:
        """Print one piece of data: `text` for people and pipes, `record` with --json."""
        if self.json:
            if record is not None:
                print(json.dumps(record, ensure_ascii=False, allow_nan=False), flush=True)
        else:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Say something useful on stderr."""
        if not self.quiet:
            _line(text)

    def detail(self, text: str) -> None:
        """Say something on stderr with -v."""
        if self.verbose:
            _line(text)

    def warn(self, text: str) -> None:
        """Say on stderr what the user should look at; the same line only once."""
        if text not in self._warned:
            self._warned.add(text)
            _line(f"warning: {text}")

    def error(self, error: CytofmError) -> None:
        """Print an error as one line on stderr."""
        _line(f"error: {error.one_line()}")

    @contextlib.contextmanager
    def progress_bar(self, label: str, total: int) -> Iterator[Progress]:
        """Show how far a long job is: a bar on a terminal, a line a minute elsewhere."""
        if self.quiet or not self.progress:
            yield Progress(total)
        elif sys.stderr.isatty():
            with _RichProgress(label, total) as bar:
                yield bar
        else:
            yield _PlainProgress(label, total)


def _line(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream or sys.stderr, flush=True)


class Progress:
    """Count finished items, with the current fraction of those under way; prints nothing."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self._under_way: dict[str, float] = {}

    def part(self, item: str, done: int, total: int) -> None:
        """Note that an item under way has `done` of `total` parts."""
        self._under_way[item] = done / max(1, total)
        self.show()

    def finish(self, item: str) -> None:
        """Note that an item is finished."""
        self._under_way.pop(item, None)
        self.finished += 1
        self.show()

    @property
    def amount(self) -> float:
        """Finished items, counting fractions."""
        return self.finished + sum(self._under_way.values())

    def show(self) -> None:
        """Draw, if this kind of progress draws."""


class _RichProgress(Progress):
    def __init__(self, label: str, total: int) -> None:
        super().__init__(total)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        # No refresh thread: the supervisor forks, and forking with threads is unsafe.
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> _RichProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self) -> None:
        self._bar.update(self._task, completed=self.amount)
        self._bar.refresh()


class _PlainProgress(Progress):
    def __init__(self, label: str, total: int) -> None:
        super().__init__(total)
        self._label = label
        self._start = self._last = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if now - self._last < _PLAIN_PROGRESS_EVERY_S:
            return
        self._last = now
        rate = self.amount / (now - self._start)
        left_s = (self.total - self.amount) / rate if rate > 0 else float("nan")
        _line(
            f"{self._label}: {self.finished}/{self.total}, {rate * 60:.1f} a minute, "
            f"about {left_s / 60:.0f} min left"
        )


def silence_broken_pipe() -> None:
    """Let `cytofm … | head` end quietly: nothing more is written to the closed pipe."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = Out()
