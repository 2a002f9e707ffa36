"""`cytofm verify` as a user runs it, and what a step does with a store that it would refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def damaged(stores: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of stores, and the one in which a bit of the pixels has flipped."""
    only_stores = shutil.ignore_patterns("failures*")  # other tests use the same ones
    folder = Path(shutil.copytree(stores, tmp_path / "stores", ignore=only_stores))
    path = sorted(folder.glob("*.zarr"))[0]
    shard = min((path / "tiles" / "pixels").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[300] ^= 1
    shard.write_bytes(bytes(data))
    return folder, path


def test_verify__whole_stores_are_listed(cytofm, stores: Path) -> None:
    done = cytofm("verify", stores, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["store"] for line in lines) == sorted(map(str, stores.glob("*.zarr")))
    assert all(line["whole"] and line["n_unchecked"] == 0 < line["n_chunks"] for line in lines)


def test_verify__a_line_for_a_damaged_store_and_exit_4(cytofm, damaged) -> None:
    folder, path = damaged
    done = cytofm("verify", folder)
    assert done.returncode == 4
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"error: {path}")]
    assert len(lines) == 1
    assert "is damaged: tiles/pixels: chunk 0 of shard 0: its checksum is wrong" in lines[0]
    assert str(path) not in done.stdout.splitlines()
    alone = cytofm("verify", path, "--json")
    assert alone.returncode == 4
    record = json.loads(alone.stdout)
    assert (record["store"], record["whole"], len(record["damage"])) == (str(path), False, 1)
    assert not (folder / "failures.jsonl").exists()


def test_embed__a_flipped_bit_is_refused_with_the_name_of_the_store(cytofm, damaged) -> None:
    _, path = damaged
    done = cytofm("embed", path, "--encoder", "handcrafted", "--overwrite")
    assert done.returncode == 3
    assert f"{path}/tiles/pixels: tile 0 is damaged" in done.stderr


def test_verify__a_damaged_root_is_a_damaged_store(cytofm, damaged) -> None:
    _, path = damaged
    root = path / "zarr.json"
    root.write_text(root.read_text().replace('"cytofm": {', '"cytofm": }', 1))
    done = cytofm("verify", path)
    assert done.returncode == 4
    assert f"error: {path}: is damaged: the root: zarr.json: " in done.stderr
