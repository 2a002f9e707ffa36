"""Tiny runs of `cytofm pretrain`, for its tests.

Import as `from .pretrain_runs import …` (tests of this folder only).
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TINY = (
    "--method", "dino", "--global-px", 32, "--local-px", 16, "--n-local", 2, "--batch", 4,
    "--steps", 8, "--save-every", 2, "--log-every", 2, "--device", "cpu", "--threads", 1,
    "--set", "prototypes=64", "--set", "hidden=32", "--set", "bottleneck=16",
)  # fmt: skip
CLOCKS = {"tiles_per_s", "wait_share", "utilisation", "utc"}


def words_of(detected: Path, run: Path, *more: object) -> list[str]:
    return [str(w) for w in ("-m", "cytofm_cli", "pretrain", detected, "-o", run, *TINY, *more)]


def lines_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def assert_same(run: Path, whole: Path) -> None:
    assert lines_of(run) == lines_of(whole)
    assert [line["step"] for line in lines_of(run)] == [2, 4, 6, 8]
    left, right = (load_file(path / "encoder.safetensors") for path in (run, whole))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)
