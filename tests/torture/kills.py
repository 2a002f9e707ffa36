"""Commands in hard weather: what disturbs them, and what must be true afterwards.

A trial makes the folder anew, starts a command, disturbs it at a random moment and runs the same
command plainly. Before that, `verify` finds no damage in any store; after that, the folder is that
of an undisturbed run, byte for byte but for times. A trial is drawn from a seed and its number.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import CASES, words_of
from .ground import Warm, check_stores, put, snapshot
from .warm import HUNG

DRAWN = {
    "tile": 5, "tile --overwrite": 3, "detect": 5, "detect --overwrite": 3, "embed": 5,
    "embed --overwrite": 3, "mil train": 3, "mil train --overwrite": 3, "pretrain": 3, "report": 3,
    "run": 2,
}  # fmt: skip
LIMIT_S = 300.0  # what runs for longer hangs
BUG = 1
_ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
_SPACE = 1 << 31


@dataclass(frozen=True)
class Case:
    """A command, what it begins with, and what it leaves when nothing disturbs it."""

    name: str
    words: tuple[object, ...]
    template: Path
    wanted: dict[str, bytes]
    seconds: float
    changes: int


@dataclass
class Trial:
    """A command that is being disturbed.

    Attributes:
        sent: what disturbed it, each by a name, and how often.
        codes: how its processes ended.
        told: what they printed.
    """

    warm: Warm
    work: Path
    case: Case
    rng: random.Random
    sent: Counter[str] = field(default_factory=Counter)
    codes: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def said(self, number: int = 0) -> Path:
        """Return where a process prints."""
        return self.warm.said.with_name(f"said-{number}.txt")

    def start(self, number: int = 0, **how: object) -> int:
        """Start the command; return its process number."""
        return self.warm.start(*self.case.words, said=self.said(number), **how)  # type: ignore[arg-type]

    def sleep(self) -> None:
        """Wait for a random part of the time that the command takes."""
        time.sleep(self.rng.uniform(0, 0.95) * self.case.seconds)

    def end(self, pid: int, number: int = 0) -> None:
        """Wait for a process to end, and for its children."""
        self.codes.append(self.warm.wait(pid, LIMIT_S)[0])
        self.told.append(self.said(number).read_text(errors="replace"))


def session(pid: int) -> list[int]:
    """Return the living processes of a session, its leader first."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == pid and fields[0] not in "ZX":
                members.append(int(entry.name))
    return sorted(members, key=lambda member: (member != pid, member))


def send(trial: Trial, pid: int, number: signal.Signals) -> None:
    """Send a signal to the supervisor, to one of its children or to all of them."""
    members = session(pid)
    whom = trial.rng.choice(("supervisor", "child", "all"))
    if whom == "child" and len(members) == 1:
        whom = "supervisor"
    chosen = {"supervisor": members[:1], "all": members}.get(whom) or members[1:]
    if whom == "child":
        chosen = [trial.rng.choice(chosen)] if chosen else []
    for member in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)
    trial.sent[f"{number.name} {whom}" if chosen else "too late"] += 1
    if number is signal.SIGSTOP:
        time.sleep(trial.rng.uniform(0.05, 0.5))
        for member in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGCONT)


def struck(*numbers: signal.Signals) -> Callable[[Trial], None]:
    """Return the weather of one to three such signals, each to a run of its own."""

    def weather(trial: Trial) -> None:
        for _ in range(trial.rng.choice((1, 1, 2, 3))):
            pid = trial.start()
            trial.sleep()
            send(trial, pid, trial.rng.choice(numbers))
            trial.end(pid)

    return weather


def failing_disk(trial: Trial) -> None:
    """From a random change on, one or all of them fail."""
    number = trial.rng.choice(_ERRNOS)
    at, n = trial.rng.randrange(max(1, trial.case.changes)), trial.rng.choice((1, 3, 1 << 40))
    trial.sent[errno.errorcode[number]] += 1
    trial.end(trial.start(fail=(at, n, number)))


def full_disk(trial: Trial) -> None:
    """A file system of its own fills at a random moment; then there is room again."""
    held = sum(path.stat().st_blocks * 512 for path in trial.work.rglob("*"))
    grown = max(1 << 16, sum(map(len, trial.case.wanted.values())) - held)
    room = held + (1 << 18) + int(trial.rng.uniform(0, 1) * grown)
    with mounted(trial.work, room):
        put_into(trial.case.template, trial.work)
        trial.sent["full disk"] += 1
        trial.end(trial.start())
        subprocess.run(["mount", "-o", f"remount,size={_SPACE}", trial.work], check=True)
        judge(trial)


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes in memory on a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def may_mount(folder: Path) -> bool:
    """Tell whether this process may mount file systems."""
    try:
        with mounted(folder, 1 << 16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def put_into(template: Path, folder: Path) -> None:
    """Copy what a template holds into a folder that stands."""
    shutil.copytree(template, folder, symlinks=True, dirs_exist_ok=True)


def writers(trial: Trial) -> None:
    """Two or eight of the same command on one folder; at times one is killed."""
    n = trial.rng.choice((2, 2, 2, 8))
    pids = []
    for number in range(n):
        pids.append(trial.start(number))
        time.sleep(trial.rng.choice((0.0, 0.0, 0.1)) * trial.rng.random())
    trial.sent[f"{n} writers"] += 1
    if trial.rng.random() < 0.5:
        trial.sleep()
        send(trial, trial.rng.choice(pids), signal.SIGKILL)
    for number, pid in enumerate(pids):
        trial.end(pid, number)


def clock(trial: Trial) -> None:
    """The clock jumps, for the process or for the heartbeats of its claims; then it is killed."""
    years = trial.rng.choice((-1.0, -1e-4, 1e-4, 1.0)) * 365.25 * 86400
    ours = trial.rng.random() < 0.5
    pid = trial.start(clock_s=years if ours else 0.0)
    trial.sleep()
    if not ours:
        for path in trial.work.rglob(".*.claim"):
            with contextlib.suppress(OSError):
                os.utime(path, (time.time() + years,) * 2)
    trial.sent["clock of the process" if ours else "clock of its claims"] += 1
    if trial.rng.random() < 0.5:
        send(trial, pid, signal.SIGKILL)
    trial.end(pid)


def slide_gone(trial: Trial) -> None:
    """A slide vanishes, or becomes another one, while it is read; then it is back."""
    slides = sorted(path for path in (trial.work / "one").iterdir() if path.is_file())
    slide, aside = trial.rng.choice(slides), trial.work.with_name("aside")
    other = max((trial.work / "cohort" / "slides").iterdir())
    pid = trial.start()
    trial.sleep()
    shutil.move(slide, aside)
    changed = trial.rng.random() < 0.5
    if changed:
        shutil.copy(other, slide)
    trial.sent["changed slide" if changed else "vanished slide"] += 1
    trial.end(pid)
    shutil.move(aside, slide)


WEATHERS: dict[str, tuple[int, Callable[[Trial], None]]] = {
    "kill -9": (10, struck(signal.SIGKILL)),
    "terminate": (6, struck(signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)),
    "suspend": (4, struck(signal.SIGSTOP)),
    "failing disk": (5, failing_disk),
    "full disk": (3, full_disk),
    "writers": (4, writers),
    "clock": (3, clock),
    "slide": (3, slide_gone),
}
OF_SLIDES = ("tile", "tile --overwrite", "run")  # the others read stores


class Finding(AssertionError):
    """What must not be: a bug, damage, a difference."""


def judge(trial: Trial) -> None:
    """Hold what a disturbed command left against what it must be; run it plainly in between.

    Raises:
        Finding: it is something else.
    """
    for code, told in zip(trial.codes, trial.told, strict=True):
        if code in (BUG, HUNG) or "Traceback" in told:
            raise Finding(f"exit {code}: {told[-3000:]}")
    try:
        check_stores(trial.warm, trial.work)
    except AssertionError as error:
        raise Finding(str(error)) from error
    code, _ = trial.warm.run(*trial.case.words)
    told = trial.warm.said.read_text(errors="replace")
    if code not in (0, 2):  # 2: all is there already, and is not written over
        raise Finding(f"run again: exit {code}: {told[-3000:]}")
    held, wanted = snapshot(trial.work), trial.case.wanted
    differing = sorted(name for name in {*held, *wanted} if held.get(name) != wanted.get(name))
    if differing:
        sides = [
            f"{name}{'' if name in held else ' (missing)'}{'' if name in wanted else ' (too many)'}"
            for name in differing[:8]
        ]
        raise Finding(f"differs after exit {code}: {', '.join(sides)}\n{told[-2000:]}")


def prepare(warm: Warm, ground: Path, work: Path, name: str) -> Case:
    """Run a command undisturbed; return it as a case."""
    words, before = words_of(name)
    assert before is None, name
    put(ground, work)
    begun = time.monotonic()
    changes = warm.do(*words)
    seconds = time.monotonic() - begun
    return Case(name, words, ground, snapshot(work), seconds, changes)


@dataclass(frozen=True)
class Outcome:
    """How a trial went; `finding`: empty if all was as it must be; CPU of the commands alone."""

    number: int
    case: str
    weather: str
    sent: dict[str, int]
    codes: list[int]
    finding: str
    cpu_s: float = 0.0


def draw(rng: random.Random, names: list[str], weathers: list[str]) -> tuple[str, str]:
    """Draw a command and its weather."""
    name = rng.choices(names, [DRAWN.get(name, 1) for name in names])[0]
    possible = [weather for weather in weathers if weather != "slide" or name in OF_SLIDES]
    return name, rng.choices(possible, [WEATHERS[weather][0] for weather in possible])[0]


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write a report so that a kill leaves the former one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def run_trial(
    warm: Warm, work: Path, case: Case, weather: str, rng: random.Random, number: int = 0
) -> Outcome:
    """Disturb a command, and judge what is left."""
    trial, finding, begun = Trial(warm, work, case, rng), "", warm.cpu_s()
    put(case.template, work)
    try:
        WEATHERS[weather][1](trial)
        if weather != "full disk":  # judged while it is mounted
            judge(trial)
    except Finding as error:
        finding = str(error)
    cpu_s = round(warm.cpu_s() - begun, 2)
    return Outcome(number, case.name, weather, dict(trial.sent), trial.codes, finding, cpu_s)


assert set(DRAWN) <= set(CASES)
