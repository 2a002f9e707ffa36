"""The log of a run and its monitors."""

from __future__ import annotations

import importlib.util
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.errors import DiskFullError, InputError
from cytofm_cli.pretrain import monitor
from cytofm_cli.pretrain.monitor import RunLog, collapse, collapsed, read_log, utilisation


def test_log__a_line_a_step_and_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    with RunLog(path) as log:
        log.write(10, {"loss": 1.5, "utilisation": math.nan})
        assert path.read_text() == '{"step": 10, "loss": 1.5, "utilisation": null}\n'
        log.write(20, {"loss": math.inf})
    assert read_log(path) == [
        {"step": 10, "loss": 1.5, "utilisation": None},
        {"step": 20, "loss": None},
    ]


@pytest.mark.parametrize("torn", [b"", b'{"step": 50, "lo', b'{"step": 50, "loss": 0.5}'])
def test_log__resumed_is_that_of_an_undisturbed_run(tmp_path, torn):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    lines = [(step, {"loss": 1 / step, "lr": 1e-3 / 3}) for step in (10, 20, 30, 40, 50)]
    with RunLog(whole) as log:
        for line in lines:
            log.write(*line)
    with RunLog(resumed) as log:
        for line in lines[:4]:
            log.write(*line)
    with resumed.open("ab") as file:  # killed in the middle of a line
        file.write(torn)
    with RunLog(resumed, step=25) as log:  # the checkpoint was of step 25
        assert [line["step"] for line in read_log(resumed)] == [10, 20]
        for line in lines[2:]:
            log.write(*line)
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.jsonl", "whole.jsonl"]


def test_log__begun_anew_is_empty(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write(5, {"loss": 1.0})
    with RunLog(path):
        pass
    assert path.read_bytes() == b""


def test_log__damage_within_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"log.jsonl: line 2 is no line"):
        read_log(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path / "none.jsonl")


def test_log__says_once_that_tensorboard_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with RunLog(tmp_path / "log.jsonl", tensorboard=tmp_path / "board") as log:
        log.write(1, {"loss": 1.0})
    assert log.notes == ["TensorBoard is not installed: the log is in log.jsonl only"]
    with RunLog(tmp_path / "other.jsonl") as log:
        assert log.notes == []


def test_log__goes_to_tensorboard_too_and_a_resumed_run_leaves_no_step_twice(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    with RunLog(tmp_path / "log.jsonl", tensorboard=board) as log:
        log.write(10, {"loss": 4.0, "lr": 0.5})
        log.write(20, {"loss": 3.0, "lr": 0.25})  # after the checkpoint of step 10: lost
    with RunLog(tmp_path / "log.jsonl", step=10, tensorboard=board) as log:
        log.write(20, {"loss": 2.0, "lr": 0.125})
    found = EventAccumulator(str(board)).Reload()
    assert sorted(found.Tags()["scalars"]) == ["loss", "lr"]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(10, 4.0), (20, 2.0)]
    assert [(e.step, e.value) for e in found.Scalars("lr")] == [(10, 0.5), (20, 0.125)]


def test_log__a_disk_full_for_tensorboard_ends_the_run_at_that_line(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    n_threads = threading.active_count()
    with (
        RunLog(tmp_path / "log.jsonl", tensorboard=tmp_path / "board") as log,
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        assert threading.active_count() == n_threads  # none whose failure would be a trace
        monkeypatch.setattr(log._board, "_records", RecordWriter(full))
        with pytest.raises(DiskFullError, match="no space left"):
            log.write(1, {"loss": 1.0})


def test_collapse__by_hand():
    # rows (1, 0) and (0, 5): z has std 1/2 in both columns, times √2; σ = 5 and 1
    found = collapse(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    assert found["feature_std"] == pytest.approx(math.sqrt(2) / 2, abs=1e-12)
    p = np.array([5, 1]) / 6
    assert found["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), abs=1e-12)
    assert collapse(torch.eye(2))["effective_rank"] == pytest.approx(2, abs=1e-12)


def test_collapse__all_the_same_and_all_on_one_line():
    same = collapse(torch.full((8, 4), 0.3))
    assert same["feature_std"] == pytest.approx(0, abs=1e-7)
    assert same["effective_rank"] == pytest.approx(1, abs=1e-6)
    line = collapse(torch.tensor([[1.0, 2.0], [2.0, 4.0], [-3.0, -6.0]]))
    assert line["effective_rank"] == pytest.approx(1, abs=1e-6) and line["feature_std"] > 0.5


def test_collapse__uniform_directions_give_one():
    values = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    found = collapse(values.to(torch.bfloat16))
    assert found["feature_std"] == pytest.approx(1, abs=0.01)
    assert found["effective_rank"] == pytest.approx(16, abs=0.01)
    assert collapse(100 * values) == pytest.approx(collapse(values))  # scale does not matter


@pytest.mark.parametrize(
    ("spread", "images", "warns"),
    [(0.049, 8, True), (0.0, 64, True), (0.05, 8, False), (0.0, 7, False), (None, 64, False)],
)
def test_collapsed__warns_of_a_spread_below_a_twentieth_of_eight_images_or_more(
    spread: float | None, images: int, warns: bool
):
    said = collapsed({"step": 6, "feature_std": spread}, images)
    assert (said is not None) == warns
    if said and spread:
        assert "features have collapsed" in said and "spread 0.049, where 1 is all ways" in said


@pytest.mark.parametrize(
    "values", [torch.zeros(4, 3), torch.full((4, 3), math.nan), torch.empty(0, 0)]
)
def test_collapse__of_what_has_no_direction_is_nan(values):
    assert all(math.isnan(value) for value in collapse(values).values())


def test_utilisation__of_processors_by_hand(monkeypatch):
    monkeypatch.setattr(monitor, "cpu_count", lambda: 4)
    assert utilisation(torch.device("cpu"), cpu_s=6.0, wall_s=2.0) == 0.75
    assert math.isnan(utilisation(torch.device("cpu"), 1.0, 0.0))


def test_utilisation__of_a_gpu_is_what_torch_says_or_nan(monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 55)
    assert utilisation(torch.device("cuda", 0), 1.0, 1.0) == 0.55

    def fail(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    assert math.isnan(utilisation(torch.device("cuda", 0), 1.0, 1.0))
    assert math.isnan(utilisation(torch.device("meta"), 1.0, 1.0))


def test_times__are_fields_the_loop_writes():
    assert json.dumps(sorted(monitor.TIMES)) == '["tiles_per_s", "utilisation", "wait_share"]'
