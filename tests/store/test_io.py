"""Commits are atomic: at every instant a store is either as before or complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from cytofm_cli.errors import (
    ConfigMismatchError,
    StoreError,
)
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema, staging
from cytofm_cli.store.records import EmbeddingRecord, LevelRecord, SlideRecord, TileRecord
from cytofm_cli.work.claim import ClaimHeldError

from ..nodes import put_node  # noqa: TID252 - of all tests

CONFIG = {"tile_px": 8}
SLIDE = SlideRecord(
    slide_id="a",
    path="a.svs",
    size_px0=(64, 64),
    levels=(LevelRecord(size_px=(64, 64), downsample=1.0),),
    mpp=0.5,
)
STEP = "embeddings/handcrafted/tile"


def make_store(stores: Path, slide_id: str = "a", n: int = 3) -> Path:
    path = io.store_path(stores, slide_id)
    with (
        io.claim_step(stores, slide_id, schema.TILE_STEP),
        io.staging(stores, slide_id, schema.TILE_STEP) as staged,
    ):
        xy = np.arange(2 * n, dtype=np.int32).reshape(n, 2)
        arrays.write(staged, schema.TILE_XY, xy)
        record = TileRecord(
            **provenance.stamp(CONFIG, input_fingerprint="mark"),
            n_tiles=n, tile_px=8, tile_px0=8.0, mpp=0.5, level=0,
        )  # fmt: skip
        commit.commit_store(staged, path, slide=replace(SLIDE, slide_id=slide_id), record=record)
    return path


def add_embeddings(path: Path, value: float, config: dict[str, object] | None = None) -> None:
    slide_id = path.name.removesuffix(".zarr")
    with (
        io.claim_step(path.parent, slide_id, STEP),
        io.staging(path.parent, slide_id, STEP) as staged,
    ):
        values = np.full((3, 2), value, dtype=np.float32)
        arrays.write_rows(staged, schema.EMBEDDINGS, values)
        arrays.write(staged, schema.EMBEDDINGS_XY, np.zeros((3, 2), np.int32))
        told = provenance.stamp(config or {"encoder": "handcrafted"}, input_fingerprint="mark")
        commit.commit_group(staged, path, STEP, EmbeddingRecord(**told, n=3, dim=2))


def test_commit_store__plain_zarr_opens_it_and_nothing_hidden_is_left(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["tiles/xy_px0"][:], [[0, 1], [2, 3], [4, 5]])
    assert group.attrs["cytofm"]["schema"] == schema.SCHEMA_VERSION
    assert list(group.attrs["cytofm"]["steps"]) == ["tile"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


def test_commit_group__is_listed_in_the_root_and_readable(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    add_embeddings(path, 1.5)
    bag = io.open_store(path).embeddings()
    assert bag.encoder == "handcrafted"
    np.testing.assert_array_equal(bag.values, np.full((3, 2), 1.5, np.float32))
    root = json.loads((path / "zarr.json").read_text())["attributes"]["cytofm"]
    assert set(root["steps"]) == {"tile", STEP}
    assert zarr.open_group(path, mode="r")[f"{STEP}/values"].shape == (3, 2)
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_commit_group__killed_before_the_root_is_written_still_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path)

    def killed(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit, "_update_root", killed)
        with pytest.raises(KeyboardInterrupt):
            add_embeddings(path, 2.0)
    root = json.loads((path / "zarr.json").read_text())["attributes"]["cytofm"]
    assert set(root["steps"]) == {"tile"}
    assert STEP in io.open_store(path).steps
    assert commit.is_finished(
        path, STEP, config={"encoder": "handcrafted"}, input_fingerprint="mark"
    )


def test_overwrite_group__replaces_values_and_record(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    add_embeddings(path, 1.0)
    add_embeddings(path, 2.0, {"encoder": "other settings"})
    assert io.open_store(path).embeddings().values[0, 0] == 2.0
    assert io.open_store(path).steps[STEP].config == {"encoder": "other settings"}


def test_overwrite_store__killed_between_the_renames_restores_the_old_one(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    path.rename(tmp_path / ".a.zarr.replaced")
    with io.claim_step(tmp_path, "a", "tile"):
        pass
    assert io.open_store(path).slide_id == "a"


def test_is_finished__other_settings_are_named(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    assert commit.is_finished(path, "tile", config=CONFIG, input_fingerprint="mark")
    assert not commit.is_finished(path, STEP, config=CONFIG, input_fingerprint="mark")
    with pytest.raises(ConfigMismatchError, match="tile_px: 8 → 16") as caught:
        commit.is_finished(path, "tile", config={"tile_px": 16}, input_fingerprint="mark")
    assert caught.value.exit_code == 2
    assert caught.value.hint == "--overwrite makes it anew, another -o keeps both."
    add_embeddings(path, 1.0)
    with pytest.raises(ConfigMismatchError, match="encoder: 'handcrafted' → 'uni'") as caught:
        commit.is_finished(path, STEP, config={"encoder": "uni"}, input_fingerprint="mark")
    assert caught.value.hint == "--overwrite makes it anew."  # it goes into the store it reads
    with pytest.raises(ConfigMismatchError, match="input itself has changed"):
        commit.is_finished(path, "tile", config=CONFIG, input_fingerprint="other")


def test_staging__an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), io.staging(tmp_path, "a", "tile") as staged:
        (staged / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_claim_step__sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / ".a.tile.otherhost-12.partial"
    left.mkdir()
    (left / "half").write_text("x")
    other = tmp_path / ".ab.tile.otherhost-12.partial"
    other.mkdir()
    with io.claim_step(tmp_path, "a", "tile"):
        assert not left.exists()
        assert other.exists()


def test_open_store__wrong_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        io.open_store(tmp_path / "none.zarr")
    (tmp_path / "plain.zarr").mkdir()
    with pytest.raises(StoreError, match="is no store of cytofm"):
        io.open_store(tmp_path / "plain.zarr")
    path = make_store(tmp_path)
    node = json.loads((path / "zarr.json").read_text())
    node["attributes"]["cytofm"]["schema"] = 99
    put_node(path / "zarr.json", node)
    with pytest.raises(StoreError, match="schema 99"):
        io.open_store(path)


def test_read__a_damaged_array_is_a_store_error(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    (path / "tiles" / "xy_px0" / "c.0.0").write_bytes(b"not zstd")
    with pytest.raises(StoreError, match="tiles/xy_px0"):
        io.open_store(path).read("tiles/xy_px0")


def test_embeddings__names_what_is_there(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    with pytest.raises(StoreError, match="no embeddings"):
        io.open_store(path).embeddings()
    add_embeddings(path, 1.0)
    with pytest.raises(StoreError, match="'uni'") as caught:
        io.open_store(path).embeddings("uni")
    assert "handcrafted" in str(caught.value.hint)


def test_which_detector__the_only_one_or_the_one_named(tmp_path: Path) -> None:
    step = EmbeddingRecord(**provenance.stamp({}, input_fingerprint="m"), n=1, dim=1, unit="cell")

    def store(*names: str) -> io.Store:
        return io.Store(tmp_path / "a.zarr", SLIDE, dict.fromkeys((*names, "tile", STEP), step))

    assert store("nuclei/classical").which_detector() == "classical"
    both = store("nuclei/classical", "nuclei/cellvit")
    assert both.which_detector("cellvit") == "cellvit"
    with pytest.raises(StoreError, match="holds nuclei of 2 detectors") as caught:
        both.which_detector()
    assert caught.value.hint == "--detector cellvit"
    with pytest.raises(StoreError, match=r"holds no nuclei of 'stardist'\.") as caught:
        both.which_detector("stardist")
    assert caught.value.hint == "--detector cellvit"
    with pytest.raises(StoreError, match=r"holds no nuclei\.") as caught:
        store().which_detector()
    assert "cytofm detect" in str(caught.value.hint)


def test_tidy__removes_the_claim_of_a_killed_process_and_keeps_that_of_a_living_one(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".a.tile.claim"
    left.write_text(json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1, "started": "1"}))
    io.tidy(tmp_path, "a", "tile")
    assert not left.exists()
    with io.claim_step(tmp_path, "a", "tile"):
        io.tidy(tmp_path, "a", "tile")
        assert left.exists()


def test_settle__the_commit_of_a_killed_process_is_finished(tmp_path: Path) -> None:
    """Killed between the renames: the group is there, the root does not list it yet."""
    path = make_store(tmp_path)
    before = (path / "zarr.json").read_bytes()
    add_embeddings(path, 1.0)
    whole = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(before)
    partials = [path / place / ".zarr.json.gone-1-0.partial" for place in ("", "embeddings")]
    for partial in partials:
        partial.write_text("half")
    commit.settle(path, STEP)  # a full disk has ended it, and nothing of a process is left
    assert (path / "zarr.json").read_bytes() == whole
    assert not any(partial.exists() for partial in partials)
    partials[0].write_text("half")
    commit.settle(path, STEP)  # all is well
    assert partials[0].exists()
    dead = json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1, "started": "1"})
    (tmp_path / ".a.zarr.commit.claim").write_text(dead)
    commit.settle(path, STEP)
    assert (path / "zarr.json").read_bytes() == whole
    assert not any(partial.exists() for partial in partials)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


def test_commit_group__what_was_left_half_written_in_its_groups_goes(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    left = path / "embeddings" / ".zarr.json.gone-1-0.partial"
    left.parent.mkdir()
    left.write_text("half")
    add_embeddings(path, 1.0)
    assert not left.exists()


def test_open_store__a_step_whose_arrays_were_removed_is_not_done(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    add_embeddings(path, 1.0)
    shutil.rmtree(path / "embeddings")
    assert set(io.open_store(path).steps) == {"tile"}
    assert not commit.is_finished(path, STEP, config={}, input_fingerprint="mark")


def other_disk(tmp_path: Path) -> Path:
    """Return a folder on another disk than `tmp_path`, where there is one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second disk here")
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.mark.parametrize("how", ["here", "on another disk"])
def test_a_store_that_is_a_link__is_written_where_it_lies_and_stays_a_link(
    tmp_path: Path, how: str
) -> None:
    real = other_disk(tmp_path) if how != "here" else tmp_path / "real"
    try:
        make_store(real)
        staged = tmp_path / "staged"
        staged.mkdir()
        link = staged / "a.zarr"
        link.symlink_to(real / "a.zarr")
        add_embeddings(link, 1.5)
        np.testing.assert_array_equal(io.open_store(real / "a.zarr").embeddings().values[0], 1.5)
        add_embeddings(link, 2.5)
        np.testing.assert_array_equal(io.open_store(link).embeddings().values[0], 2.5)
        make_store(staged, n=4)
        assert link.is_symlink()
        assert io.open_store(real / "a.zarr").tile.n_tiles == 4
        with (
            io.claim_step(staged, "a", STEP),
            pytest.raises(ClaimHeldError),
            io.claim_step(real, "a", STEP),  # one store, one claim
        ):
            raise AssertionError
        for folder in (real, staged):
            assert [path.name for path in folder.iterdir()] == ["a.zarr"]
    finally:
        shutil.rmtree(real)


@pytest.mark.parametrize("step", ["tile", STEP])
def test_commit__of_a_process_that_lost_its_claim_leaves_what_the_other_made(
    tmp_path: Path, step: str
) -> None:
    path = make_store(tmp_path)
    add_embeddings(path, 1.0)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with (
        pytest.raises(ClaimHeldError, match="another process took this claim"),
        io.claim_step(tmp_path, "a", step),
        io.staging(tmp_path, "a", step) as made,
    ):
        staging.step_claim(path, step).unlink()
        if step == "tile":
            arrays.write(made, schema.TILE_XY, np.zeros((1, 2), np.int32))
            told = provenance.stamp(CONFIG, input_fingerprint="mark")
            late = TileRecord(**told, n_tiles=1, tile_px=8, tile_px0=8.0, mpp=0.5, level=0)
            commit.commit_store(made, path, slide=SLIDE, record=late)
        else:
            arrays.write_rows(made, schema.EMBEDDINGS, np.zeros((3, 2), np.float32))
            told = provenance.stamp({}, input_fingerprint="mark")
            commit.commit_group(made, path, step, EmbeddingRecord(**told, n=3, dim=2))
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
