"""`cytofm pretrain` over several processes: killed or warned, it ends as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .pretrain_runs import assert_same, wait_for, words_of

pytestmark = pytest.mark.slow


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
    said, _ = process.communicate()
    assert process.returncode == 0, said
    process = torchrun(detected, killed)
    wait_for(killed / "checkpoints" / "step-00000002", process)
    claim = json.loads((tmp_path / ".killed.claim").read_text())  # rank 0 holds it
    os.kill(claim["pid"], signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "goes on at step" in said
    assert_same(killed, whole)


def two_nodes(detected: Path, run: Path) -> list[subprocess.Popen[str]]:
    """Start one torchrun a node, both here, as `srun --ntasks-per-node=1 torchrun` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        *"-m torch.distributed.run --nnodes=2 --nproc-per-node=1 --max-restarts=0".split(),
        *"--rdzv-backend=c10d --local-addr=127.0.0.1 --shutdown-timeout=60".split(),
        *(f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={run.name}"),
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2",
    ]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *launcher, *words_of(detected, run)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip


def ends_of(nodes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = "".join(node.communicate()[0] for node in nodes)
    return [node.returncode for node in nodes], said


def test_pretrain__two_nodes__a_warning_to_one_stops_both_and_it_goes_on_exactly(
    detected, tmp_path
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    codes, said = ends_of(two_nodes(detected, whole))
    assert codes == [0, 0], said
    nodes = two_nodes(detected, run)
    wait_for(run / "checkpoints" / "step-00000002", nodes[0])
    nodes[1].send_signal(signal.SIGUSR1)
    codes, said = ends_of(nodes)
    assert codes[1] != 0
    assert not (run / "summary.json").exists(), said
    assert (run / "stopped").exists(), said  # what a batch script asks before it requeues
    (saved,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    codes, said = ends_of(two_nodes(detected, run))
    assert codes == [0, 0], said
    assert f"goes on at step {int(saved.name[5:])} " in said
    assert not (run / "stopped").exists()
    assert_same(run, whole)
