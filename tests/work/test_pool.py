"""Results come as they end; errors, deaths and signals end it all, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cytofm_cli.errors import CytofmError, LabelError, OutOfMemoryError, TerminatedError
from cytofm_cli.work.pool import in_processes
from cytofm_cli.work.signals import StopFlag, catch_signals

HANG_GUARD_S = 300.0
_started_with: list[int] = []


def start(number: int) -> None:
    _started_with.append(number)


def add(number: int) -> tuple[int, int]:
    (base,) = _started_with
    return base + number, os.getpid()


class OneWay(Exception):
    """As some errors of others: it leaves in a pickle, and does not arrive."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")


def fail(kind: str) -> None:
    match kind:
        case "known":
            raise LabelError("no such label.", hint="look.")
        case "bug":
            raise ZeroDivisionError("by nothing")
        case "strange":
            raise type("Local", (Exception,), {})("cannot travel")
        case "one-way":
            raise OneWay("decode", 3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)


def sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(1000)


def catch(folder: Path) -> str:
    """Stop in time, as training does: the signal is heard, the work ends in its own way."""
    with catch_signals() as stop:
        (folder / str(os.getpid())).touch()
        while not stop:
            time.sleep(0.01)
        (folder / f"{os.getpid()} ended").touch()
        raise stop.error()


def test_in_processes__every_task_once_in_processes_that_were_started_once() -> None:
    answers = dict(in_processes(add, [1, 2, 3, 4], 2, StopFlag(), start, 10))
    assert {task: number for task, (number, _) in answers.items()} == {1: 11, 2: 12, 3: 13, 4: 14}
    pids = {pid for _, pid in answers.values()}
    assert len(pids) <= 2
    assert os.getpid() not in pids
    assert not any(_is_alive(pid) for pid in pids)


def test_in_processes__nothing_to_do_starts_nothing() -> None:
    assert list(in_processes(add, [], 2, StopFlag())) == []


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("known", LabelError, "no such label."),
        ("bug", ZeroDivisionError, "by nothing"),
        ("strange", RuntimeError, "Local: cannot travel"),
        ("one-way", RuntimeError, "OneWay: decode returned 3"),
        ("killed", OutOfMemoryError, "lack of memory"),
        ("exit", CytofmError, r"crashed \(exit code 3\)"),
    ],
)
def test_in_processes__an_error_is_raised_here(
    kind: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        list(in_processes(fail, [kind], 1, StopFlag()))
    assert type(caught.value) is error
    if kind in ("bug", "strange"):
        assert "in fail" in caught.value.__notes__[0]  # where it happened


@pytest.mark.parametrize("work", [sleep, catch])
def test_in_processes__a_stop_dismisses_work_that_catches_signals_too(
    work: object, tmp_path: Path
) -> None:
    stop = StopFlag()

    def set_when_both_work() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        stop.signal = signal.SIGTERM

    threading.Thread(target=set_when_both_work, daemon=True).start()
    with pytest.raises(TerminatedError):
        list(in_processes(work, [tmp_path, tmp_path], 2, stop))
    pids = {int(path.name.partition(" ")[0]) for path in tmp_path.iterdir()}
    assert len(pids) == 2
    assert not any(_is_alive(pid) for pid in pids)
    if work is catch:
        assert len(list(tmp_path.glob("* ended"))) == 2


def test_in_processes__closed_early_leaves_no_process(tmp_path: Path) -> None:
    answers = in_processes(add, list(range(50)), 2, StopFlag(), start, 0)
    _, (_, pid) = next(answers)
    answers.close()
    assert not _is_alive(pid)


def test_in_processes__what_the_parent_hears_reaches_no_child_from_the_very_first() -> None:
    script = (
        "import functools, signal; from cytofm_cli.work.pool import in_processes\n"
        "from cytofm_cli.work.signals import StopFlag\n"
        "blocked = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK)\n"
        "for _, held in in_processes(blocked, [(), ()], 2, StopFlag()):\n"
        "    print(*sorted(number.name for number in held))\n"
        "print(blocked(()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=-1, text=True, check=True)
    assert done.stdout.splitlines() == [*2 * ["SIGINT SIGUSR1 SIGUSR2"], "set()"]


SCRIPT = """
import os, sys, time
from pathlib import Path
from cytofm_cli.work.pool import in_processes
from cytofm_cli.work.signals import StopFlag
import tests_of_pool as there
list(in_processes(there.sleep, [Path(sys.argv[1])], 1, StopFlag()))
"""


def test_in_processes__processes_die_with_a_killed_parent(tmp_path: Path) -> None:
    modules, folder = tmp_path / "modules", tmp_path / "pids"
    modules.mkdir()
    folder.mkdir()
    (modules / "tests_of_pool.py").write_text(Path(__file__).read_text())
    path = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, folder], env={**os.environ, "PYTHONPATH": path}
    ) as process:
        while not list(folder.iterdir()):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    (pid,) = (int(path.name) for path in folder.iterdir())
    deadline = time.monotonic() + HANG_GUARD_S
    while _is_alive(pid):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
