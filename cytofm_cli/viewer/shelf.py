"""All slides of a viewer: a list of names, of which a few are open."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cytofm_cli.errors import UsageError
from cytofm_cli.store.schema import STORE_SUFFIX
from cytofm_cli.viewer.slide_view import SlideView
from cytofm_cli.work.closing import Closes

MOST_OPEN: Final = 4


class Shelf(Closes):
    """The stores, opened when they are looked at; those not looked at longest are closed.

    Args:
        stores: their paths.
        slides: folder where the slides lie now, if they were moved.

    Raises:
        UsageError: two stores are of slides of one name.
    """

    def __init__(self, stores: Sequence[Path], slides: Path | None = None) -> None:
        self.stores = tuple(stores)
        self.names = tuple(path.name.removesuffix(STORE_SUFFIX) for path in stores)
        _refuse_namesakes(self.stores, self.names)
        self._lowered = tuple(name.casefold() for name in self.names)
        self._slides = slides
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Opened] = OrderedDict()

    def close(self) -> None:
        """Close all slides."""
        with self._lock:
            for opened in self._open.values():
                opened.close()
            self._open.clear()

    def find(self, words: str, first: int, count: int) -> tuple[int, list[tuple[int, str]]]:
        """Find slides whose name has some words in it.

        Returns:
            how many there are, and number and name of some of them.
        """
        wanted = words.casefold().split()
        numbers = [
            number
            for number, name in enumerate(self._lowered)
            if all(word in name for word in wanted)
        ]
        return len(numbers), [(n, self.names[n]) for n in numbers[first : first + count]]

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[SlideView]:
        """Give a slide, open for the length of a `with` block.

        Raises:
            UsageError: there is none of this number.
            StoreError: its store cannot be used.
        """
        if not 0 <= number < len(self.stores):
            raise UsageError(f"no slide of number {number}.")
        with self._lock:
            opened = self._open.setdefault(number, _Opened(self.stores[number], self._slides))
            self._open.move_to_end(number)
            opened.users += 1
        try:
            yield opened.view()
        finally:
            with self._lock:
                opened.users -= 1
                self._close_some()

    def _close_some(self) -> None:
        for number in [n for n, opened in self._open.items() if not opened.users]:
            if len(self._open) <= MOST_OPEN:
                return
            self._open.pop(number).close()


class _Opened:
    """A slide that is open, or is being opened by the first thread that wants it."""

    def __init__(self, path: Path, slides: Path | None) -> None:
        self.users = 0
        self._path, self._slides = path, slides
        self._lock = threading.Lock()
        self._view: SlideView | None = None

    def view(self) -> SlideView:
        with self._lock:  # a store that cannot be opened is tried anew the next time
            if self._view is None:
                self._view = SlideView(self._path, self._slides)
            return self._view

    def close(self) -> None:
        if self._view is not None:
            self._view.close()


def _refuse_namesakes(stores: Sequence[Path], names: Sequence[str]) -> None:
    seen: dict[str, Path] = {}
    for path, name in zip(stores, names, strict=True):
        if seen.setdefault(name, path) != path:
            raise UsageError(
                f"{seen[name]} and {path} have the same name, and so have their marks.",
                hint="view them one after the other",
            )
