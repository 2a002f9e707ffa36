"""Full, closed and unread standard streams, and names that no file system takes, are no bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = [sys.executable, "-m", "cytofm_cli"]


@pytest.mark.parametrize("words", [["detectors"], ["--help"], ["detectors", "--json"]])
def test_stdout__full_is_told_with_exit_75(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*WORDS, *words], stdout=full, stderr=-1, text=True, check=False)
    assert done.returncode == 75
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "no space left on the disk" in lines[0]


def test_stderr__full_does_not_change_what_an_error_means(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*WORDS, "info", str(tmp_path / "none.svs")], stdout=-1, stderr=full, check=False
        )
    assert done.returncode == 3


@pytest.mark.parametrize("words", [["detectors"], ["--help"], ["tile", "--help"], ["--version"]])
def test_stdout__that_nobody_reads_ends_quietly_with_141(words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([*WORDS, *words], stdout=writes, stderr=-1, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_streams__closed_ones_do_not_stop_the_work(fields: Path, tmp_path: Path) -> None:
    field = min(fields.glob("*.*"))
    command = ["tile", str(field), "-o", str(tmp_path / "stores"), "--slide-mpp", "0.25", "-q"]
    script = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, "sh", *WORDS, *command], check=False)
    assert done.returncode == 0
    assert len(list((tmp_path / "stores").glob("*.zarr"))) == 1


@pytest.mark.parametrize("command", ["info", "tile", "embed"])
def test_names__over_the_limit_of_the_file_system_are_told(
    cytofm, tmp_path: Path, command: str
) -> None:
    done = cytofm(command, f"{'n' * 300}.svs", cwd=tmp_path)
    assert done.returncode == 3
    assert "a bug of cytofm" not in done.stderr
    assert "ile name too long" in done.stderr or "no such file" in done.stderr
