"""Items that fail, hang or crash do not touch the others."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    InputError,
    OutOfMemoryError,
    SlideError,
    TryAgainError,
)
from cytofm_cli.work import children
from cytofm_cli.work.batch import (
    Event,
    Loss,
    Note,
    Outcome,
    Progress,
    Reporter,
    Status,
    Task,
    attempt,
    run_batch,
)
from cytofm_cli.work.claim import ClaimHeldError

HANG_GUARD_S = 300.0  # fails only where the thing itself hangs: a loaded machine is slow


def work(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    match task.payload:
        case "fail":
            raise SlideError(f"{task.path}: damaged.", hint="scan it again.")
        case "bug":
            return "done", {"n": 1 // 0}
        case "held":
            raise ClaimHeldError("another process is at it.")
        case "refused":
            raise ConfigMismatchError("other settings.")
        case "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
        case "replaced":
            raise TryAgainError("was replaced meanwhile.")
        case "full disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "ailing disk":
            raise OSError(errno.EIO, "Input/output error", "a/.b.partial")
        case "full device":
            raise OutOfMemoryError("not even one tile fits.")
        case "crash":
            faulthandler.disable()  # pytest's own: it would print a trace of this crash
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "progress":
            report.progress(3, 6)
        case "note":
            report.note("look at this")
    return "done", {"pid": os.getpid(), "slot": children.slot()}


def explain(task: Task, loss: Loss) -> InputError:
    return InputError(f"{task.path}: {loss.why}, {loss.detail or 'no detail'}")


def run(*payloads: str, workers: int = 1) -> tuple[dict[str, Outcome], list[Event]]:
    tasks = [Task(name=f"{i}{p}", path=p, payload=p) for i, p in enumerate(payloads)]
    events = list(run_batch(work, tasks, workers=workers, stall_s=HANG_GUARD_S, explain=explain))
    outcomes = [event for event in events if isinstance(event, Outcome)]
    assert sorted(outcome.slide_id for outcome in outcomes) == sorted(task.name for task in tasks)
    return {outcome.path: outcome for outcome in outcomes}, events


def test_run_batch__a_child_that_is_gone_leaves_its_slot_to_the_next() -> None:
    tasks = [Task(name=f"{i}", path=p, payload=p) for i, p in enumerate(["ok", "crash"] * 6)]
    events = run_batch(work, tasks, workers=3, stall_s=HANG_GUARD_S, explain=explain)
    done = [event for event in events if isinstance(event, Outcome) and event.status == "done"]
    slots = [outcome.facts["slot"] for outcome in done]
    assert len(slots) == 6
    assert set(slots) <= {0, 1, 2}
    assert children.slot() is None


def test_run_batch__errors_of_one_item_leave_the_others_done() -> None:
    outcomes, events = run("fail", "good", "note", "bug", "progress")
    assert outcomes["good"].status == "done"
    assert outcomes["fail"].status == "failed"
    assert outcomes["fail"].error.hint == "scan it again."
    assert type(outcomes["fail"].error) is SlideError
    assert type(outcomes["bug"].error) is CytofmError
    assert outcomes["bug"].error.exit_code == 1
    assert "ZeroDivisionError" in outcomes["bug"].facts["traceback"]
    assert [event.text for event in events if isinstance(event, Note)] == ["look at this"]
    told = [event for event in events if isinstance(event, Progress)]
    assert [(event.slide_id, event.done, event.total) for event in told] == [("4progress", 3, 6)]


def test_run_batch__a_disk_that_ails_is_no_bug() -> None:
    outcomes, _ = run("ailing disk")
    error = outcomes["ailing disk"].error
    assert error.message == (
        "ailing disk: a/.b.partial: cannot be read or written (Input/output error)."
    )
    assert error.exit_code == InputError.exit_code
    assert "Input/output" in outcomes["ailing disk"].facts["traceback"]


class _Foreign(Exception):
    """As some errors of others: it leaves in a pickle, and does not arrive."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")


def test_attempt__no_error_of_others_travels_along() -> None:
    """With dask, pickle takes the cause of an error along."""

    def decode(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        try:
            raise _Foreign("decode", 3)
        except _Foreign as error:
            raise SlideError(f"{task.path}: damaged.") from error

    outcome = attempt(decode, explain, Task("a", "a.tif", None), lambda message: None)
    assert str(outcome.error) == "a.tif: damaged."
    assert outcome.error is not None
    assert outcome.error.__cause__ is outcome.error.__context__ is None


def _terminated_in_a_callback(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGTERM))
    callback()
    return "done", {}


def test_run_batch__a_child_leaves_out_of_a_callback_of_c(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As of libvips' log: what Python raises there goes no further, and leaves a trace."""
    tasks = [Task("a", "a.tif", None)]
    (outcome,) = run_batch(
        _terminated_in_a_callback, tasks, workers=1, stall_s=HANG_GUARD_S, explain=explain
    )
    assert isinstance(outcome, Outcome)
    assert "exit code 143" in str(outcome.error)
    assert capfd.readouterr().err == ""


def test_run_batch__held_refused_and_out_of_memory_are_told_apart() -> None:
    outcomes, _ = run("held", "refused", "memory", "full device")
    assert {path: outcome.status for path, outcome in outcomes.items()} == {
        "held": "held",
        "refused": "refused",
        "memory": "failed",
        "full device": "failed",
    }
    assert outcomes["memory"].error.message == "memory: out of memory, no detail"
    assert outcomes["full device"].error.message == "not even one tile fits."


def test_run_batch__what_passes_is_held_and_a_full_disk_would_meet_all() -> None:
    outcomes, _ = run("replaced", "full disk")
    assert outcomes["replaced"].status == "held"
    full = outcomes["full disk"].error
    assert (full.exit_code, full.of_all_slides) == (75, True)
    assert full.message == "full disk: no space left on the disk."


def test_run_batch__a_crash_is_explained_and_a_new_child_goes_on() -> None:
    outcomes, _ = run("crash", "good", "killed", "note", "exit")
    assert outcomes["crash"].error.message == "crash: crashed, SIGSEGV"
    assert outcomes["killed"].error.message == "killed: killed, SIGKILL"
    assert outcomes["exit"].error.message == "exit: crashed, exit code 7"
    assert type(outcomes["exit"].error) is InputError
    assert outcomes["good"].status == outcomes["note"].status == "done"


def test_run_batch__children_are_reused() -> None:
    outcomes, _ = run("good", "note")
    assert outcomes["good"].facts["pid"] == outcomes["note"].facts["pid"] != os.getpid()


def test_run_batch__no_more_children_than_tasks() -> None:
    outcomes, _ = run("good", "note", workers=9)
    assert len({outcome.facts["pid"] for outcome in outcomes.values()}) == 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Give the supervisor a clock that only the returned function moves on, by seconds."""
    now = [0.0]
    monkeypatch.setattr(children, "MOST_GAP_S", math.inf)  # it jumps
    monkeypatch.setattr(
        children, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    )

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def speak_in_turn(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Say a number, and the next one when the test has heard it."""
    folder = Path(task.path)
    for number in range(5):
        report.note(str(number))
        while not (folder / str(number)).exists():
            time.sleep(0.01)
    return "done", {}


def test_run_batch__silence_is_counted_from_the_last_word(
    clock: Callable[[float], None], tmp_path: Path
) -> None:
    tasks = [Task("slow", str(tmp_path))]
    outcomes = []
    for event in run_batch(speak_in_turn, tasks, workers=1, stall_s=10, explain=explain):
        if isinstance(event, Note):
            clock(9.0)
            (tmp_path / event.text).touch()
        else:
            outcomes.append(event)
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("done", None)]


def test_run_batch__what_is_silent_too_long_is_given_up_and_killed(
    clock: Callable[[float], None], tmp_path: Path
) -> None:
    tasks = [Task("hangs", str(tmp_path)), Task("good", "good")]

    def task_of(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        if task.name == "hangs":
            report.note(str(os.getpid()))
            time.sleep(HANG_GUARD_S)
        return "done", {}

    outcomes, pids = [], []
    for event in run_batch(task_of, tasks, workers=1, stall_s=10, explain=explain):
        if isinstance(event, Note):
            pids.append(int(event.text))
            clock(10.5)
        else:
            outcomes.append(event)
    assert outcomes[0].error.message == f"{tmp_path}: stalled, 10 s"
    assert outcomes[0].seconds == 10.5
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]
    assert not _is_alive(pids[0])


def test_run_batch__the_time_in_which_all_were_suspended_is_no_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    faked = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(children, "time", faked)
    looks = [0]

    def look(watch: Any) -> None:
        looks[0] += 1
        plain(watch)

    plain = children._Watch.look
    monkeypatch.setattr(children._Watch, "look", look)

    def say_once(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        report.note("here")
        while not (tmp_path / "on").exists():
            time.sleep(0.01)
        return "done", {}

    def go_on() -> None:
        seen = looks[0]
        while looks[0] < seen + 3:  # the child still says nothing when the supervisor looks again
            time.sleep(0.01)
        (tmp_path / "on").touch()

    outcomes = []
    for event in run_batch(say_once, [Task("a", "a")], workers=1, stall_s=60, explain=explain):
        if isinstance(event, Note):
            now[0] += 3600.0  # Ctrl-Z, and an hour later `fg`
            threading.Thread(target=go_on).start()
        else:
            outcomes.append(event)
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("done", None)]


def test_run_batch__a_child_that_is_suspended_alone_is_waited_for(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [0]
    plain = children._Child._is_suspended

    def looked(child: Any) -> bool:
        told = plain(child)
        looks[0] += 1
        if looks[0] == 2:
            os.kill(child.process.pid, signal.SIGCONT)
        else:
            clock(11.0)
        return told

    def stop_self(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        report.note(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        return "done", {}

    monkeypatch.setattr(children._Child, "_is_suspended", looked)
    outcomes = []
    for event in run_batch(stop_self, [Task("a", "a")], workers=1, stall_s=10, explain=explain):
        if isinstance(event, Note):
            _await_state(int(event.text), "T")
            clock(11.0)
        else:
            outcomes.append(event)
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("done", None)]
    assert looks[0] == 2


def _await_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + HANG_GUARD_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


SCRIPT = """
import os, sys, time
from cytofm_cli.work.batch import Task, run_batch
from cytofm_cli.errors import CytofmError
def work(task, report):
    try:
        print(os.getpid(), flush=True)
        time.sleep(1000)
    finally:
        print("cleaned up", flush=True)
try:
    list(run_batch(work, [Task("a", "a")], workers=1, stall_s=1000, explain=None))
except CytofmError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_run_batch__a_signal_stops_the_children_and_tells_by_exit_code(
    number: signal.Signals, code: int
) -> None:
    with _start() as process:
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(timeout=HANG_GUARD_S) == code
        assert process.stdout.read() == "cleaned up\n"
    assert not _is_alive(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_run_batch__a_signal_to_all_processes_is_no_failure_of_the_item(
    number: signal.Signals,
) -> None:
    with _start() as process:
        child = int(process.stdout.readline())
        os.kill(child, number)  # the terminal and the scheduler tell all, in any order
        process.send_signal(number)
        code = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}[number]
        assert process.wait(timeout=HANG_GUARD_S) == code
    assert not _is_alive(child)


def test_run_batch__children_die_with_a_killed_supervisor() -> None:
    with _start() as process:
        child = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + HANG_GUARD_S
    while _is_alive(child):
        assert time.monotonic() < deadline, "the child outlived its supervisor"
        time.sleep(0.02)


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
