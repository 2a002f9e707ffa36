"""The suite itself: what loads torch, and what its own rules do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ("runs", "slides", "stats", "store", "tiles")

TELL = """
import sys

def pytest_collection_finish(session):
    print(len(session.items), "torch" in sys.modules)
"""


def run_pytest(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own, with what `folder` holds on its path."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    plain = ("-p", "no:cacheprovider", "-p", "no:xdist", "-q")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *map(str, words)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.slow
def test_collection__of_folders_without_networks_does_not_load_torch(tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    folders = [ROOT / "tests" / name for name in LIGHT]
    done = run_pytest(tmp_path, "-p", "tell", "--collect-only", *folders)
    assert done.returncode == 0, done.stdout
    told = [line.split() for line in done.stdout.splitlines() if line.endswith(("True", "False"))]
    assert len(told) == 1 and int(told[0][0]) > 500
    assert told[0][1] == "False"


READS_SHARED = """
import pytest

@pytest.mark.needs_shared("there")
def test_there():
    pass

@pytest.mark.needs_shared("gone")
def test_gone():
    pass
"""


@pytest.mark.parametrize(
    ("shared", "words", "code", "said"),
    [
        (["there"], (), 0, "2 tests need ../shared, 1 skipped"),
        (["there"], ("--all-of-shared",), 1, "2 tests need ../shared, 1 skipped"),
        (["there", "gone"], ("--all-of-shared",), 0, "2 tests need ../shared, 0 skipped"),
        (None, ("--all-of-shared",), 0, "2 tests need ../shared, 2 skipped"),
    ],
)
@pytest.mark.slow
def test_needs_shared__is_counted_and_may_be_required(
    tmp_path: Path, shared: list[str] | None, words: tuple[str, ...], code: int, said: str
) -> None:
    tests = tmp_path / "clone" / "tests"
    tests.mkdir(parents=True)
    for name in ("conftest.py", "browser.py"):  # the one imports the other
        (tests / name).write_text((ROOT / "tests" / name).read_text())
    (tests / "test_reads.py").write_text(READS_SHARED)
    (tests / "test_left_out.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\n"
    )
    (tests.parent / "pytest.ini").write_text(
        "[pytest]\nmarkers = needs_shared(path)\naddopts = --import-mode=importlib\n"
    )
    if shared is not None:
        (tmp_path / "shared").mkdir()
        for name in shared:
            (tmp_path / "shared" / name).touch()
    done = run_pytest(tmp_path, "--rootdir", tests.parent, *words, tests)
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout
