"""`cytofm pretrain`: killed, signalled or over two processes, it ends as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cytofm_cli.encoders.base import load_encoder

TINY = (
    "--method", "dino", "--global-px", 32, "--local-px", 16, "--n-local", 2, "--batch", 4,
    "--steps", 8, "--save-every", 2, "--log-every", 2, "--device", "cpu", "--threads", 1,
    "--set", "prototypes=64", "--set", "hidden=32", "--set", "bottleneck=16",
)  # fmt: skip
CLOCKS = {"tiles_per_s", "wait_share", "utilisation", "utc"}


@pytest.fixture(scope="module")
def detected(cytofm, fields: Path, tmp_path_factory) -> Path:
    """Return stores of four fields, tiled and with nuclei."""
    folder = tmp_path_factory.mktemp("detected")
    for words in (
        ("tile", fields, "-o", folder, "--mpp", 0.25, "--tile-px", 256),
        ("detect", folder),
    ):
        done = cytofm(*words)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(cytofm, detected: Path, tmp_path_factory) -> Path:
    """Return a RUN that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = cytofm("pretrain", detected, "-o", run, *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "encoder.safetensors")
    return run


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
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_pretrain__stopped_and_resumed_equals_undisturbed(
    cytofm, detected, whole, tmp_path, number
):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *words_of(detected, run)], stderr=subprocess.DEVNULL
    )
    wait_for(run / "checkpoints" / "step-00000002", process)
    process.send_signal(number)
    code = process.wait(60)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGUSR1: 75}[number]
    assert not (run / "summary.json").exists()
    saved = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert saved, "the checkpoint must outlive the signal"
    again = cytofm("pretrain", detected, "-o", run, *TINY)
    assert again.returncode == 0, again.stderr
    assert f"goes on at step {int(saved[-1][5:])}" in again.stderr
    assert_same(run, whole)


def torchrun(detected: Path, run: Path) -> subprocess.Popen[str]:
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=3".split()
    return subprocess.Popen(
        [sys.executable, *launcher, *words_of(detected, run)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_pretrain__two_processes__a_killed_one_changes_nothing(detected, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = torchrun(detected, whole)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    process = torchrun(detected, killed)
    wait_for(killed / "checkpoints" / "step-00000002", process)
    claim = json.loads((tmp_path / ".killed.claim").read_text())  # rank 0 holds it
    os.kill(claim["pid"], signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "goes on at step" in said
    assert_same(killed, whole)


def test_pretrain__exports_an_encoder_that_embeds(whole, detected, cytofm):
    encoder = load_encoder(str(whole / "encoder.safetensors"), device="cpu")
    assert encoder.spec.dim == 192 and encoder.spec.input_px == 32
    done = cytofm("embed", detected, "--encoder", whole / "encoder.safetensors", "--unit", "cell")
    assert done.returncode == 0, done.stderr


def test_pretrain__finished_run_is_skipped_and_other_settings_are_named(cytofm, detected, whole):
    before = (whole / "encoder.safetensors").stat().st_mtime_ns
    assert cytofm("pretrain", detected, "-o", whole, *TINY).returncode == 0
    assert (whole / "encoder.safetensors").stat().st_mtime_ns == before
    other = cytofm("pretrain", detected, "-o", whole, *TINY, "--seed", 3, "--set", "prototypes=32")
    assert other.returncode == 2
    assert "dino.prototypes: 64 → 32; pretrain.seed: 0 → 3" in other.stderr


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--batch", 1000), 3, "tiles are too few for batches of 1000"),
        (("--batch", 4, "--accumulate", 3), 2, "does not divide"),
        (("--method", "dinno"), 2, "did you mean dino"),
        (("--method", "ibot", "--encoder", "resnet50"), 2, "no patches to mask"),
        (("--set", "lr=1e30", "--set", "clip=0", "--set", "warmup=0"), 3, "is not finite at step"),
        (("--device", "cuda"), 2, "no GPU"),
        (("--init", "absent.safetensors"), 3, "absent.safetensors"),
    ],
)
def test_pretrain__bad_input_is_one_clear_line(cytofm, detected, tmp_path, more, code, said):
    done = cytofm("pretrain", detected, "-o", tmp_path / "run", *TINY, *more)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "run" / "summary.json").exists()


def test_pretrain__stores_without_nuclei_are_refused_unless_asked_for(cytofm, stores, tmp_path):
    done = cytofm("pretrain", stores, "-o", tmp_path / "run", *TINY)
    assert done.returncode == 3 and "cytofm detect" in done.stderr
    plain = cytofm("pretrain", stores, "-o", tmp_path / "run", *TINY, "--no-ncp", "--steps", 1)
    assert plain.returncode == 0, plain.stderr
