"""How far a long command is: a bar on a terminal, a line a minute in a log.

Items (slides, models) are weighed by their parts (tiles, steps): a slide of 10 000 tiles counts
for more than one of ten. Nothing is foretold before something is finished.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cytofm_cli.errors import visible

_FIRST_LINE_S = 10.0
_EVERY_S = 60.0


@dataclass
class _Item:
    done: int = 0
    total: int = 0


class Progress:
    """Count the parts of items; prints nothing by itself.

    Args:
        label: what is being done, e.g. "tile".
        n_items: how many items there are.
        unit: what an item is called, in the plural.
        parts: what a part is called, in the plural.
    """

    def __init__(
        self, label: str, n_items: int, unit: str = "slides", parts: str = "tiles"
    ) -> None:
        self.label, self.n_items, self.unit, self.parts = label, n_items, unit, parts
        self.finished = 0
        self.text = ""
        self._start = time.monotonic()
        self._before: float | None = None  # what an earlier run had done: no part of our rate
        self._under_way: dict[str, _Item] = {}
        self._closed = _Item()  # sums over the items that are finished
        self._n_weighed = 0  # how many of them told their parts

    def part(self, item: str, done: int, total: int, text: str = "") -> None:
        """Note that an item under way has `done` of `total` parts."""
        self._under_way[item] = _Item(done, max(1, total))
        self.text = text or self.text
        if self._before is None:
            # The first report of a single item may come from a run that goes on.
            self._before = float(max(0, done - 1)) if self.n_items == 1 else 0.0
        self.show()

    def say(self, text: str) -> None:
        """Show a word on what is under way, e.g. a loss."""
        self.text = text
        self.show()

    def finish(self, item: str) -> None:
        """Note that an item is finished."""
        known = self._under_way.pop(item, None)
        if known is not None:
            self._closed.done += known.total
            self._n_weighed += 1
        self.finished += 1
        self.show()

    @property
    def amount(self) -> float:
        """Parts that are done; items that told none count as the mean of the others."""
        silent = (self.finished - self._n_weighed) * self._mean_parts
        return self._closed.done + sum(item.done for item in self._under_way.values()) + silent

    @property
    def total(self) -> float:
        """Parts of all items; those that are still to be opened count as the mean of the others."""
        known = self._closed.done + sum(item.total for item in self._under_way.values())
        others = self.n_items - self._n_weighed - len(self._under_way)
        return known + max(0, others) * self._mean_parts

    @property
    def _mean_parts(self) -> float:
        known = self._n_weighed + len(self._under_way)
        if not known:
            return 1.0
        return (self._closed.done + sum(i.total for i in self._under_way.values())) / known

    @property
    def left_s(self) -> float | None:
        """Seconds to go; None while nothing is finished."""
        done = self.amount - (self._before or 0.0)
        foreseeable = self.finished > 0 or self.n_items == 1
        if done <= 0 or not foreseeable:
            return None
        return (self.total - self.amount) * (time.monotonic() - self._start) / done

    @property
    def rate(self) -> float:
        """Parts a second."""
        passed = time.monotonic() - self._start
        return (self.amount - (self._before or 0.0)) / passed if passed > 0 else 0.0

    def counts(self) -> str:
        """Say how many items or, of a single one, parts are done."""
        if self.n_items == 1 and not self.finished:
            items = self._under_way.values()  # several where a command calls its stages so
            done, total = sum(item.done for item in items), sum(item.total for item in items)
            return f"{self.parts} {done}/{total}" if total else "at the first"
        return f"{self.unit} {self.finished}/{self.n_items}"

    def details(self) -> str:
        """Say what is under way, how fast it goes, and how long it will take."""
        told = []
        if self.n_items > 1 and self._under_way:
            (name, item), *others = self._under_way.items()
            more = f" and {len(others)} more" if others else ""
            told.append(f"at {name} ({item.done}/{item.total} {self.parts}){more}")
        if self.text:
            told.append(self.text)
        if self.amount > (self._before or 0.0):
            told.append(_rate(self.rate, self.parts if self._weighs else self.unit))
        left = self.left_s
        told.append("time left unknown" if left is None else f"{duration(left)} left")
        return ", ".join(told)

    @property
    def _weighs(self) -> bool:
        return bool(self._n_weighed or self._under_way)

    def show(self) -> None:
        """Draw, if this kind of progress draws."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Clear the way for a line of text."""
        yield


class LogProgress(Progress):
    """A line with the time every minute, for logs."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._next = self._start + _FIRST_LINE_S

    def show(self) -> None:
        """Print a line if the last one is a minute old."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            print(
                visible(f"{timestamp()} {self.label}: {self.counts()}, {self.details()}"),
                file=sys.stderr,
                flush=True,
            )


class BarProgress(Progress):
    """A bar on the terminal of stderr. Text goes above it through `aside`."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        one_line = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        # No refresh thread: the supervisor forks, and forking with threads is unsafe. stdout stays
        # what it is: rich would send what is printed there to this console, a pipe's data too.
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[details]}", markup=False, table_column=one_line),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(self.label, total=None, details="starting")

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self) -> None:
        """Draw the bar anew."""
        total = self.total if self._weighs or self.finished else None
        details = visible(f"{self.counts()}, {self.details()}")
        self._bar.update(self._task, completed=self.amount, total=total, details=details)
        self._bar.refresh()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while text is written to the terminal."""
        live = self._bar.live.is_started
        if live:
            self._bar.stop()
        try:
            yield
        finally:
            if live:
                self._bar.start()


def timestamp() -> str:
    """Return the local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")


def duration(seconds: float) -> str:
    """Write a duration as people say it: 40 s, 12 min, 3 h 5 min, 2 d 4 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    if hours < 1.5:
        return f"{minutes:.0f} min"
    if days < 2:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"


def _rate(per_second: float, what: str) -> str:
    scales = ((1, "a second"), (60, "a minute"), (3600, "an hour"))
    factor, word = next((pair for pair in scales if per_second * pair[0] >= 1), scales[-1])
    return f"{per_second * factor:.3g} {what} {word}"
