"""Run the real command on simulated fields."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.__main__ import main
from cytofm_cli.api import cohort
from cytofm_cli.cli.out import out
from cytofm_cli.work.batch import Event, Explain, Task, Work, attempt

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cytofm() -> Run:
    """Return a function that runs `cytofm WORDS…` in a process of its own."""

    def run(*words: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cytofm_cli", *(str(word) for word in words)]
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, **kwargs
        )

    return run


@pytest.fixture
def here(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Generator[Run, None, None]:
    """Give a function that runs `cytofm WORDS…` in this process, which has torch already.

    Slides are done in this process too: a child forked off it would wait for ever for the threads
    that libvips and torch have started here by now. The supervisor of a real run has none.
    """
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(cohort, "run_batch", _in_this_process)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        out.__init__()  # type: ignore[misc]
        capfd.readouterr()  # what was said before is not this command's
        command = [str(word) for word in words]
        with pytest.raises(SystemExit) as done:
            main(command)
        said = capfd.readouterr()
        code = int(done.value.code or 0)
        return subprocess.CompletedProcess(command, code, said.out, said.err)

    yield run
    gc.collect()  # models hang in circles, and no process ends here


def _in_this_process(
    work: Work, tasks: Sequence[Task], *, workers: int, stall_s: float, explain: Explain
) -> Generator[Event, None, None]:
    for task in tasks:
        heard: list[Event] = []
        outcome = attempt(work, explain, task, heard.append)
        yield from heard
        yield outcome


@pytest.fixture(scope="session")
def fields(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four simulated Pap fields that state no resolution, as cameras' do."""
    folder = tmp_path_factory.mktemp("fields")
    for path in sorted((simulated / "slides").iterdir())[:4]:
        content = bytearray(path.read_bytes())
        assert content[6:11] == b"JFIF\0"
        content[13:18] = b"\0\0\1\0\1"  # no unit; an aspect of 1:1
        (folder / path.name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def stores(cytofm: Run, fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stores of those fields, tiled at 256 px and embedded."""
    folder = tmp_path_factory.mktemp("stores")
    tiled = cytofm("tile", fields, "-o", folder, "--slide-mpp", 0.25, "--tile-px", 256)
    assert tiled.returncode == 0, tiled.stderr
    embedded = cytofm("embed", folder)
    assert embedded.returncode == 0, embedded.stderr
    return folder


@pytest.fixture(scope="session")
def detected(cytofm: Run, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return copies of those stores, with nuclei: for reading only."""
    folder = tmp_path_factory.mktemp("detected")
    for store in stores.glob("*.zarr"):
        shutil.copytree(store, folder / store.name)
    found = cytofm("detect", folder)
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    """Twelve bags in six groups; instances of positives are far from those of negatives."""
    folder = tmp_path / "bags"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        label = number % 2
        values = rng.normal(size=(20, 8)).astype(np.float32)
        values += 3.0 * label
        torch.save(torch.from_numpy(values), folder / f"s{number:02}.pt")
        rows.append(f"s{number:02},{'pos' if label else 'neg'},g{number // 2}")
    (tmp_path / "labels.csv").write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return folder
