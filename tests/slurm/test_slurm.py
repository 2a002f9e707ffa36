"""Jobs of a real Slurm that are warned, preempted and killed end as if nobody had touched them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from . import cluster as slurm
from .cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "slurm"
RUN = ("--encoder", "handcrafted", "--slide-mpp", "0.25")
TINY = (
    "--method", "dino", "--global-px", "32", "--local-px", "16", "--n-local", "2", "--batch", "4",
    "--steps", "40", "--save-every", "4", "--log-every", "4", "--device", "cpu", "--threads", "1",
    "--set", "prototypes=64", "--set", "hidden=32", "--set", "bottleneck=16",
)  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm.missing()),
        reason=f"no {', '.join(slurm.missing())} here: apt-get install slurmctld slurmd "
        "slurm-client munge",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a running Slurm, whose jobs find `cytofm` and `torchrun` of this checkout."""
    with tempfile.TemporaryDirectory(prefix="cytofm-slurm-") as folder:
        tools = Path(folder) / "bin"
        tools.mkdir()
        for name, module in (("cytofm", "cytofm_cli"), ("torchrun", "torch.distributed.run")):
            tool = tools / name
            tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        with slurm.running(Path(folder) / "slurm") as running:
            running.environment["PATH"] = f"{tools}:{running.environment['PATH']}"
            yield running


@pytest.fixture(scope="module")
def slides(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 40 slides: eight fields five times."""
    folder = tmp_path_factory.mktemp("slides")
    for path in sorted((simulated / "slides").iterdir()):
        for copy in range(5):
            shutil.copy(path, folder / f"{path.stem}_{copy}{path.suffix}")
    return folder


def arrays(stores: Path) -> dict[str, bytes]:
    """Return the bytes of every array file; attributes hold times and are left out."""
    return {
        path.relative_to(stores).as_posix(): path.read_bytes()
        for path in sorted(stores.glob("*.zarr/**/*"))
        if path.is_file() and path.name != "zarr.json"
    }


def preempt(cluster: Cluster) -> None:
    """Take all nodes away from `main` for a moment."""
    words = ("-p", "urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = cluster.submit(*words, "--wrap", "true")
    assert set(cluster.finish(urgent)) == {"COMPLETED"}


@pytest.fixture(scope="module")
def local(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stores of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("local") / "out"
    here("run", slides, "-o", out, *RUN)
    return out / "stores"


def here(*words: object, module: str = "cytofm_cli") -> None:
    command = [sys.executable, "-m", *module.split(), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_array__preempted_and_killed_it_makes_what_a_local_run_makes(
    cluster: Cluster, slides: Path, local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = (
        "--array=3-5:2%2", "--cpus-per-task=1", "--mem=0", "--time=10",
        f"--output={tmp_path}/%a.log", EXAMPLES / "array.sh", slides, out, *RUN,
    )  # fmt: skip
    number = cluster.submit(*job)
    cluster.wait_for(lambda: list(out.glob("stores/*.zarr")), "the first store")
    preempt(cluster)
    assert len(list(out.glob("stores/*.zarr"))) < 40, "preempted too late to prove anything"
    cluster.wait_for(lambda: kill_one(out), "the requeued array")
    ends = cluster.finish(number)
    said = "".join(log.read_text() for log in sorted(tmp_path.glob("*.log")))
    assert "stopped by SIGUSR1" in said
    assert sorted(ends) == ["COMPLETED", "FAILED"], said  # Slurm requeues nothing that fails
    assert set(cluster.finish(cluster.submit(*job))) == {"COMPLETED"}
    assert arrays(out / "stores") == arrays(local)
    assert [path.name for path in out.rglob(".*")] == []
    assert not list(out.glob("failures*"))


@pytest.mark.skipif(
    find_spec("dask_jobqueue") is None,
    reason="no dask-jobqueue here: pip install 'cytofm[cluster]'",
)
def test_on_slurm__submits_workers_that_make_what_a_local_run_makes(
    cluster: Cluster, slides: Path, local: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cytofm_cli", "run", slides, "-o", tmp_path / "out", *RUN,
         "--on", "slurm", "--workers", "2"],
        env={**cluster.environment, "DASK_JOBQUEUE__SLURM__MEMORY": "1GB"}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert arrays(tmp_path / "out" / "stores") == arrays(local)
    cluster.wait_for(lambda: not cluster.ask("squeue", "-h"), "the end of the workers")


def test_pretrain__preempted_on_two_nodes_it_goes_on_exactly(
    cluster: Cluster, local: Path, tmp_path: Path
) -> None:
    stores = tmp_path / "stores"
    for store in sorted(local.glob("*.zarr"))[::10]:
        shutil.copytree(store, stores / store.name)
    launch = ("--standalone", "--nproc-per-node=2", "-m", "cytofm_cli", "pretrain", stores)
    here(*launch, "-o", tmp_path / "whole", *TINY, module="torch.distributed.run")
    run = tmp_path / "run"
    number = cluster.submit(
        "--cpus-per-task=1", "--gres=gpu:1", "--mem=0", "--time=10",
        f"--output={tmp_path}/log", EXAMPLES / "pretrain.sh", stores, run, *TINY,
        env={
            "PRETRAIN_PROCESSES": "1", "PRETRAIN_HEAD": "127.0.0.1",  # names of nodes lead nowhere
            "PRETRAIN_LAUNCH": "--local-addr=127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        },
    )  # fmt: skip
    cluster.wait_for(lambda: list(run.glob("checkpoints/step-*")), "the first checkpoint")
    preempt(cluster)
    ends, said = cluster.finish(number), (tmp_path / "log").read_text()
    assert ends == ["COMPLETED"], said
    assert "stopped by SIGUSR2" in said
    assert "goes on at step" in said
    left, right = (load_file(path / "encoder.safetensors") for path in (run, tmp_path / "whole"))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def kill_one(out: Path) -> bool:
    """Kill -9 a supervisor that is at a slide, as a lack of memory does; tell if one was there."""
    if not list(out.glob("stores/.*.claim")):
        return False
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"cytofm_cli" in words and bytes(out) in words:
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(status[1])
    for pid, parent in parents.items():
        if parent not in parents:
            os.kill(pid, signal.SIGKILL)
            return True
    return False
