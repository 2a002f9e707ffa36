"""What may go on in a RUN folder, and whether a finished one still has what it promises."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.pretrain import run_folder

RECORD = {"pretrain": {"method": "dino", "seed": 0}, "dino": {"lr": 0.5, "decayed": "weights"}}
CPU = {"compute": {"threads": 2}}


def begin(run: Path, record: dict) -> Path:
    run_folder.prepare(run, record, overwrite=False)
    return run


def test_is_done__another_number_of_threads_is_refused(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", RECORD | CPU)
    assert run_folder.begun_threads(run) == 2
    assert not run_folder.is_done(run, RECORD | CPU, overwrite=False)
    with pytest.raises(ConfigMismatchError, match=r": compute.threads: 2 → 3\."):
        run_folder.is_done(run, RECORD | {"compute": {"threads": 3}}, overwrite=False)


@pytest.mark.parametrize(("begun", "now"), [(RECORD, RECORD | CPU), (RECORD | CPU, RECORD)])
def test_is_done__threads_that_one_side_does_not_know_are_no_difference(
    tmp_path: Path, begun: dict, now: dict
) -> None:  # a RUN from before they were recorded, or one that moves to a GPU
    run = begin(tmp_path / "run", begun)
    assert not run_folder.is_done(run, now, overwrite=False)


def test_is_done__in_old_runs_tokens_did_not_decay(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", RECORD | {"dino": {"lr": 0.5}})
    with pytest.raises(ConfigMismatchError, match=r": dino.decayed: 'matrices' → 'weights'\."):
        run_folder.is_done(run, RECORD, overwrite=False)
    as_then = RECORD | {"dino": {"lr": 0.5, "decayed": "matrices"}}
    assert not run_folder.is_done(run, as_then, overwrite=False)


def test_lost_encoders__names_what_is_gone_changed_or_states_something_else(tmp_path: Path) -> None:
    best, encoder = tmp_path / run_folder.BEST, tmp_path / run_folder.ENCODER
    summary = {
        "best_step": 4,
        "exported": {"licence": "CC0"},
        "sha256": {path.name: hashlib.sha256(b"w").hexdigest() for path in (best, encoder)},
    }
    (tmp_path / run_folder.SUMMARY).write_text(json.dumps(summary))
    best.write_bytes(b"w")
    assert run_folder.lost_encoders(tmp_path, {"licence": "CC0"}) == [run_folder.ENCODER]
    encoder.write_bytes(b"x")
    assert run_folder.lost_encoders(tmp_path, {"licence": "CC0"}) == [run_folder.ENCODER]
    encoder.write_bytes(b"w")
    assert run_folder.lost_encoders(tmp_path, {"licence": "CC0"}) == []
    other = run_folder.lost_encoders(tmp_path, {"licence": "MIT"})
    assert other == [run_folder.ENCODER, run_folder.BEST]
    assert run_folder.digests(tmp_path) == summary["sha256"]


def test_lost_encoders__of_an_old_run_only_its_being_there_is_known(tmp_path: Path) -> None:
    (tmp_path / run_folder.SUMMARY).write_text(json.dumps({"best_step": None}))
    assert run_folder.lost_encoders(tmp_path, {"licence": "MIT"}) == [run_folder.ENCODER]
    (tmp_path / run_folder.ENCODER).write_bytes(b"w")
    assert run_folder.lost_encoders(tmp_path, {"licence": "MIT"}) == []


@pytest.mark.parametrize("logged", ["", '{"step": 1}\n'])
def test_forget_false_start__a_run_that_made_no_update_is_gone(tmp_path: Path, logged: str) -> None:
    run = begin(tmp_path / "run", RECORD)
    (run / "log.jsonl").write_text(logged)
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events").write_bytes(b"version")
    run_folder.forget_false_start(run)
    assert run.exists() == bool(logged)
