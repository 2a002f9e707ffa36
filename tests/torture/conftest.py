"""A warm process that runs commands and crashes where it is told to; small inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .ground import Warm, make_ground, warmed


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Give the warm process."""
    with warmed(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where commands work, always under the same path: results name it."""
    return tmp_path_factory.mktemp("torture") / "work"


@pytest.fixture(scope="session")
def ground(warm: Warm, work: Path) -> Path:
    """Return what every case begins with: see `make_ground`."""
    make_ground(warm, work)
    return Path(shutil.copytree(work, work.with_name("ground"), symlinks=True))
