"""One bad item does not end the others: each is one line that names it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def of_tile(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Return a damage of the record of the tile step, wherever it stands."""

    def damage(store: Path) -> None:
        def in_root(node: Any) -> None:
            change(node["attributes"]["cytofm"]["steps"]["tile"])

        edit(store / "zarr.json", in_root)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no root": lambda store: (store / "zarr.json").unlink(),
    "half a root": lambda store: (store / "zarr.json").write_text(
        (store / "zarr.json").read_text()[:200]
    ),
    "a list for a root": lambda store: (store / "zarr.json").write_text("[]"),
    "nested too deep": lambda store: (store / "zarr.json").write_text("[" * 100_000),
    "no steps": lambda store: edit(
        store / "zarr.json", lambda node: node["attributes"]["cytofm"].pop("steps")
    ),
    "a word for a number": of_tile(lambda record: record.update(n_tiles="many")),
    "a number for a record": lambda store: edit(
        store / "zarr.json", lambda node: node["attributes"]["cytofm"]["steps"].update(tile=3)
    ),
    "half a pair": lambda store: edit(
        store / "zarr.json",
        lambda node: node["attributes"]["cytofm"]["slide"].update(size_px0=[5]),
    ),
}


@pytest.fixture
def some(stores: Path, tmp_path: Path) -> Path:
    """Return two stores of tiles and bags, of which the first may be damaged."""
    folder = tmp_path / "some"
    for store in sorted(stores.glob("*.zarr"))[:2]:
        shutil.copytree(store, folder / store.name)
    return folder


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_store__ends_neither_info_nor_export_for_the_others(
    here, some: Path, tmp_path: Path, how: str
) -> None:
    bad, good = sorted(some.iterdir())
    DAMAGES[how](bad)
    told = here("info", some, "--json")
    assert told.returncode == 4, told.stderr
    assert [json.loads(line)["store"] for line in told.stdout.splitlines()] == [str(good)]
    assert sum(line.startswith(f"error: {bad}") for line in told.stderr.splitlines()) == 1
    done = here("export", some, "-o", tmp_path / "out", "--to", "pt")
    assert done.returncode == 4, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / f"{good.stem}.pt")]
    assert sum(line.startswith(f"error: {bad}") for line in done.stderr.splitlines()) == 1
    for words in (("verify", some), ("embed", some, "--encoder", "handcrafted", "--dry-run")):
        told = here(*words)
        assert told.returncode == 4, told.stderr
        assert sum(line.startswith(f"error: {bad}") for line in told.stderr.splitlines()) == 1
    assert str(bad) in here("status", some).stdout
    alone = here("export", bad, "-o", tmp_path / "out", "--to", "pt")
    assert alone.returncode == 3, alone.stderr


def test_info__a_word_that_names_nothing_ends_nothing(here, some: Path, tmp_path: Path) -> None:
    bad, good = sorted(some.iterdir())
    (bad / "zarr.json").unlink()
    told = here("info", tmp_path / "none.svs", bad, good, "--json")
    assert told.returncode == 4, told.stderr
    assert [json.loads(line)["store"] for line in told.stdout.splitlines()] == [str(good)]
    lines = told.stderr.splitlines()
    assert {line.partition(": ")[2].split(":")[0] for line in lines[:2]} == {
        str(tmp_path / "none.svs"),
        str(bad),
    }


def test_a_damaged_array__is_told_by_name(here, some: Path) -> None:
    bad, good = sorted(some.iterdir())
    (bad / "tiles" / "xy_px0" / "zarr.json").write_text("{}")
    told = here("info", some)
    assert told.returncode == 4
    assert told.stdout.startswith(str(good))
    assert f"error: {bad}: tiles/xy_px0 cannot be read" in told.stderr
    done = here("embed", some, "--encoder", "handcrafted", "--overwrite")
    assert done.returncode == 4, done.stderr
    assert done.stdout.split() == [str(good)]
    assert f"error: {bad}: tiles/xy_px0 cannot be read" in done.stderr


def test_a_name_that_is_no_utf8__is_one_line_and_the_others_are_done(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    first = sorted(fields.iterdir())[0]
    shutil.copy(first, folder / "good.jpg")
    try:
        shutil.copy(first, os.fsencode(folder) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this disk takes no such names")
    words = ("-o", tmp_path / "out", "--slide-mpp", 0.25, "--shard", "0/1")
    done = cytofm("tile", folder, *words)
    assert done.returncode == 4, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / "good.zarr")]
    assert r"error: 'caf\udce9': a slide's name that is no UTF-8." in done.stderr
    (line,) = (tmp_path / "out" / "failures.0-of-1.jsonl").read_text().splitlines()
    assert json.loads(line)["slide_id"] == "caf\udce9"
    told = cytofm("info", folder, "--json")
    assert told.returncode in (0, 4), told.stderr  # libraries differ in what they open
    paths = {json.loads(line)["path"] for line in told.stdout.splitlines()}
    assert str(folder / "good.jpg") in paths
    assert "a bug of cytofm" not in told.stderr
