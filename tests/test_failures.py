"""Lists of failures that several commands write, and disks that are full for all slides."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from cytofm_cli.api.cohort import Manner, run_cohort
from cytofm_cli.api.failures import FailureLog
from cytofm_cli.errors import DiskFullError, SlideError
from cytofm_cli.work.batch import Outcome, Reporter, Status, Task


def failed(name: str) -> Outcome:
    return Outcome(slide_id=name, path=name, status="failed", error=SlideError(f"{name}: damaged."))


def told(folder: Path) -> dict[tuple[str, str], int]:
    """Return the attempts of what is listed, by command and slide."""
    lines = (folder / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {(of["command"], of["slide_id"]): of["attempts"] for of in records}


def test_log__of_two_commands_at_once_keeps_what_both_have_noted(tmp_path: Path) -> None:
    one, other = FailureLog(tmp_path, "tile", None), FailureLog(tmp_path, "tile", None)
    embed = FailureLog(tmp_path, "embed", None)
    for number in range(3):
        one.update(failed(f"a{number}"))
        other.update(failed(f"b{number}"))
        embed.update(failed(f"a{number}"))
    names = [f"{of}{number}" for of in "ab" for number in range(3)]
    wanted = {("tile", name): 1 for name in names} | {("embed", f"a{n}"): 1 for n in range(3)}
    assert told(tmp_path) == wanted
    one.update(Outcome(slide_id="a0", path="a0", status="done"))
    other.update(failed("b1"))
    del wanted["tile", "a0"]
    assert told(tmp_path) == wanted | {("tile", "b1"): 2}
    assert [path.name for path in tmp_path.iterdir()] == ["failures.jsonl"]


def _note_many(folder: Path, command: str, n: int) -> None:
    log = FailureLog(folder, command, None)
    for number in range(n):
        log.update(failed(f"s{number}"))
    log.flush()


def test_log__of_two_processes_loses_nothing(tmp_path: Path) -> None:
    context = get_context("spawn")
    both = [context.Process(target=_note_many, args=(tmp_path, of, 40)) for of in ("tile", "embed")]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len(told(tmp_path)) == 80


def test_log__what_others_are_at_stays_and_damage_is_no_obstacle(tmp_path: Path) -> None:
    record = {"command": "tile", "slide_id": "s\u2028", "attempts": "many"}
    text = "no JSON\n[]\n" + json.dumps(record, ensure_ascii=False) + "\n\xe9\n"
    (tmp_path / "failures.jsonl").write_bytes(text.encode() + b"\xe9\n")
    log = FailureLog(tmp_path, "tile", None)
    log.update(Outcome(slide_id="s\u2028", path="s", status="held"))
    log.update(failed("t"))
    lines = (tmp_path / "failures.jsonl").read_text().split("\n")
    assert [json.loads(line)["slide_id"] for line in lines if line] == ["s\u2028", "t"]
    log.update(failed("s\u2028"))
    assert json.loads((tmp_path / "failures.jsonl").read_text().split("\n")[0])["attempts"] == 1


@dataclass(frozen=True)
class Job:
    slide_id: str
    path: str


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk__ends_the_step_to_be_tried_again_and_no_further_slide_is_computed(
    tmp_path: Path, number: int
) -> None:
    def work(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        (tmp_path / task.name).touch()
        if task.name == "b":
            raise OSError(number, os.strerror(number))
        return "done", {}

    jobs = [Job(name, name) for name in "abc"]
    with pytest.raises(DiskFullError, match="b: no space left on the disk") as caught:
        run_cohort("tile", jobs, work, tmp_path / "out", Manner(), workers=1)
    assert caught.value.exit_code == 75
    # No slide after b, no list of failures, and no folder that was made for it alone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    (tmp_path / "own").mkdir()
    with pytest.raises(DiskFullError):
        run_cohort("tile", jobs, work, tmp_path / "own", Manner(), workers=1)
    assert list((tmp_path / "own").iterdir()) == []
