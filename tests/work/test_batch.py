"""Slides that fail, hang or crash do not touch the others."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cytofm_cli.errors import SlideError, SlideTimeoutError
from cytofm_cli.work.batch import Note, Outcome, Progress, Reporter, Status, Task, run_batch


def work(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    match task.payload:
        case "fail":
            raise SlideError(f"{task.path}: damaged.", hint="scan it again.")
        case "bug":
            return "done", {"n": 1 // 0}
        case "hang":
            time.sleep(60)
        case "crash":
            faulthandler.disable()  # pytest's own: it would print a trace of this crash
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            for part in range(6):
                time.sleep(0.25)
                report.progress(part, 6)
        case "note":
            report.note("look at this")
    return "done", {"pid": os.getpid()}


def run(*payloads: str, workers: int = 1, stall_s: float = 30.0) -> tuple[dict[str, Outcome], list]:
    tasks = [Task(slide_id=f"{i}{p}", path=f"{p}.svs", payload=p) for i, p in enumerate(payloads)]
    events = list(run_batch(work, tasks, workers=workers, stall_s=stall_s))
    outcomes = [event for event in events if isinstance(event, Outcome)]
    assert len(outcomes) == len(payloads)
    return {outcome.path: outcome for outcome in outcomes}, events


def test_run_batch__errors_of_one_slide_leave_the_others_done() -> None:
    outcomes, events = run("fail", "good", "note", "bug")
    assert outcomes["good.svs"].status == "done"
    assert outcomes["fail.svs"].status == "failed"
    assert outcomes["fail.svs"].error.hint == "scan it again."
    assert isinstance(outcomes["fail.svs"].error, SlideError)
    assert outcomes["bug.svs"].error.exit_code == 1
    assert "ZeroDivisionError" in outcomes["bug.svs"].facts["traceback"]
    assert [event.text for event in events if isinstance(event, Note)] == ["look at this"]


def test_run_batch__a_crash_is_recorded_and_a_new_child_goes_on() -> None:
    outcomes, _ = run("crash", "good", "killed", "note")
    assert "SIGSEGV" in outcomes["crash.svs"].error.message
    assert "lack of memory" in outcomes["killed.svs"].error.message
    assert outcomes["good.svs"].status == outcomes["note.svs"].status == "done"


def test_run_batch__a_hanging_slide_is_given_up_and_a_slow_one_is_not() -> None:
    outcomes, events = run("hang", "slow", workers=2, stall_s=1.0)
    assert isinstance(outcomes["hang.svs"].error, SlideTimeoutError)
    assert outcomes["slow.svs"].status == "done"
    assert any(isinstance(event, Progress) and event.total == 6 for event in events)


def test_run_batch__children_are_reused() -> None:
    outcomes, _ = run("good", "note")
    assert outcomes["good.svs"].facts["pid"] == outcomes["note.svs"].facts["pid"] != os.getpid()


SCRIPT = """
import os, sys, time
from cytofm_cli.work.batch import Task, run_batch
from cytofm_cli.errors import CytofmError
def work(task, report):
    print(os.getpid(), flush=True)
    time.sleep(60)
try:
    list(run_batch(work, [Task("a", "a")], workers=1, stall_s=100))
except CytofmError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_run_batch__a_signal_stops_the_children_and_tells_by_exit_code(
    number: signal.Signals, code: int
) -> None:
    process = _start()
    with process:
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(timeout=20) == code
    assert not _is_alive(child)


def test_run_batch__children_die_with_a_killed_supervisor() -> None:
    process = _start()
    with process:
        child = int(process.stdout.readline())
        process.kill()
    for _ in range(100):
        if not _is_alive(child):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its supervisor")


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
