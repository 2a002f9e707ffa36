"""The one sink for everything a command says.

stdout is data (paths, one a line, or one JSON object a line with --json) and nothing else;
notes, warnings, progress and errors go to stderr. The format depends on flags alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from cytofm_cli.cli.progress import BarProgress, LogProgress, Progress
from cytofm_cli.errors import (
    CytofmError,
    shortened,
    visible,
    without_secrets,
)

_CLEAR: Final = "\x1b[H\x1b[2J"


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
    _bar: Progress | None = None

    def data(self, text: str | Sequence[str], record: dict[str, Any] | None = None) -> None:
        """Print one piece of data: `text`, a line or several, for people and pipes.

        With --json, `record` is printed instead. Names of files hold what they like: a line break
        or an escape sequence in one is spelt out.
        """
        if not self.json:
            self._print(text, sys.stdout)
        elif record is not None:
            self._print(json.dumps(record, ensure_ascii=False, allow_nan=False), sys.stdout)

    def clear_screen(self) -> None:
        """Begin at the top of an empty screen, where data go to a terminal."""
        if sys.stdout.isatty():
            self._write(_CLEAR, sys.stdout)

    def note(self, text: str | Sequence[str]) -> None:
        """Say a line, or several, on stderr; what starts with `warning: ` also with -q."""
        if not self.quiet or (isinstance(text, str) and text.startswith("warning: ")):
            self._print(text, sys.stderr)

    def detail(self, text: str) -> None:
        """Say something on stderr with -v."""
        if self.verbose:
            self._print(text, sys.stderr)

    def warn(self, text: str) -> None:
        """Say on stderr what the user should look at; the same line only once."""
        if text not in self._warned:
            self._warned.add(text)
            self._print(f"warning: {shortened(text)}", sys.stderr)

    def error(self, error: CytofmError, *, hint: bool = True) -> None:
        """Print an error as one line on stderr, without its hint if that was given before."""
        told = error.one_line() if hint else shortened(" ".join(error.message.split()))
        self._print(f"error: {told}", sys.stderr)

    @contextlib.contextmanager
    def progress_bar(
        self, label: str, n_items: int, unit: str = "slides", parts: str = "tiles"
    ) -> Iterator[Progress]:
        """Show how far a long job is: a bar on a terminal that can, a line a minute elsewhere."""
        if self.quiet or not self.progress:
            yield Progress(label, n_items, unit, parts)
        elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            with BarProgress(label, n_items, unit, parts) as bar:
                self._bar = bar
                try:
                    yield bar
                finally:
                    self._bar = None
        else:
            yield LogProgress(label, n_items, unit, parts)

    def _print(self, text: str | Sequence[str], stream: TextIO) -> None:
        """Print a line, or several; a bar on the same terminal makes room for it."""
        lines = [text] if isinstance(text, str) else text
        text = "\n".join(visible(without_secrets(line)) for line in lines)
        try:
            self._write(text, stream)
        except BrokenPipeError as error:  # or typer would end with 1
            raise OutputClosedError from error

    def _write(self, text: str, stream: TextIO) -> None:
        if self._bar is not None and stream.isatty():
            with self._bar.aside():
                print(text, file=stream, flush=True)
        else:
            print(text, file=stream, flush=True)


class OutputClosedError(Exception):
    """Nobody reads what is printed any more: `cytofm … | head`."""


def silence_stdout() -> None:
    """Let a command end quietly: nothing more is written to a closed pipe or a full disk."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = Out()
