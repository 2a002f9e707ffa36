"""A finished evaluation is one whose results are all there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.evaluate import run_folder
from cytofm_cli.runs import record as run_record
from cytofm_cli.runs.folder import CONFIG
from cytofm_cli.work.files import write_text

RECORD = {"evaluate": {"seed": 0}}


def finish(run: Path) -> None:
    run.mkdir(exist_ok=True)
    write_text(run / CONFIG, run_record.to_text(RECORD))
    for name in (run_folder.PREDICTIONS, run_folder.TABLE):
        (run / name).write_text("x")
    (run / run_folder.METRICS).write_text("{}")


def test_may_write__a_whole_run_is_done(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    assert not run_folder.may_write(tmp_path / "run", RECORD, overwrite=False)
    assert run_folder.may_write(tmp_path / "run", RECORD, overwrite=True)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv", "table.md"])
def test_may_write__a_run_that_lacks_a_result_is_made_again(tmp_path: Path, name: str) -> None:
    finish(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert run_folder.may_write(tmp_path / "run", RECORD, overwrite=False)


def test_may_write__damaged_metrics_are_made_again(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    (tmp_path / "run" / run_folder.METRICS).write_text('{"tasks": ')
    assert run_folder.may_write(tmp_path / "run", RECORD, overwrite=False)


def test_may_write__what_is_spelt_out_as_its_default_is_the_same(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(run)
    defaults = {"folds": 6, "judged": ["g0", "g1"], "crop_um": 32.0, "pooling": None}
    same = {"folds": 6, "judged": ["g1", "g0"], "crop_um": 32.0}
    record = {"evaluate": RECORD["evaluate"] | same}
    assert not run_folder.may_write(run, record, defaults=defaults, overwrite=False)
    write_text(run / CONFIG, run_record.to_text(record))
    assert not run_folder.may_write(run, RECORD, defaults=defaults, overwrite=False)
    for key, value in {"folds": 5, "judged": ["g0"], "crop_um": 16.0, "pooling": "cls"}.items():
        other = {"evaluate": record["evaluate"] | {key: value}}
        with pytest.raises(ConfigMismatchError, match=f"evaluate.{key}"):
            run_folder.may_write(run, other, defaults=defaults, overwrite=False)
