"""The processors of a job are the fewest that anything grants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cytofm_cli.work import cpus


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine of 64 processors without limits; cgroups are in the folder."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)), raising=False)
    slurm = ("CPUS_PER_TASK", "CPUS_ON_NODE", "STEP_NUM_TASKS", "STEP_NUM_NODES")
    for name in (f"SLURM_{name}" for name in slurm):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpus, "_MOUNT", tmp_path)
    monkeypatch.setattr(cpus, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cpu_count__affinity_is_less_than_the_machine(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpus.cpu_count() == 48
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert cpus.cpu_count() == 64


@pytest.mark.parametrize(
    ("set_to", "count"),
    [
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "12"}, 6),
        ({"SLURM_CPUS_ON_NODE": "12"}, 12),
        ({"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "12"}, 12),
        ({"SLURM_CPUS_ON_NODE": "12(x2)"}, 48),
        ({"SLURM_CPUS_ON_NODE": "0"}, 1),
        ({"SLURM_CPUS_ON_NODE": "12", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2"}, 4),
        (
            {"SLURM_CPUS_ON_NODE": "12", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},
            12,
        ),
        ({"SLURM_CPUS_ON_NODE": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1"}, 1),
    ],
)
def test_cpu_count__slurm(
    machine: Path, monkeypatch: pytest.MonkeyPatch, set_to: dict[str, str], count: int
) -> None:
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert cpus.cpu_count() == count


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({"": "max 100000"}, 48),
        ({"": "350000 100000"}, 3),  # a container sees its own group as the root
        ({"": "20000 100000"}, 1),
        ({"jobs/one": "250000 50000"}, 5),
        ({"jobs": "700000 100000", "jobs/one": "max 100000"}, 7),
        ({"jobs": "700000 100000", "jobs/one": "900000 100000"}, 7),
        ({"jobs/two": "100000 100000"}, 48),  # another's
        ({"jobs": "nonsense"}, 48),
    ],
)
def test_cpu_count__cgroup_v2_counts_every_group_on_the_way_to_the_root(
    machine: Path, limits: dict[str, str], count: int
) -> None:
    write(machine / "own", "0::/jobs/one\n")
    for group, text in limits.items():
        write(machine / group / "cpu.max", text)
    assert cpus.cpu_count() == count


@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "count"), [("-1", 48), ("400000", 4)])
def test_cpu_count__cgroup_v1(machine: Path, mounted: str, quota: str, count: int) -> None:
    write(machine / "own", "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n")
    write(machine / mounted / "docker" / "cpu.cfs_quota_us", quota)
    write(machine / mounted / "docker" / "cpu.cfs_period_us", "100000")
    write(machine / "memory" / "x" / "cpu.cfs_quota_us", "100000")
    write(machine / "memory" / "x" / "cpu.cfs_period_us", "100000")
    assert cpus.cpu_count() == count


def test_cpu_count__names_of_the_host_leave_the_root_of_the_container(machine: Path) -> None:
    write(machine / "own", "0::/system.slice/docker-0123.scope\n")
    write(machine / "cpu.max", "200000 100000")
    assert cpus.cpu_count() == 2


def test_cpu_count__without_proc_the_roots_tell(machine: Path) -> None:
    write(machine / "cpu" / "cpu.cfs_quota_us", "900000")
    write(machine / "cpu" / "cpu.cfs_period_us", "100000")
    assert cpus.cpu_count() == 9
