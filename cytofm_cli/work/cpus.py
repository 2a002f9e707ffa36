"""What this process may use: processors, devices, scratch space."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_count() -> int:
    """Return how many processors this job may use, at least 1.

    The smallest of: affinity, the cgroup's quota (containers), and what Slurm granted. The
    machine's own count says nothing on a shared node.
    """
    limits = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(float(len(os.sched_getaffinity(0))))
    limits.extend(_cgroup_quota())
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if os.environ.get(name, "").isdigit():
            limits.append(float(os.environ[name]))
            break
    return max(1, int(min(limits)))


def _cgroup_quota() -> list[float]:
    root = Path("/sys/fs/cgroup")
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return []
    return [quota_us / period_us] if quota_us > 0 else []
