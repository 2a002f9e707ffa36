"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two workers share the processors: each test, and each process it starts, takes one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what reads files that a clone does not have."""
    for marker in item.iter_markers("needs_shared"):
        if not (SHARED / marker.args[0]).exists():
            pytest.skip(f"../shared/{marker.args[0]} is not beside this checkout")
