"""How far a cohort is, from its stores alone: done, running, failed and why, left, time to go.

Nothing is asked of a scheduler and nothing is written: the stores say what is done and when, the
claims beside them who is at what, `failures.jsonl` what could not be done.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import re
import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cytofm_cli.api.given import PathLike, Paths, path_of, words_of
from cytofm_cli.api.inputs import find_slides, refuse_missing, store_id
from cytofm_cli.errors import DAMAGE, CytofmError, InputError
from cytofm_cli.store import schema
from cytofm_cli.store.io import is_store, open_store, store_path
from cytofm_cli.work.claimed import Holder, holders
from cytofm_cli.work.files import read_plain

# The kind of step that a command makes, as its failures name it.
_KIND_OF: Final = {
    "tile": "tile",
    "detect": "nuclei",
    "embed": "embeddings",
    "cells apply": "classes",
    "score": "attention",
}
_KINDS: Final = tuple(_KIND_OF.values())
_UNIT: Final = "|".join(schema.UNITS)
_CLAIM: Final = re.compile(
    rf"(.+?)\.(tile|nuclei\..+|classes\..+|(?:embeddings|attention)\..+\.(?:{_UNIT}))"
)
# A pace is that of the last slides of the last stretch of work, without the night between two.
_LAST: Final = 200
# On a network disk a look is a wait, and 2 000 of them, one after the other, are minutes; where
# none waits, threads take turns at Python for longer than they look.
_LOOKS_AT_A_TIME: Final = 8
_LOOKS_THAT_TELL: Final = 16
_WAITED: Final = 2.0  # times as long as the processor was used
_PAUSE_S: Final = 1800.0
_PAUSE_OF_GAPS: Final = 10.0


@dataclass(frozen=True)
class StepStatus:
    """How far one step is.

    Attributes:
        step: its name, as in the stores; of a step that no store holds yet, its kind.
        done: slides that have it.
        out_of_date: of these, made from what the store does not hold any more.
        running: slides that a process is at.
        failed: slides that could not be done, and are not done since.
        left: slides that remain, without those that failed at an earlier step.
        slides_per_hour: lately; None before two slides are done.
        left_s: seconds to go at that pace; None if nothing is running or no pace is known.
    """

    step: str
    done: int
    out_of_date: int
    running: int
    failed: int
    left: int
    slides_per_hour: float | None
    left_s: float | None


@dataclass(frozen=True)
class Failure:
    """A slide that a command could not do, as its `failures.jsonl` says."""

    slide_id: str
    command: str
    error: str
    hint: str | None
    attempts: int
    time_utc: str


@dataclass(frozen=True)
class Running:
    """A slide that a process is at; `silent_s`: since its last sign of life."""

    slide_id: str
    step: str
    host: str
    pid: int
    silent_s: float


@dataclass(frozen=True)
class Status:
    """How far a cohort is.

    Attributes:
        n_slides: slides that are known: stores, failures, claims, and those that were listed.
        steps: in the order in which they are made.
        failures: what could not be done, by slide.
        running: who is at what.
        stale: claims of processes that are gone; the next run takes them over.
        damaged: by store, why it cannot be opened.
    """

    n_slides: int
    steps: tuple[StepStatus, ...]
    failures: tuple[Failure, ...]
    running: tuple[Running, ...]
    stale: tuple[Running, ...]
    damaged: Mapping[str, str]

    @property
    def is_finished(self) -> bool:
        """Tell whether nothing is left and nothing is running."""
        return not any(step.left or step.running for step in self.steps)


def status(
    stores: Paths, slides: Paths | None = None, *, manifest: PathLike | None = None
) -> Status:
    """Tell how far a cohort is, without opening a slide or writing a byte.

    Args:
        stores: stores, folders of stores, or the `-o` of `run`: one or several.
        slides: the slides that are to be done: paths, folders, globs. None: those that are begun.
        manifest: table slide_id,path[,mpp] of them, instead of `slides` or besides.

    Raises:
        InputError: a folder is not there or cannot be listed; no slides, or a manifest that cannot
            be used.
    """
    cohort = _Cohort()
    for word in words_of(stores):
        cohort.add(word)
    if slides is not None or manifest is not None:
        listed = find_slides(words_of(slides), path_of(manifest))
        cohort.expect(slide.slide_id for slide in listed)
    return cohort.status()


@dataclass(frozen=True)
class _Look:
    """What a look at a store finds.

    Attributes:
        ended_utc: when each of its steps ended.
        stale: those that are out of date.
    """

    ended_utc: Mapping[str, str]
    stale: Collection[str]


@dataclass
class _Cohort:
    """What is known of the slides, each by the path of its store."""

    stores: dict[Path, _Look] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    failures: dict[tuple[Path, str], Failure] = field(default_factory=dict)
    running: dict[tuple[Path, str], Running] = field(default_factory=dict)
    stale: list[Running] = field(default_factory=list)
    known: set[Path] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)

    def add(self, word: str) -> None:
        """Take in a store or a folder of stores."""
        refuse_missing(word)
        path = Path(word)
        if not path.is_dir():
            raise InputError(f"{word}: is no folder of stores.", hint="cytofm status out/stores")
        if is_store(path) or path.name.endswith(schema.STORE_SUFFIX):
            self._add_stores(path.parent, [path], only=store_id(path))
            return
        inner = path / "stores"  # the folder of `run`
        folder = inner if inner.is_dir() and not is_store(inner) else path
        self._add_stores(folder, _stores_in(folder))

    def expect(self, slide_ids: Iterable[str]) -> None:
        """Count slides that are listed, whether begun or not."""
        begun = {store_id(path) for path in self.known}
        folder = self.folders[0] if self.folders else Path()
        self.known |= {store_path(folder, name) for name in slide_ids if name not in begun}

    def _add_stores(self, folder: Path, paths: Sequence[Path], only: str | None = None) -> None:
        self.folders.append(folder)
        self.known |= set(paths)
        for path, found in zip(paths, _look_at(paths), strict=True):
            if isinstance(found, _Look):
                self.stores[path] = found
            else:
                self.damaged[str(path)] = found
        for holder in holders(folder):
            self._add_claim(folder, holder, only)
        for place in (folder, folder.parent) if folder.name == "stores" else (folder,):
            for failure, kind in _failures(place):
                self._add_failure(folder, failure, kind, only)

    def _add_claim(self, folder: Path, holder: Holder, only: str | None) -> None:
        name = _CLAIM.fullmatch(holder.name)
        if name is None or (only is not None and name[1] != only):
            return  # of a commit, an export, or too long a name
        path = store_path(folder, name[1])
        step = _with_slashes(name[2])
        running = Running(name[1], step, holder.host, holder.pid, round(holder.silent_s, 1))
        if holder.lives:
            self.running[path, step] = running
            self.known.add(path)
        else:
            self.stale.append(running)

    def _add_failure(self, folder: Path, failure: Failure, kind: str, only: str | None) -> None:
        if only is not None and failure.slide_id != only:
            return
        path = store_path(folder, failure.slide_id)
        ended_utc = self.stores[path].ended_utc if path in self.stores else {}
        times = [when for name, when in ended_utc.items() if name.partition("/")[0] == kind]
        if any(when >= failure.time_utc for when in times):
            return  # another part of an array job has done it since
        self.failures[path, kind] = failure
        self.known.add(path)

    def status(self) -> Status:
        """Add it all up."""
        times: dict[str, list[float]] = {}
        for store in self.stores.values():
            for name, when in store.ended_utc.items():
                times.setdefault(name, []).append(_seconds(when))
        names = {*times, *(step for _, step in self.running)}
        kinds = {name.partition("/")[0] for name in names}
        names |= {kind for _, kind in self.failures if kind in _KINDS and kind not in kinds}
        names |= {"tile"} if self.known else set()
        steps = sorted(names, key=lambda name: (_place(name), name))
        return Status(
            n_slides=len(self.known),
            steps=tuple(self._step(name, times.get(name, [])) for name in steps),
            failures=tuple(sorted(self.failures.values(), key=lambda of: of.slide_id)),
            running=tuple(self.running.values()),
            stale=tuple(self.stale),
            damaged=self.damaged,
        )

    def _step(self, name: str, times: Sequence[float]) -> StepStatus:
        kind, place = name.partition("/")[0], _place(name)
        done = {path for path, store in self.stores.items() if name in store.ended_utc}
        running = {path for path, step in self.running if step == name}
        failed = {path for path, of in self.failures if of == kind} - done - running
        earlier = {path for path, of in self.failures if of in _KINDS and _place(of) < place}
        left = self.known - done - running - failed - earlier
        pace = _slides_per_hour(times)
        to_go = len(left) + len(running)
        return StepStatus(
            step=name,
            done=len(done),
            out_of_date=sum(name in store.stale for store in self.stores.values()),
            running=len(running),
            failed=len(failed),
            left=len(left),
            slides_per_hour=pace,
            left_s=3600 * to_go / pace if pace and running else None,
        )


def _stores_in(folder: Path) -> list[Path]:
    try:
        there = [path for path in folder.iterdir() if path.name.endswith(schema.STORE_SUFFIX)]
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}).", hint="see its permissions."
        ) from error
    visible = (path for path in there if not path.name.startswith("."))
    return sorted(visible, key=lambda path: path.name)


def _look_at(paths: Sequence[Path]) -> Iterator[_Look | str]:
    """Look at stores: one after the other, or several at a time if the first ones were waits."""
    waits = []
    for path in paths[:_LOOKS_THAT_TELL]:
        begun_s, used_s = time.monotonic(), time.thread_time()
        yield _look(path)
        waits.append(time.monotonic() - begun_s > _WAITED * (time.thread_time() - used_s))
    rest = paths[_LOOKS_THAT_TELL:]
    if not all(waits):  # one alone may have been held up by another process
        yield from map(_look, rest)
        return
    with ThreadPoolExecutor(_LOOKS_AT_A_TIME) as looks:
        yield from looks.map(_look, rest)


def _look(path: Path) -> _Look | str:
    """Return what a look at a store finds, or why it cannot be opened."""
    try:
        store = open_store(path)
        ended_utc = {name: record.time_utc for name, record in store.steps.items()}
        return _Look(ended_utc, store.all_stale().keys())
    except CytofmError as error:
        return error.message
    except DAMAGE as error:
        return f"{path}: {type(error).__name__}: {error}"


def _place(step: str) -> int:
    kind = step.partition("/")[0]
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _with_slashes(dotted: str) -> str:
    """Return the name of a step from that of its claim, where a dot stands for each slash."""
    kind, _, rest = dotted.partition(".")
    if kind in ("embeddings", "attention"):
        name, _, unit = rest.rpartition(".")
        return f"{kind}/{name}/{unit}"
    return f"{kind}/{rest}" if rest else kind


def _failures(folder: Path) -> Iterator[tuple[Failure, str]]:
    """Yield what the lists of failures in a folder say, and the kind of step of each."""
    for log in sorted(folder.glob("failures*.jsonl")):
        with contextlib.suppress(OSError):
            for line in read_plain(log).decode("utf-8", "replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    yield _failure(json.loads(line))


def _failure(told: Mapping[str, Any]) -> tuple[Failure, str]:
    command = str(told["command"])
    step = str(told.get("step", "")) if command == "run" else command
    failure = Failure(
        slide_id=str(told["slide_id"]),
        command=command if step == command else f"{command}: {step}",
        error=str(told["error"]),
        hint=told.get("hint"),
        attempts=int(told.get("attempts", 1)),
        time_utc=str(told.get("time_utc", "")),
    )
    return failure, _KIND_OF.get(step, step)


def _seconds(time_utc: str) -> float:
    try:
        return datetime.datetime.fromisoformat(time_utc).timestamp()
    except ValueError:
        return 0.0


def _slides_per_hour(times: Sequence[float]) -> float | None:
    """Return the pace of the last stretch of work; None before two slides are done.

    A stretch ends at a pause: longer than half an hour, and than ten times what lies between two
    slides as a rule. What is done in the same second has no pace.
    """
    last = sorted(when for when in times if 0 < when <= time.time() + _PAUSE_S)[-_LAST:]
    gaps = [after - before for before, after in itertools.pairwise(last)]
    if not gaps:
        return None
    pause = max(_PAUSE_S, _PAUSE_OF_GAPS * statistics.median(gaps))
    of_stretch: list[float] = []
    for gap in reversed(gaps):
        if gap > pause:
            break
        of_stretch.append(gap)
    return 3600 * len(of_stretch) / sum(of_stretch) if sum(of_stretch) > 0 else None
