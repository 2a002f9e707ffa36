"""A slide of an index, wherever its pixels lie, and the pixels of many, opened when needed."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.store import schema
from cytofm_cli.tiles.canvas import Canvases
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.views import stored
from cytofm_cli.views.stored import TileNuclei

Pixels = stored.Readable | Canvases

_MOST_OPEN: Final = 256  # stores
_MOST_OPEN_SLIDES: Final = 64  # a reader holds a cache of pixels
_FILES_A_STORE: Final = schema.MOST_SHARDS


@dataclass(frozen=True, eq=False)
class IndexedSlide:
    """The tiles of one slide, with their nuclei.

    Attributes:
        slide_id: name of the slide.
        path: of the store or pack.
        plan: how its tiles were read.
        nuclei: of each tile; `CellNuclei` where the tiles are cells.
        bare_N: bool, the tiles in which no nucleus lies; none where nuclei are not used.
        marks: digests of its tiles and, where they are used, of its nuclei.
        opened: opens its pixels, given the folder where the slides lie now.
        packed_px: side of its images in a pack, without margin; None: it is in a store.
        reads_slide: its pixels are read from the slide each time.
    """

    slide_id: str
    path: Path
    plan: ReadPlan
    nuclei: TileNuclei
    bare_N: NDArray[np.bool_]
    marks: tuple[str, ...]
    opened: Callable[[Path | None], contextlib.AbstractContextManager[Pixels]]
    packed_px: int | None = None
    reads_slide: bool = False

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return len(self.bare_N)

    @property
    def mark(self) -> str:
        """What changes with the tiles and the nuclei."""
        return "-".join(self.marks)


@dataclass
class _Open:
    """An open source and how many threads read it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    source: Pixels | None = None
    users: int = 0


class Sources:
    """The pixels of many slides, opened when needed; those longest unused are closed again."""

    def __init__(self, slides: Sequence[IndexedSlide], folder: Path | None) -> None:
        self._slides, self._folder = slides, folder
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()
        most = _MOST_OPEN_SLIDES if any(slide.reads_slide for slide in slides) else _MOST_OPEN
        self._most = min(most, _files() // (2 * _FILES_A_STORE))

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[Pixels]:
        """Give the pixels of one slide."""
        with self._lock:
            opened = self._open.setdefault(number, _Open())
            self._open.move_to_end(number)
            opened.users += 1
        try:
            with opened.lock:
                if opened.source is None:
                    pixels = self._slides[number].opened(self._folder)
                    opened.source = opened.stack.enter_context(pixels)
            yield opened.source
        finally:
            with self._lock:
                opened.users -= 1
            self._close(keep=self._most)

    def close(self) -> None:
        """Close what nobody reads."""
        self._close(keep=0)

    def _close(self, keep: int) -> None:
        with self._lock:
            idle = [number for number, opened in self._open.items() if not opened.users]
            surplus = idle[: max(0, len(self._open) - keep)]
            closing = [self._open.pop(number) for number in surplus]
        for opened in closing:
            opened.stack.close()


def _files() -> int:
    """Return how many files may be open, after asking for as many as the system allows."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN * _FILES_A_STORE * 2
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft if soft != resource.RLIM_INFINITY else wanted
