"""A finished evaluation is one whose results are all there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli import run_record
from cytofm_cli.evaluate import run_folder

RECORD = {"evaluate": {"seed": 0}}


def finish(run: Path) -> None:
    run.mkdir(exist_ok=True)
    run_record.write_text(run / run_folder.CONFIG, run_record.to_text(RECORD))
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
