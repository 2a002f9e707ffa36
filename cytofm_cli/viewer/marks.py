"""What a reviewer has marked: points of slides with the key of a class, kept line by line.

Each action is one line of JSON at the end of the file, on the disk before it is answered, so that
a kill at any moment loses nothing that was shown as saved. A line that was cut by one is dropped.
Undoing is an action too: the file tells what was marked when.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.pictures import colours
from cytofm_cli.runs.provenance import utc_now
from cytofm_cli.stats.classes import BETHESDA
from cytofm_cli.table_text import TableWriter
from cytofm_cli.work.claim import claim
from cytofm_cli.work.closing import Closes
from cytofm_cli.work.files import output_errors

T = TypeVar("T")

KEYS: Final = range(1, 10)
ERASE: Final = 0
MOST_NAME_CHARS: Final = 100
_DECIMALS: Final = 2
# Of the keys 1 to 9: those of classes, grey and brown.
_COLOURS: Final = (*colours.CLASSES, colours.OTHER, (140, 86, 75))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point with a class.

    Attributes:
        slide_id: of the slide.
        x, y: level-0 pixels.
        key: of the class, 1 to 9; 0 takes a mark away.
    """

    slide_id: str
    x: float
    y: float
    key: int

    @property
    def place(self) -> tuple[str, float, float]:
        """What can have one mark only."""
        return self.slide_id, self.x, self.y


@dataclass
class Book:
    """All that has been done to marks, in order; `apply` is the only change.

    Attributes:
        legend: name of the class of each key.
        history: marks set and not undone, oldest first.
        at: of each place the marks in `history`; the last one counts.
    """

    legend: dict[int, str] = field(default_factory=lambda: dict(enumerate(BETHESDA, 1)))
    history: list[Mark] = field(default_factory=list)
    at: dict[tuple[str, float, float], list[Mark]] = field(default_factory=dict)

    def apply(self, action: Mapping[str, Any]) -> Mark | None:
        """Do what a line of the file says; return the mark that was set or undone.

        Raises:
            ValueError, KeyError, TypeError: it is no action.
        """
        if action["do"] == "name":
            self.legend[_key_of(action["key"], KEYS)] = str(action["name"])
            return None
        if action["do"] == "undo":
            return self._undo()
        if action["do"] != "mark":
            raise ValueError(f"no action is called {action['do']!r}")
        mark = Mark(
            slide_id=str(action["slide_id"]),
            x=round(float(action["x"]), _DECIMALS),
            y=round(float(action["y"]), _DECIMALS),
            key=_key_of(action["key"], range(KEYS.stop)),
        )
        self.history.append(mark)
        self.at.setdefault(mark.place, []).append(mark)
        return mark

    def _undo(self) -> Mark | None:
        if not self.history:
            return None
        mark = self.history.pop()
        self.at[mark.place].pop()
        if not self.at[mark.place]:
            del self.at[mark.place]
        return mark

    def marks(self, slide_id: str | None = None) -> list[Mark]:
        """List the marks that stand, of one slide or of all, by slide and in order of marking."""
        standing = [of[-1] for of in self.at.values() if of[-1].key != ERASE]
        if slide_id is not None:
            return [mark for mark in standing if mark.slide_id == slide_id]
        return sorted(standing, key=lambda mark: mark.slide_id)

    def name(self, key: int) -> str:
        """Return the name of the class of a key; the key itself where it has none."""
        return self.legend.get(key) or str(key)


class MarksFile(Closes):
    """The marks of a run, on the disk.

    Only one viewer writes to a file; it claims it with its first mark.

    Args:
        path: the file; made with the first mark.

    Raises:
        InputError: it cannot be read, or is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.book = read_book(path)
        self._lock = threading.Lock()
        self._held = contextlib.ExitStack()
        self._handle: int | None = None

    def do(self, action: Mapping[str, Any]) -> Mark | None:
        """Do something, once it is on the disk; return the mark that was set or undone.

        Raises:
            UsageError: the action is none.
            TryAgainError: another viewer writes to the file, or the disk is full.
            OutputError: it cannot be written.
        """
        with self._lock:
            _refuse_nonsense(action)
            self._write({**action, "utc": utc_now()})
            return self.book.apply(action)

    def ask(self, question: Callable[[Book], T]) -> T:
        """Answer a question about the marks while nothing is done to them."""
        with self._lock:
            return question(self.book)

    def close(self) -> None:
        """Let others write to the file."""
        self._held.close()
        self._handle = None

    def _write(self, action: Mapping[str, Any]) -> None:
        with output_errors(self.path):
            handle = self._handle if self._handle is not None else self._open()
            size = os.fstat(handle).st_size
            line = (json.dumps(action) + "\n").encode()
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise

    def _open(self) -> int:
        self._held.enter_context(claim(self.path.with_name(f".{self.path.name}.claim")))
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._held.callback(os.close, handle)
        self.book = read_book(self.path)  # another viewer may have written since
        text = self.path.read_bytes()
        os.ftruncate(handle, text.rfind(b"\n") + 1)
        self._handle = handle
        return handle


def read_book(path: Path) -> Book:
    """Read a file of marks; an empty book where there is none yet.

    Raises:
        InputError: it cannot be read, or a line is no action.
    """
    book = Book()
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return book
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    whole = text[: text.rfind(b"\n") + 1]  # what comes after it was cut by a kill
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            book.apply(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            shown = line[:60].decode("utf-8", "replace")
            raise InputError(
                f"{path}:{number}: is no mark of cytofm ({shown!r}).",
                hint="name another file with --marks, or take the line out",
            ) from error
    return book


def csv_text(book: Book) -> str:
    """Write marks as `slide_id,x,y,label`: what `cytofm evaluate probe --points` reads."""
    text = io.StringIO()
    writer = TableWriter(text)
    writer.writerow(["slide_id", "x", "y", "label"])
    for mark in book.marks():
        writer.writerow([mark.slide_id, f"{mark.x:.2f}", f"{mark.y:.2f}", book.name(mark.key)])
    return text.getvalue()


def geojson_text(book: Book, slide_id: str, origin_px0: tuple[float, float] = (0, 0)) -> str:
    """Write the marks of a slide as GeoJSON, which QuPath opens.

    Args:
        book: all marks.
        slide_id: of the slide.
        origin_px0: the point of level 0 that is (0, 0) in the file.
    """
    about = {"slide_id": slide_id, "origin_px0": list(origin_px0)}
    features = [_feature(mark, book, origin_px0) for mark in book.marks(slide_id)]
    collection = {"type": "FeatureCollection", "cytofm": about, "features": features}
    return json.dumps(collection, indent=1) + "\n"


def as_json(marks: Iterable[Mark]) -> list[dict[str, Any]]:
    """Return marks as the page takes them."""
    return [asdict(mark) for mark in marks]


def colour_of(key: int) -> tuple[int, int, int]:
    """Return the colour of a key."""
    return _COLOURS[key - 1]


def _feature(mark: Mark, book: Book, origin_px0: tuple[float, float]) -> dict[str, Any]:
    x, y = (round(a - o, _DECIMALS) for a, o in zip((mark.x, mark.y), origin_px0, strict=True))
    return {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [x, y]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": book.name(mark.key), "color": list(colour_of(mark.key))},
        },
    }


def _key_of(value: object, allowed: range) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise ValueError(f"{value!r} is no key of a class")
    return value


def _refuse_nonsense(action: Mapping[str, Any]) -> None:
    """Refuse what could not be read again.

    Raises:
        UsageError: says what is wrong.
    """
    try:
        Book().apply(action)
        if action["do"] == "name" and not 0 < len(action["name"].strip()) <= MOST_NAME_CHARS:
            raise ValueError(f"a name has 1 to {MOST_NAME_CHARS} characters")
        if action["do"] == "mark" and not all(abs(action[axis]) < 1e9 for axis in "xy"):
            raise ValueError("no place on a slide")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"not marked: {error}.") from error
