"""`kill -9` at any moment leaves valid stores, and the same command ends as if undisturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cytofm_cli.store import io

pytestmark = pytest.mark.slow


def arrays(stores: Path) -> dict[str, bytes]:
    """Return the bytes of every array file; attributes hold times and are left out."""
    return {
        path.relative_to(stores).as_posix(): path.read_bytes()
        for path in sorted(stores.glob("*.zarr/**/*"))
        if path.is_file() and path.name != "zarr.json"
    }


def run_and_kill(words: list[str], after_s: float) -> bool:
    """Run `cytofm`; kill -9 its whole process group after a while; tell whether it was alive."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cytofm_cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def assert_all_valid(stores: Path) -> None:
    for path in stores.glob("*.zarr"):
        store = io.open_store(path)
        assert len(store.read("tiles/pixels")) == store.tile.n_tiles
        for step, record in store.embedding_records("tile").items():
            assert len(store.read(f"{step}/values")) == record.n


@pytest.mark.parametrize("seed", [0, 1])
def test_kill__tile_and_embed_end_like_an_undisturbed_run(
    cytofm, fields: Path, stores: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    made = tmp_path / "stores"
    for words in (
        ["tile", str(fields), "-o", str(made), "--slide-mpp", "0.25", "--tile-px", "256"],
        ["embed", str(made)],
    ):
        kills = 0
        for _ in range(4):
            kills += run_and_kill(words, chance.uniform(0.3, 1.6))
            assert_all_valid(made)
        done = cytofm(*words)
        assert done.returncode == 0, done.stderr
    reference = {name: data for name, data in arrays(stores).items() if "/attention/" not in name}
    assert arrays(made) == reference
    assert not [path.name for path in made.iterdir() if path.name.startswith(".")]


def test_two_processes__one_does_a_slide_and_the_other_skips_it(
    fields: Path, stores: Path, tmp_path: Path
) -> None:
    words = ["tile", str(fields), "-o", str(tmp_path), "--slide-mpp", "0.25", "--tile-px", "256"]
    command = [sys.executable, "-m", "cytofm_cli", *words]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, said = process.communicate()
        # 75: the other one is at work on a slide just now.
        assert process.returncode in (0, 75), said
    tiles = {name: data for name, data in arrays(stores).items() if "embeddings/" not in name}
    assert arrays(tmp_path) == tiles


def test_stop__sigterm_keeps_finished_slides_and_tells(
    cytofm, fields: Path, stores: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    field = sorted(fields.iterdir())[0]
    for number in range(40):
        shutil.copy(field, many / f"field_{number:02}.jpg")
    made = tmp_path / "stores"
    command = ["tile", str(many), "-o", str(made), "--slide-mpp", "0.25"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cytofm_cli", *command], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(made.glob("*.zarr")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143
    assert "stopped by SIGTERM" in said
    finished = list(made.glob("*.zarr"))
    assert 0 < len(finished) < 40
    assert_all_valid(made)
    assert cytofm(*command).returncode == 0
    assert len(list(made.glob("*.zarr"))) == 40
