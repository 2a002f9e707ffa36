"""The GPU day kit, rehearsed on a CPU with tiny limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.pretrain.config import PackConfig
from cytofm_cli.pretrain.packing import pack

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import gpu_day  # noqa: E402

ARM = """
[pretrain]
encoder = "sr-vit-nano"
ncp = {ncp}
h = {h}
irpe = {irpe}
threads = 1
[views]
radius_um = 5
n_local = 2
[dino]
prototypes = 64
hidden = 32
bottleneck = 16
"""


@pytest.fixture
def arms(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "best.toml", tmp_path / "plain.toml"]
    paths[0].write_text(ARM.format(ncp="true", h=16, irpe="true"))
    paths[1].write_text(ARM.format(ncp="false", h=0, irpe="false"))
    return paths


def day(*words: object, out: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(ROOT / "tools/gpu_day.sh"), *map(str, words)],
        capture_output=True, text=True, check=False, env=environment | more,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gpu_day__rehearsal_leaves_every_result(make_store, arms, tmp_path: Path) -> None:
    path = pack(PackConfig(), [make_store("a", 6), make_store("b", 4)], tmp_path / "p.pack").path
    out = tmp_path / "out"
    done = day(path, *arms, "--limits", "tiny", "--steps", 4, out=out, SECONDS_IN_ALL="590")
    assert done.returncode == 0, done.stdout + (out / "gpu_day.log").read_text()[-3000:]
    results = json.loads((out / "gpu_day.json").read_text())
    assert results["kernels_checked"]["green"]
    assert {row["arm"] for row in results["kernels"]["rows"]} == {"ours", "naive", "sdpa"}
    assert results["kernels"]["rows"] == json.loads((out / "kernels.json").read_text())["rows"]
    assert set(results["smoke"]) == {"float32", "bf16", "bf16, DDP of one"}
    for way in results["smoke"].values():
        assert (way["rc"], way["step"]) == (0, 2)
        assert np.isfinite(way["loss"])
        assert way["tiles_per_s"] > 0
    assert set(results["published"]["rows"]) == {"published", "ours, no NCP", "ours, NCP"}
    for name in ("best", "plain"):
        assert {"rc": 0, "steps": 4, "batch": 4, "step": 4}.items() <= results["train"][
            name
        ].items()
        assert load_encoder(str(out / f"{name}.safetensors"), device="cpu").spec.dim == 128
        assert len((out / f"{name}.jsonl").read_text().splitlines()) >= 1
    assert not (out / "runs.tar").exists()
    assert done.stdout.count("\n| smoke: ") == 3
    shown = day(out / "gpu_day.json", "--table", out=out)
    assert shown.stdout == done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gpu_day__what_is_stopped_keeps_its_checkpoint_and_is_gone_on_with(
    make_store, arms, tmp_path: Path
) -> None:
    path = pack(PackConfig(), [make_store("a", 8)], tmp_path / "p.pack").path
    first, work = tmp_path / "first", tmp_path / "work"
    first.mkdir()
    work.mkdir()
    cut = gpu_day.Day(first, work, time.monotonic() + 10**6, gpu_day.LIMITS["tiny"])
    steps = ("--steps", 10**5, "--batch", 4)
    for name, arm in zip(("best", "plain"), arms, strict=True):
        run = work / "runs" / name
        child = cut.begin(
            gpu_day.pretrain_words(cut, path, arm, run, *steps, "--save-every", 10**4)
        )
        log = run / "log.jsonl"
        while child.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.5)
        cut.stop()
        assert child.wait(120) == 143, (first / "gpu_day.log").read_text()
        assert len(list((run / "checkpoints").glob("step-*"))) == 1
        cut.children.clear()
    with tarfile.open(tmp_path / "runs.tar", "w") as tar:
        tar.add(work / "runs", "runs")
    again = ("--limits", "tiny", "--steps", 10**5, "--resume", tmp_path / "runs.tar")
    out = tmp_path / "second"
    done = day(path, *arms, *again, out=out, SECONDS_IN_ALL="75")
    assert done.returncode == 1  # out of time once more
    assert (out / "runs.tar").stat().st_size > 10**5
    assert set(json.loads((out / "gpu_day.json").read_text())["train"]) == {"best", "plain"}
    assert "goes on at step" in (out / "gpu_day.log").read_text()


def test_gpu_day__names_what_is_missing(arms, tmp_path: Path) -> None:
    done = day(tmp_path / "absent.pack", *arms, out=tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "absent.pack: no such file" in done.stderr
    assert not (tmp_path / "out").exists()
