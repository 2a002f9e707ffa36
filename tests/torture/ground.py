"""A warm process that runs commands and crashes where it is told to; small inputs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What says when a result was made, or how fast; `source` is a digest of records with times.
_WHEN = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00|Z| UTC)?|\d{4}-\d\d-\d\d"
    rb'|"source": "[0-9a-f]{16}"|"(tiles_per_s|wait_share|utilisation|seconds)": [0-9.e+-]+'
)
# A store that is not hidden, which what is staged is.
_STORE = re.compile(r"(?:[^./][^/]*/)*?[^./][^/]*(?<!\.views)\.zarr(?=/)")


@dataclass
class Warm:
    """Runs `cytofm` in forks of a warm process."""

    process: subprocess.Popen[str]
    said: Path
    cwd: Path = Path()

    def run(self, *words: object, **how: Any) -> tuple[int, int]:
        """Run a command to its end; return its exit code, and how many changes it made.

        Args:
            words: of the command.
            how: see `start`.
        """
        return self.wait(self.start(*words, **how))

    def start(
        self,
        *words: object,
        crash_at: int | None = None,
        fail: tuple[int, int, int] | None = None,
        clock_s: float = 0.0,
        said: Path | None = None,
    ) -> int:
        """Start a command; return its process number, which is that of its session, too.

        Args:
            words: of the command.
            crash_at: kill it before this change of the file system, from 0 on; None: never.
            fail: (change, how many, errno): these changes fail; removals and renames do not for
                lack of space.
            clock_s: how far its clock is ahead.
            said: where what it prints goes.
        """
        return int(
            self._ask(
                do="start", words=list(map(str, words)), crash_at=crash_at, fail=fail,
                clock_s=clock_s, said=str(said or self.said), cwd=str(self.cwd),
            )["pid"]
        )  # fmt: skip

    def wait(self, pid: int, limit_s: float = 600.0) -> tuple[int, int]:
        """Wait for a command; return its exit code, and how many changes it made.

        One that has not ended after so many seconds is killed: exit code HUNG.
        """
        answer = self._ask(do="wait", pid=pid, limit_s=limit_s)
        return answer["code"], answer["changes"]

    def cpu_s(self) -> float:
        """Return the processor's seconds of all commands that have ended, and of the process."""
        told = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, told[11:15])) / os.sysconf("SC_CLK_TCK")

    def _ask(self, **request: Any) -> dict[str, int]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def do(self, *words: object) -> int:
        """Run a command that must succeed; return how many changes it made."""
        code, changes = self.run(*words)
        assert code == 0, f"{' '.join(map(str, words))}: exit {code}\n{self.said.read_text()}"
        return changes


@contextlib.contextmanager
def warmed(folder: Path) -> Iterator[Warm]:
    """Start the warm process for the length of a `with` block; `folder` is for what is printed."""
    environment = {
        **os.environ,
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLCONFIGDIR": str(folder),
        "PYTHONHASHSEED": "0",
    }
    server = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    with subprocess.Popen(
        server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Warm(process, folder / "said.txt")
        assert process.stdin
        process.stdin.close()


@dataclass(frozen=True)
class Placed:
    """What `put` has laid into a folder: a template, and a stamp of each file and folder."""

    template: Path
    stamps: dict[str, tuple[int, ...]]


_PLACED: dict[Path, Placed] = {}


def _stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return, by name, what changes when a file, link or folder does; folders end with a slash."""
    held: dict[str, tuple[int, ...]] = {}

    def look(place: str, prefix: str) -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    held[f"{prefix}{entry.name}/"] = ()
                    look(entry.path, f"{prefix}{entry.name}/")
                else:
                    s = entry.stat(follow_symlinks=False)
                    held[prefix + entry.name] = (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)

    look(str(folder), "")
    return held


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds: files by name, without the times in them; and empty folders.

    Those of TensorBoard bear the time and the process in their names.
    """
    stamps = _stamps(folder)
    full = {name[: name.rindex("/", 0, -1) + 1] for name in stamps if "/" in name[:-1]}
    held: dict[str, bytes] = {}
    for name, stamp in stamps.items():
        if "tensorboard" in name.split("/"):
            continue
        if not name.endswith("/"):
            path = folder / name
            held[name] = b"a link" if path.is_symlink() else _content(path, *stamp)
        elif name not in full:
            held[name] = b""
    return held


@functools.lru_cache(1 << 14)
def _content(path: Path, *_stamp: int) -> bytes:
    """Return what a file holds, without times: most files are the template's in every trial."""
    return _WHEN.sub(b"WHEN", path.read_bytes())


def put(template: Path, work: Path) -> None:
    """Make `work` a copy of a template; what is still as it was laid there stays."""
    placed = _PLACED.pop(work, None)
    if placed is None or placed.template != template or not work.is_dir():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(template, work, symlinks=True)
    else:
        _mend(placed, work)
    _PLACED[work] = Placed(template, _stamps(work))


def _mend(placed: Placed, work: Path) -> None:
    """Undo what was done to a copy of a template."""
    now = _stamps(work)
    for name in sorted(now, reverse=True):  # what is in a folder before the folder
        if now[name] != placed.stamps.get(name):
            (work / name).rmdir() if name.endswith("/") else (work / name).unlink()
    for name in sorted(placed.stamps):
        if now.get(name) == placed.stamps[name]:
            continue
        if name.endswith("/"):
            (work / name).mkdir()
        else:
            shutil.copy2(placed.template / name, work / name, follow_symlinks=False)


def check_stores(warm: Warm, work: Path) -> None:
    """Assert that `verify` finds no damage in stores that a command has changed.

    Left-overs are no damage. Views are no store.
    """
    placed, now = _PLACED.get(work), _stamps(work)
    before = placed.stamps if placed else {}
    changed = [name for name in {*before, *now} if before.get(name) != now.get(name)]
    held = {found[0] for name in changed if (found := _STORE.match(name))}
    stores = [work / name for name in sorted(held) if f"{name}/" in now]
    code = warm.run("verify", *stores)[0] if stores else 0
    assert code == 0, f"verify: exit {code}: {warm.said.read_text(errors='replace')[-3000:]}"


TILE = ("--tile-px", 200, "--foreground", "none")
TRAIN = (
    "--folds", 2, "--seeds", 1, "--epochs", 2, "--bootstrap", 100, "--workers", 1,
    "--unit", "cell",
)  # fmt: skip


def make_ground(warm: Warm, work: Path) -> None:
    """Make what every case begins with.

    cohort        eight simulated fields of 400 px, labels.csv, points.csv
    one           the first of them
    stores        their stores: tiles, nuclei, bags of tiles and cells, attention of RUN `run`
    bare, found, whole  stores of the first alone: with tiles; with nuclei, too; with all
    run, cells    RUNs of `mil train` and `cells train`
    """
    from cytofm_cli.simulate.nuclei import points_table, read_nuclei

    work.mkdir()
    warm.cwd = work
    cohort, stores = work / "cohort", work / "stores"
    warm.do(
        "simulate", "-o", cohort, "--patients", 8, "--slides-per-patient", 1, "--size-px", 400,
        "--abnormal-share", 0.4, "--format", "jpeg",
    )  # fmt: skip
    (cohort / "points.csv").write_text(points_table(read_nuclei(cohort)))
    (work / "one").mkdir()
    first = min((cohort / "slides").iterdir())
    shutil.copy(first, work / "one")
    warm.do("tile", cohort / "slides", "-o", stores, *TILE)
    for name in ("bare", "found"):
        shutil.copytree(stores / f"{first.stem}.zarr", work / name / f"{first.stem}.zarr")
    warm.do("detect", stores)
    warm.do("detect", work / "found")
    for unit in ("tile", "cell"):
        warm.do("embed", stores, "--encoder", "handcrafted", "--unit", unit)
    labels = cohort / "labels.csv"
    warm.do("mil", "train", "--bags", stores, "--labels", labels, "-o", work / "run", *TRAIN)
    warm.do("mil", "score", work / "run", stores, "-o", work / "scores.csv")
    shutil.copytree(stores / f"{first.stem}.zarr", work / "whole" / f"{first.stem}.zarr")
    cells = ("--labels", cohort / "points.csv", "--groups", labels, "--encoder", "handcrafted")
    warm.do("cells", "train", stores, *cells, "-o", work / "cells", "--task", "abnormal")
