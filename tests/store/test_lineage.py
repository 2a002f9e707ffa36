"""What was made from a step goes with it, or is refused: never used beside another one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytofm_cli.errors import ConfigMismatchError, StoreError, TryAgainError
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.records import LevelRecord, NucleiRecord, SlideRecord, StepRecord, TileRecord
from cytofm_cli.store.zarr3 import write_array

from ..nodes import put_node  # noqa: TID252 - of all tests

NUCLEI, TILES = "nuclei/classical", "embeddings/hand/tile"
CELLS, ATTENTION = "embeddings/hand/cell", "attention/run/cell"
BAGS = (TILES, CELLS, ATTENTION)
ALL = {schema.TILE_STEP, NUCLEI, *BAGS}
SLIDE = SlideRecord(
    slide_id="a",
    path="a.svs",
    size_px0=(64, 64),
    levels=(LevelRecord(size_px=(64, 64), downsample=1.0),),
    mpp=0.5,
)


def mark(path: Path, *steps: str) -> str:
    """Return the `input_fingerprint` of a step made from others, as earlier versions wrote it."""
    records = io.open_store(path).steps
    return "-".join([records["tile"].mark] + [records[step].config_hash for step in steps])


def make_tiles(stores: Path, n: int = 4) -> Path:
    path = io.store_path(stores, "a")
    record = TileRecord(
        **provenance.stamp({"tile_px": 8}, input_fingerprint="slide"),
        n_tiles=n, tile_px=8, tile_px0=8.0, mpp=0.5, level=0,
    )  # fmt: skip
    with io.claim_step(stores, "a", "tile"), io.staging(stores, "a", "tile") as staged:
        xy = np.arange(2 * n, dtype=np.int32).reshape(n, 2)
        arrays.write(staged, schema.TILE_XY, xy)
        commit.commit_store(staged, path, slide=SLIDE, record=record)
    return path


def add(path: Path, step: str, write: Any, config: dict[str, Any], fingerprint: str, **facts: Any):
    with io.claim_step(path.parent, "a", step), io.staging(path.parent, "a", step) as staged:
        write(staged)
        told = provenance.record(config, input_fingerprint=fingerprint, **facts)
        return commit.commit_group(staged, path, step, StepRecord.from_json(told))


def add_nuclei(path: Path, n: int = 3, seed: int = 0, **config: Any):
    xy = np.random.default_rng(seed).uniform(0, 99, (n, 2))
    table = make_table(xy, np.ones(n))
    settings = {"detector": "classical", **config}
    facts = {"n": n, "classes": list(table.classes)}
    return add(path, NUCLEI, lambda to: write_nuclei(to, table), settings, mark(path), **facts)


def add_bag(path: Path, step: str = CELLS, n: int = 3, value: float = 1.0, **facts: Any):
    def write(to: Path) -> None:
        arrays.write_rows(to, schema.EMBEDDINGS, np.full((n, 2), value, np.float32))
        arrays.write(to, schema.kind_of(f"{step}/xy_px0"), np.zeros((n, 2), np.int32))

    at = mark(path, NUCLEI) if step == CELLS else mark(path)
    return add(path, step, write, {"encoder": "hand", "detector": None}, at, n=n, dim=2, **facts)


def add_attention(path: Path, n: int = 3):
    source = io.open_store(path).steps[CELLS]
    values = np.ones((n, 1), np.float32)
    return add(
        path, ATTENTION, lambda to: arrays.write(to, schema.ATTENTION, values), {"run": "r"},
        source.mark, n=n, columns=["attention"],
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with every kind of step, all made from one another."""
    path = make_tiles(tmp_path)
    add_nuclei(path)
    add_bag(path, TILES, n=4)
    add_bag(path)
    add_attention(path)
    return path


def as_earlier(path: Path) -> None:
    """Turn a store into one of earlier versions: no ids, nothing of what was made from what."""
    for file in path.rglob("zarr.json"):
        node = json.loads(file.read_text())
        content = node.get("attributes", {}).get("cytofm", {})
        for record in (content, *content.get("steps", {}).values()):
            record.pop("id", None)
            record.pop("made_from", None)
        put_node(file, node)


def edit(path: Path, step: str, **changes: Any) -> None:
    """Change a step's record by hand, in its group and in the root."""
    for file in (path / step / "zarr.json", path / "zarr.json"):
        node = json.loads(file.read_text())
        content = node["attributes"]["cytofm"]
        (content["steps"][step] if "steps" in content else content).update(changes)
        put_node(file, node)


def stale(path: Path) -> set[str]:
    store = io.open_store(path)
    why = {step: store.why_stale(step) for step in store.steps}
    assert store.all_stale() == {step: told for step, told in why.items() if told is not None}
    return set(store.all_stale())


def test_look__opens_each_node_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = os.open

    def watched(name: Any, *flags: Any) -> int:
        opened.append(str(name))
        return really(name, *flags)

    monkeypatch.setattr(os, "open", watched)
    assert io.open_store(path).all_stale() == {}
    main = ("tiles/xy_px0", f"{NUCLEI}/xy_px0", *(f"{bag}/values" for bag in BAGS))
    nodes = (".", NUCLEI, *BAGS, *main)
    assert sorted(opened) == sorted(os.path.normpath(path / node / "zarr.json") for node in nodes)


def test_records__say_what_each_step_was_made_from(path: Path) -> None:
    steps = io.open_store(path).steps
    ids = {step: record.id for step, record in steps.items()}
    assert len(set(ids.values())) == 5
    assert all(len(one) == 16 for one in ids.values())
    assert steps["tile"].made_from is None
    assert {step: steps[step].made_from for step in (NUCLEI, TILES, CELLS, ATTENTION)} == {
        NUCLEI: {"tile": ids["tile"]},
        TILES: {"tile": ids["tile"]},
        CELLS: {"tile": ids["tile"], NUCLEI: ids[NUCLEI]},
        ATTENTION: {CELLS: ids[CELLS]},
    }
    assert stale(path) == set()
    assert lineage.descendants(steps, NUCLEI) == [ATTENTION, CELLS]
    below = lineage.descendants(steps, "tile")
    assert sorted(below) == sorted(ALL - {"tile"})
    assert below.index(ATTENTION) < below.index(CELLS) < below.index(NUCLEI)


def test_content_id__follows_values_settings_and_names_and_nothing_else(tmp_path: Path) -> None:
    record = NucleiRecord(**provenance.stamp({"a": 1}, input_fingerprint="x"), classes=("n",), n=2)
    values = np.array([[1.0, 2.0]], np.float32)

    def id_with(values: np.ndarray, record: NucleiRecord, *, compress: bool = True) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_array(folder / "values", values, axes=("n", "d"), compress=compress)
        return lineage.content_id(folder, record)

    same = id_with(values, record)
    assert id_with(values, replace(record, time_utc="later", tool="cytofm 9")) == same
    assert id_with(values, record, compress=False) == same
    for other in (
        id_with(values + 1, record),
        id_with(values.T, record),
        id_with(values.view(np.int32), record),
        id_with(values, replace(record, config_hash="other")),
        id_with(values, replace(record, classes=("m",))),
    ):
        assert other != same


def test_other_nuclei__drop_what_was_made_from_them_and_nothing_else(path: Path) -> None:
    assert add_nuclei(path, n=2, seed=1) == (ATTENTION, CELLS)
    assert set(io.open_store(path).steps) == {"tile", NUCLEI, TILES}
    assert not (path / CELLS).exists()
    root = json.loads((path / "zarr.json").read_text())["attributes"]["cytofm"]
    assert set(root["steps"]) == {"tile", NUCLEI, TILES}
    with pytest.raises(StoreError, match="no embeddings for unit cell"):
        io.open_store(path).embeddings(unit="cell")
    assert io.open_store(path).embeddings().values.shape == (4, 2)
    assert not [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


def test_other_settings_with_the_same_nuclei__drop_too(path: Path) -> None:
    assert add_nuclei(path, min_um2=9) == (ATTENTION, CELLS)


def test_other_embeddings__drop_their_attention(path: Path) -> None:
    assert add_bag(path, value=2.0) == (ATTENTION,)
    assert set(io.open_store(path).steps) == ALL - {ATTENTION}


@pytest.mark.parametrize("earlier", [False, True])
def test_the_same_again__keeps_everything(path: Path, *, earlier: bool) -> None:
    if earlier:
        as_earlier(path)
    assert add_nuclei(path) == ()
    assert add_bag(path) == ()
    assert set(io.open_store(path).steps) == ALL
    assert stale(path) == set()


def test_other_nuclei_in_an_earlier_store__drop_too(path: Path) -> None:
    as_earlier(path)
    assert stale(path) == set()
    assert add_nuclei(path, n=2, seed=1) == (ATTENTION, CELLS)


def test_stale_steps__are_refused_with_the_command_that_makes_them_again(path: Path) -> None:
    edit(path, NUCLEI, id="0123456789abcdef")
    assert stale(path) == {CELLS, ATTENTION}
    with pytest.raises(
        StoreError, match=rf"{CELLS} is out of date: it was made from other {NUCLEI}"
    ):
        io.open_store(path).embeddings("hand", "cell")
    with pytest.raises(StoreError) as caught:
        io.open_store(path).require_fresh(CELLS)
    assert caught.value.exit_code == 3
    assert caught.value.hint == (
        f"make it again: cytofm embed {path} --encoder hand --unit cell --overwrite"
    )
    with pytest.raises(ConfigMismatchError, match="the input itself has changed"):
        record = io.open_store(path).steps[CELLS]
        commit.is_finished(
            path, CELLS, config=record.config, input_fingerprint=record.input_fingerprint
        )


def test_nuclei_of_other_tiles__are_refused(path: Path) -> None:
    edit(path, NUCLEI, made_from={"tile": "0123456789abcdef"})
    with pytest.raises(StoreError, match=f"{NUCLEI} is out of date: it was made from other tile"):
        io.open_store(path).nuclei()
    assert stale(path) == {NUCLEI, CELLS, ATTENTION}


@pytest.mark.parametrize("earlier", [False, True])
def test_removed_nuclei__leave_their_embeddings_usable(path: Path, *, earlier: bool) -> None:
    if earlier:
        as_earlier(path)
    for file in sorted((path / NUCLEI).rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (path / NUCLEI).rmdir()
    assert io.open_store(path).embeddings(unit="cell").values.shape == (3, 2)


def test_earlier_store__other_settings_of_the_nuclei_or_other_counts_are_refused(
    path: Path,
) -> None:
    as_earlier(path)
    edit(path, NUCLEI, config_hash="other")
    assert stale(path) == {CELLS, ATTENTION}
    edit(path, NUCLEI, config_hash=provenance.digest({"detector": "classical"}))
    assert stale(path) == set()
    # The same settings found another number of nuclei: 3 embeddings beside 2 nuclei.
    write_nuclei(path / NUCLEI, make_table(np.ones((2, 2)), np.ones(2)))
    with pytest.raises(StoreError, match=rf"it has 3 rows and {NUCLEI}, .*, has 2"):
        io.open_store(path).embeddings(unit="cell")


def test_nuclei_replaced_while_cells_are_embedded__the_late_bag_is_not_written(path: Path) -> None:
    steps = io.open_store(path).steps
    seen = lineage.made_from(steps, "tile", NUCLEI)
    add_nuclei(path, n=3, seed=1)
    with pytest.raises(TryAgainError, match=f"{NUCLEI} was replaced while {CELLS}") as caught:
        add_bag(path, made_from=seen)
    assert caught.value.exit_code == 75
    assert set(io.open_store(path).steps) == {"tile", NUCLEI, TILES}
    assert not [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


def test_tiles_replaced_while_they_are_embedded__the_bag_of_the_old_grid_is_not_written(
    path: Path,
) -> None:
    seen = lineage.made_from(io.open_store(path).steps, "tile")
    make_tiles(path.parent, n=3)
    with pytest.raises(TryAgainError, match=f"tile was replaced while {TILES}"):
        add_bag(path, TILES, made_from=seen)
    assert set(io.open_store(path).steps) == {"tile"}


def killed_at(change: int, do: Any) -> bool:
    """Run something in a process that dies at its n-th rename; tell whether it got there."""
    child = os.fork()
    if child == 0:
        left = [change]
        for name in ("rename", "replace"):
            real = getattr(Path, name)

            def dying(self: Path, to: Any, real: Any = real) -> Any:
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return real(self, to)

            setattr(Path, name, dying)
        try:
            do()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_kill_while_a_store_is_replaced__leaves_the_old_or_the_new(tmp_path: Path) -> None:
    n_kills = 0
    while True:
        folder = tmp_path / str(n_kills)
        path = make_tiles(folder)
        add_nuclei(path)
        if not killed_at(n_kills, lambda: make_tiles(folder, n=5)):  # noqa: B023
            break
        with io.claim_step(folder, "a", "tile"):  # as the next command does first
            pass
        store = io.open_store(path)
        n = len(store.read(schema.TILE_XY.path))
        assert (n, set(store.steps)) in ((4, {"tile", NUCLEI}), (5, {"tile"}))
        assert not [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]
        n_kills += 1
    assert n_kills >= 4


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("c.*")
        if file.is_file()
    }


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.slow
def test_kill_at_any_rename__leaves_the_old_or_the_new_or_nothing(
    tmp_path: Path, *, earlier: bool
) -> None:
    n_kills = 0
    while True:
        folder = tmp_path / str(n_kills)
        path = make_tiles(folder)
        add_nuclei(path)
        add_bag(path)
        add_attention(path)
        if earlier:
            as_earlier(path)
        if not killed_at(n_kills, lambda: add_nuclei(path, n=2, seed=1)):  # noqa: B023
            break
        store = io.open_store(path)
        assert stale(path) == set()
        n = len(store.nuclei()) if NUCLEI in store.steps else None
        assert n in (None, 2, 3)
        if n != 3:
            assert set(store.steps) <= {"tile", NUCLEI}
        else:
            # A child may have gone already, and never one that something is made from first.
            assert CELLS in store.steps or ATTENTION not in store.steps
        add_nuclei(path, n=2, seed=1)
        add_bag(path, n=2)
        assert set(io.open_store(path).steps) == {"tile", NUCLEI, CELLS}
        assert not [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]
        fresh = make_tiles(tmp_path / f"fresh-{n_kills}")
        add_nuclei(fresh, n=2, seed=1)
        add_bag(fresh, n=2)
        assert contents(path) == contents(fresh)
        n_kills += 1
    # The staged group, the root that forgets, three groups, the new one, the root again.
    assert n_kills >= 7
