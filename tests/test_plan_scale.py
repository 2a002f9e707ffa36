"""What large cohorts are reckoned to take is right where it can be worked out by hand."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest

_FILE = Path(__file__).parent / "bench" / "plan_scale.py"
_SPEC = importlib.util.spec_from_file_location("plan_scale", _FILE)
scale = importlib.util.module_from_spec(_SPEC)
sys.modules["plan_scale"] = scale
_SPEC.loader.exec_module(scale)

# A slide takes 10 + 20 + 30 = 60 CPU seconds, 6 calls of 0.5 s and 1000 bytes.
RATES = scale.Rates(
    tiles_tiled=10.0, tiles_detected=5.0, cells_cut=100.0, cells_encoded=50.0,
    cells_on_gpu=150.0, start_s=0.0, asks=3.0, changes=3.0, files=3.0,
)  # fmt: skip
COHORT = scale.Cohort(slides=4, tiles=100.0, cells=1500.0, slide_bytes=1000.0, dim=0, spread=0.0)
SERVER = scale.Server(bandwidth=150.0, client_bandwidth=100.0, asks=3.0, ask_s=0.5)


def test_shared__is_divided_among_who_waits():
    disk = scale.Shared(capacity=1.0, most=0.75)
    disk.order(0.0, 1.0, 7)
    disk.order(0.0, 2.0, 8)
    assert disk.next_s() == 2.0 and disk.pop(2.0) == 7  # each had a half
    assert disk.next_s() == pytest.approx(2 + 1 / 0.75)  # alone: at most three quarters
    disk.order(3.0, 0.125, 9)  # 0.25 is left of the other one's
    assert disk.pop(disk.next_s()) == 9 and disk.at_s == 3.25
    assert disk.pop(disk.next_s()) == 8 and disk.at_s == pytest.approx(3.25 + 0.125 / 0.75)
    assert disk.next_s() == math.inf


def test_plan__names_what_is_busy_longest():
    found = scale.plan(COHORT, RATES, SERVER, cores=2, gpus=0)
    assert found.core_hours * 3600 == pytest.approx(4 * 60)
    assert (found.read_bytes, found.written_bytes, found.files, found.calls) == (4000, 0, 12, 24)
    assert found.busy_h["cores"] * 3600 == pytest.approx(120) and found.bottleneck == "cores"
    assert found.busy_h["bandwidth"] * 3600 == pytest.approx(4000 / 150)
    fed = scale.plan(COHORT, RATES, SERVER, cores=32, gpus=1)
    assert fed.core_hours * 3600 == pytest.approx(4 * (10 + 20 + 15))
    assert fed.gpu_hours * 3600 == pytest.approx(40) and fed.bottleneck == "GPUs"


def test_simulation__of_one_worker_is_the_sum_of_its_parts():
    found = scale.simulate(COHORT, RATES, SERVER, cores=1)
    # 6 calls at 2 a second, 1000 bytes at 100 a second, 60 s.
    assert found["hours"] * 3600 == pytest.approx(4 * (3 + 10 + 60))
    assert found["busy"] == pytest.approx(60 / 73) and found["preemptions"] == 0


def test_simulation__of_two_workers_waits_for_what_they_share():
    found = scale.simulate(COHORT, RATES, SERVER, cores=2)
    # 1.5 of 2 calls a second and 75 of 100 bytes a second each, as they run in step.
    assert found["hours"] * 3600 == pytest.approx(2 * (4 + 1000 / 75 + 60))


def test_simulation__of_preempted_workers_does_all_the_work_and_more():
    calm = scale.simulate(COHORT, RATES, SERVER, cores=1)
    hard = scale.simulate(COHORT, RATES, SERVER, cores=1, preempted_h=60 / 3600, seed=3)
    assert hard["preemptions"] > 0 and hard["hours"] > calm["hours"]
    useful_s = hard["busy"] * hard["hours"] * 3600
    assert useful_s == pytest.approx(4 * 60)
