"""How many processors this process may use: where machines are shared, not all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_MOUNT: Final = Path("/sys/fs/cgroup")
_OWN_GROUPS: Final = Path("/proc/self/cgroup")


def cpu_count() -> int:
    """Return how many processors this job may use, at least 1.

    The smallest of: the machine's processors, affinity, the quotas of the cgroups that this
    process is in (containers, systemd), and what Slurm granted.
    """
    limits = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(float(len(os.sched_getaffinity(0))))
    limits.extend(_quotas(_MOUNT, _OWN_GROUPS))
    limits.extend(_slurm())
    return max(1, int(min(limits)))


def _slurm() -> Iterator[float]:
    """Yield what Slurm granted: by task where that was asked for, else by node and its tasks.

    Tasks are those of the step that `srun` started; a job without a step is one process.
    """
    by_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    on_node = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if by_task.isdecimal():
        yield float(by_task)
    elif on_node.isdecimal():
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
        nodes = os.environ.get("SLURM_STEP_NUM_NODES", "")
        both = tasks.isdecimal() and nodes.isdecimal() and int(nodes) > 0
        yield int(on_node) // max(1, -(-int(tasks) // int(nodes)) if both else 1)


def _quotas(mount: Path, own_groups: Path) -> Iterator[float]:
    """Yield the quotas, in processors, of the groups of this process and of all above them.

    Any group on the way to the root may set one, and the tightest counts. In a container the
    names may be those of the host, of which only the root is to be seen.
    """
    for controllers, group in _groups(own_groups):
        roots = [mount, mount / "unified"] if not controllers else []
        roots += [mount / name for name in ("cpu", "cpu,cpuacct") if "cpu" in controllers]
        inside = PurePosixPath(group.lstrip("/"))
        for folder in (root / part for root in roots for part in (inside, *inside.parents)):
            yield from _v2(folder) if not controllers else _v1(folder)


def _groups(own_groups: Path) -> list[tuple[list[str], str]]:
    """Return (controllers, path) of each hierarchy that this process is in; v2 has no names."""
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [([], "/"), (["cpu"], "/")]  # no /proc: the roots may still tell
    fields = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [(names.split(",") if names else [], group) for _, names, group in fields]


def _v2(folder: Path) -> Iterator[float]:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return


def _v1(folder: Path) -> Iterator[float]:
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if quota_us > 0 and period_us > 0:
        yield quota_us / period_us
