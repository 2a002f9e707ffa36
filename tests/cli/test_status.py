"""`cytofm status` counts from stores, claims and lists of failures alone."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cytofm_cli.api import status as module
from cytofm_cli.api.status import Status, StepStatus, status
from cytofm_cli.errors import InputError
from cytofm_cli.work.claim import STALE_S, claim
from cytofm_cli.work.claimed import holders


def write_store(folder: Path, slide_id: str, **times: str) -> Path:
    """Write a store without arrays, of steps that were done at these times of one day."""
    path = folder / f"{slide_id}.zarr"
    steps = {
        name.replace("__", "/"): {
            "config": {}, "config_hash": "", "input_fingerprint": "", "id": name,
            "time_utc": f"2026-11-01T{when}+00:00", "n_tiles": 0, "tile_px": 1, "tile_px0": 1.0,
            "mpp": 1.0, "level": 0, "made_from": {},
        }
        for name, when in times.items()
    }  # fmt: skip
    slide = {"slide_id": slide_id, "path": "x", "size_px0": [1, 1], "levels": [], "mpp": 1.0}
    write_node(path, {"cytofm": {"schema": 1, "slide": slide, "steps": steps}})
    for name in steps:
        write_node(path / ("tiles" if name == "tile" else name), {})
    return path


def write_node(path: Path, attributes: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(node))


def write_failure(folder: Path, slide_id: str, when: str, name: str = "", **more: object) -> None:
    record = {
        "command": "tile", "slide_id": slide_id, "path": f"/x/{slide_id}.svs", "attempts": 1,
        "error": f"/x/{slide_id}.svs: cannot be opened.", "hint": "scan it again.",
        "time_utc": f"2026-11-01T{when}+00:00", **more,
    }  # fmt: skip
    with (folder / f"failures{name}.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")


def row(of: Status, step: str) -> StepStatus:
    return next(one for one in of.steps if one.step == step)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three tiled slides a minute apart, one embedded, one failed, one under way."""
    write_store(tmp_path, "a", tile="10:00:00", embeddings__timm__tile="12:00:00")
    write_store(tmp_path, "b", tile="10:01:00")
    write_store(tmp_path, "c.d", tile="10:02:00")
    write_failure(tmp_path, "broken", "10:01:30")
    return tmp_path


def test_status__counts_each_step_of_what_is_there_and_what_was_listed(cohort: Path) -> None:
    slides = cohort / "slides"
    slides.mkdir()
    for name in ("a", "b", "c.d", "broken", "new", "under.way"):
        (slides / f"{name}.svs").touch()
    with claim(cohort / ".under.way.tile.claim"), claim(cohort / ".b.embeddings.timm.tile.claim"):
        now = status(cohort, slides)
    assert now.n_slides == 6
    assert row(now, "tile") == StepStatus(
        step="tile", done=3, out_of_date=0, running=1, failed=1, left=1,
        slides_per_hour=60.0, left_s=120.0,
    )  # fmt: skip
    assert row(now, "embeddings/timm/tile") == StepStatus(
        step="embeddings/timm/tile", done=1, out_of_date=0, running=1, failed=0, left=3,
        slides_per_hour=None, left_s=None,
    )  # fmt: skip
    assert [step.step for step in now.steps] == ["tile", "embeddings/timm/tile"]
    assert [(r.slide_id, r.step, r.pid) for r in now.running] == [
        ("b", "embeddings/timm/tile", os.getpid()),
        ("under.way", "tile", os.getpid()),
    ]
    assert not now.is_finished


def test_status__without_a_list_it_counts_what_is_begun(cohort: Path) -> None:
    now = status(cohort)
    assert now.n_slides == 4
    assert (row(now, "tile").left, row(now, "tile").left_s) == (0, None)
    assert row(now, "embeddings/timm/tile").left == 2


def test_status__a_failure_is_over_once_another_part_has_done_the_slide(cohort: Path) -> None:
    write_failure(cohort, "b", "10:00:30", name=".0-of-2")  # done at 10:01
    write_failure(cohort, "a", "12:30:00", name=".1-of-2", command="run", step="embed")  # after it
    now = status(cohort)
    assert [(one.slide_id, one.command) for one in now.failures] == [
        ("a", "run: embed"),
        ("broken", "tile"),
    ]
    assert row(now, "embeddings/timm/tile").failed == 0  # what there was of it is still there


def test_status__a_damaged_store_or_log_ends_nothing(cohort: Path) -> None:
    (cohort / "torn.zarr").mkdir()
    (cohort / "torn.zarr" / "zarr.json").write_text("{")
    (cohort / "failures.9-of-10.jsonl").write_bytes(b'{"command": "tile"}\n\xff\n[]\n{"x')
    now = status(cohort)
    assert list(now.damaged) == [str(cohort / "torn.zarr")]
    assert row(now, "tile").done == 3
    assert len(now.failures) == 1


@pytest.mark.parametrize("disk", ["answers", "waits"])
def test_status__many_stores_are_counted_alike_on_a_disk_that_waits(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    for number in range(20):
        write_store(cohort, f"more{number}", tile="10:00:00")
    (cohort / "more7.zarr" / "zarr.json").write_text("{")
    monkeypatch.setattr(module, "_LOOKS_THAT_TELL", 3)
    monkeypatch.setattr(module, "_WAITED", 0.0 if disk == "waits" else 1e9)
    now = status(cohort)
    assert (now.n_slides, row(now, "tile").done) == (24, 22)
    assert list(now.damaged) == [str(cohort / "more7.zarr")]


@pytest.mark.parametrize(
    "changes",
    [
        {"made_from": {"embeddings/timm/tile": "x"}},  # of itself, for ever
        {"made_from": {"tile": "tile"}, "regions": {}},
    ],
)
def test_status__a_record_that_makes_no_sense_is_damage(
    cohort: Path, changes: dict[str, Any]
) -> None:
    root = json.loads((cohort / "a.zarr" / "zarr.json").read_text())["attributes"]
    root["cytofm"]["steps"]["embeddings/timm/tile"] |= changes
    write_node(cohort / "a.zarr", root)
    now = status(cohort)
    assert list(now.damaged) == [str(cohort / "a.zarr")]
    assert (now.n_slides, row(now, "tile").done) == (4, 2)


def test_status__a_folder_that_cannot_be_listed_is_refused(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be listed \(Permission denied\)"):
        status(cohort)


def test_status__the_folder_of_run_is_its_stores_and_its_failures(cohort: Path) -> None:
    out = cohort / "out"
    write_store(out / "stores", "a", tile="10:00:00")
    write_failure(out, "z", "10:00:00", command="run", step="tile")
    now = status(out)
    assert (now.n_slides, row(now, "tile").done, row(now, "tile").failed) == (2, 1, 1)
    assert status(out / "stores").n_slides == 2


def test_status__a_store_alone_is_one_slide(cohort: Path) -> None:
    assert status(cohort / "a.zarr").n_slides == 1


@pytest.mark.parametrize(
    ("seconds", "per_hour"),
    [
        ([], None),
        ([5], None),
        ([5, 5], None),
        ([0, 60, 120], 60.0),
        ([0, 60, 120, 100_000, 100_030], 120.0),  # a night between: only the new stretch counts
        ([0, 3600, 7200], 1.0),  # slow slides are no pauses
    ],
)
def test_slides_per_hour__is_that_of_the_last_stretch(
    seconds: list[int], per_hour: float | None
) -> None:
    assert module._slides_per_hour([1e9 + s for s in seconds]) == per_hour


def test_holders__knows_the_living_from_the_gone_and_the_silent(tmp_path: Path) -> None:
    with claim(tmp_path / ".alive.tile.claim"):
        told = json.loads((tmp_path / ".alive.tile.claim").read_text())
        gone = {**told, "pid": 2**22 + 1}
        for name, who, age_s in (
            ("gone", gone, 0.0),
            ("elsewhere", gone | {"host": "far-away"}, 1.0),
            ("silent", gone | {"host": "far-away"}, STALE_S + 1),
        ):
            path = tmp_path / f".{name}.tile.claim"
            path.write_text(json.dumps(who))
            os.utime(path, (time.time() - age_s,) * 2)
        (tmp_path / ".begun.tile.claim").touch()
        shown = {holder.name: holder for holder in holders(tmp_path)}
    assert {name: holder.lives for name, holder in shown.items()} == {
        "alive.tile": True, "elsewhere.tile": True, "gone.tile": False, "silent.tile": False,
    }  # fmt: skip
    assert shown["alive.tile"].host == socket.gethostname()
    assert STALE_S <= shown["silent.tile"].silent_s < STALE_S + 60
    assert holders(tmp_path / "nowhere") == []


def test_command__says_each_reason_once_and_json_says_all(cohort: Path, here) -> None:
    write_failure(cohort, "torn", "10:00:00")
    plain = here("status", cohort)
    assert plain.returncode == 0, plain.stderr
    lines = plain.stdout.splitlines()
    assert lines[0].split()[:2] == ["5", "slides"]
    assert lines[1].split() == ["tile", "3", "0", "2", "0", "60", "-"]
    assert "failed (2) tile: cannot be opened. [broken, torn]" in lines
    told = json.loads(here("status", cohort, "--json").stdout)
    assert told == json.loads(json.dumps(dataclasses.asdict(status(cohort))))


def test_command__watch_ends_when_nothing_is_left(cohort: Path, here) -> None:
    shutil.rmtree(cohort / "b.zarr")
    shutil.rmtree(cohort / "c.d.zarr")
    done = here("status", cohort, "--watch", 60)
    assert done.returncode == 0
    assert done.stdout.count("slides") == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere",), 3, "no such file or folder"),
        (("file.txt",), 3, "is no folder of stores"),
        ((".", "--slides", "nothing"), 3, "no slides found"),
        ((".", "--watch", 0), 2, "watch"),
    ],
)
def test_command__bad_input_is_one_clear_line(
    tmp_path: Path, here, monkeypatch, words: tuple[object, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    (tmp_path / "nothing").mkdir()
    done = here("status", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
