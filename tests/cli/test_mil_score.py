"""`cytofm mil score` on bags whose answer is known."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from cytofm_cli.store.io import open_store

from .mil_runs import copies, plain, rows_of, train, write_bag


def test_mil_score__bad_slide_does_not_stop_the_others(here, bags: Path) -> None:
    assert train(here, bags).returncode == 0
    run, table = bags.parent / "run", bags.parent / "scores.csv"
    (bags / "s00.pt").write_bytes(b"junk")
    some = here("mil", "score", run, bags, "-o", table)
    assert some.returncode == 4, some.stderr
    assert "s00.pt" in some.stderr
    assert [row["slide_id"] for row in rows_of(table)] == [f"s{n:02}" for n in range(1, 12)]
    alone = here("mil", "score", run, bags / "s00.pt", "-o", bags.parent / "none.csv")
    assert alone.returncode == 3, alone.stderr
    assert alone.stderr.count("s00.pt") == 1
    assert not (bags.parent / "none.csv").exists()


def test_mil_score__attention_of_another_run_of_that_name_is_kept(
    here, stores: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stores"
    for copy in "123":
        for path in stores.glob("*.zarr"):
            shutil.copytree(path, folder / f"{path.stem}-{copy}.zarr")
    ids = sorted(path.stem for path in folder.glob("*.zarr"))
    rows = [f"{slide},{'ab'[n % 2]},g{n}" for n, slide in enumerate(ids)]
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    few = ("--labels", labels, "--folds", 2, "--seeds", 1, "--epochs", 1, "--inner-folds", 2)

    def make(parent: str, *more: object) -> Path:
        run = tmp_path / parent / "run"
        done = here("mil", "train", "--bags", folder, "-o", run, *few, *more)
        assert done.returncode == 0, done.stderr
        return run

    def attention() -> dict[Path, tuple[int, bytes]]:
        files = sorted(folder.glob("*.zarr/attention/run/tile/**/*"))
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files if p.is_file()}

    first, other = make("first"), make("other", "--seed", 1)
    # Naming the only encoder is the same run.
    assert make("first", "--encoder", "handcrafted") == first
    scored = here("mil", "score", first, folder, "-o", tmp_path / "a.csv")
    assert scored.returncode == 0, scored.stderr
    written = attention()
    assert len(written) >= 2 * len(ids)
    same = here("mil", "score", first, folder, "-o", tmp_path / "b.csv")
    assert same.returncode == 0, same.stderr
    assert "warning" not in same.stderr
    second = here("mil", "score", other, folder, "-o", tmp_path / "c.csv")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("another RUN named run") == len(ids)
    assert "--no-attention" in second.stderr
    assert attention() == written
    assert len(rows_of(tmp_path / "c.csv")) == len(ids)


def stop_when(folder: Path, count: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Send SIGTERM when that many maps are there."""
    command = [sys.executable, "-m", "cytofm_cli", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        while len(list(folder.glob("*.geojson"))) < count and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGTERM)
        said = child.communicate()[1]
    return subprocess.CompletedProcess(command, child.returncode, "", said)


@pytest.mark.slow
def test_mil_score__maps_parts_and_stop_by_signal(here, bags: Path) -> None:
    assert train(here, bags).returncode == 0
    run, table, maps = bags.parent / "run", bags.parent / "scores.csv", bags.parent / "maps"
    rng = np.random.default_rng(1)
    h5 = bags.parent / "h5"
    h5.mkdir()
    for number in range(60):
        with h5py.File(h5 / f"n{number:02}.h5", "w") as file:
            file["features"] = rng.normal(size=(4, 8)).astype(np.float16)
            file["coords"] = np.arange(8).reshape(4, 2)
    stopped = stop_when(maps, 2, "mil", "score", run, h5, "-o", table, "--geojson", maps)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.count("\n") == 1
    done = [row["slide_id"] for row in rows_of(table)]
    assert done == sorted(path.stem for path in maps.glob("*.geojson"))
    assert 2 <= len(done) < 60
    assert f"after {len(done)} of 60 slides" in stopped.stderr
    halves = []
    for part in ("0/2", "1/2"):
        scored = here("mil", "score", run, h5, "-o", table, "--shard", part)
        assert scored.returncode == 0, scored.stderr
        assert scored.stdout.strip() == str(table.with_stem(f"scores.{part[0]}-of-2"))
        halves.append({row["slide_id"] for row in rows_of(Path(scored.stdout.strip()))})
    assert not halves[0] & halves[1]
    assert len(halves[0] | halves[1]) == 60
    without = here("mil", "score", run, bags / "s00.pt", "-o", table, "--geojson", maps)
    assert without.returncode == 0, without.stderr
    assert "s00: its file holds no coordinates" in without.stderr
    assert not list(bags.parent.glob(".*"))


def test_mil_score__map_of_a_store_has_squares_of_its_tiles(
    here, stores: Path, tmp_path: Path
) -> None:
    folder = copies(stores, tmp_path, "12")
    ids = sorted(path.stem for path in folder.glob("*.zarr"))
    few = ("--folds", 2, "--seeds", 1, "--epochs", 1, "--inner-folds", 2, "--method", "clam_mb")
    words = ("--bags", folder, "--labels", tmp_path / "labels.csv", "-o", tmp_path / "run")
    trained = here("mil", "train", *words, *few)
    assert trained.returncode == 0, trained.stderr
    slide = folder / f"{ids[0]}.zarr"
    words = ("-o", tmp_path / "s.csv", "--geojson", tmp_path / "maps", "--no-attention")
    scored = here("mil", "score", tmp_path / "run", slide, *words)
    assert scored.returncode == 0, scored.stderr
    found = json.loads((tmp_path / "maps" / f"{ids[0]}.geojson").read_text())
    tile = json.loads((slide / "zarr.json").read_text())["attributes"]["cytofm"]["steps"]["tile"]
    (x, _), (right, _), *_ = found["features"][0]["geometry"]["coordinates"][0]
    assert right - x == pytest.approx(tile["tile_px0"], abs=0.01)
    assert {"attention for a", "attention for b", "score for a"} <= set(
        found["features"][0]["properties"]["measurements"]
    )


@pytest.mark.slow
def test_mil_score__slide_that_does_not_fit_and_model_of_another_head(here, bags: Path) -> None:
    assert train(here, bags).returncode == 0
    run, table = bags.parent / "run", bags.parent / "s.csv"
    for values, said in (
        (plain(0), "s00: empty bag"),
        (plain() * np.nan, "NaN or infinite features"),
        (plain(width=5), "s00: features are 5 wide, the models read 8"),
    ):
        write_bag(bags / "s00.pt", values)
        done = here("mil", "score", run, bags / "s00.pt", "-o", table)
        assert done.returncode == 3, done.stderr
        assert "s00" in done.stderr
        assert said.removeprefix("s00: ") in done.stderr
        assert done.stderr.count("\n") == 1
        assert not table.exists()
    write_bag(bags / "s00.pt", plain())
    other = bags.parent / "other"
    words = ("--bags", bags, "--labels", bags.parent / "labels.csv", "-o", other)
    few = ("--folds", 3, "--seeds", 1, "--epochs", 1, "--method", "mean")
    assert here("mil", "train", *words, *few).returncode == 0
    name = "fold0_seed0.safetensors"
    shutil.copy(other / "models" / name, run / "models" / name)
    done = here("mil", "score", run, bags, "-o", table)
    assert done.returncode == 3, done.stderr
    assert "is of head 'abmil'" in done.stderr
    assert "the RUN is of 'mean'" in done.stderr


def test_mil_score__patients_of_new_slides_are_asked_for_and_used(here, bags: Path) -> None:
    assert train(here, bags, "--epochs", 1).returncode == 0
    run, table = bags.parent / "run", bags.parent / "scores.csv"
    shutil.copy(bags / "s02.pt", bags / "again.pt")
    blind = here("mil", "score", run, bags / "again.pt", "-o", table)
    assert blind.returncode == 0, blind.stderr
    assert "patients of 1 slide(s) are not known (again)" in blind.stderr
    assert [(row["basis"], row["models"]) for row in rows_of(table)] == [("new", "3")]
    groups = bags.parent / "groups.csv"
    groups.write_text("slide_id;patient\nagain;g1\n")
    told = here("mil", "score", run, bags / "again.pt", "-o", table, "--groups", groups)
    assert told.returncode == 0, told.stderr
    assert "patients of" not in told.stderr
    (again,) = rows_of(table)
    assert (again["basis"], again["models"]) == ("out-of-fold (patient)", "1")
    here("mil", "score", run, bags / "s02.pt", "-o", table)
    (own,) = rows_of(table)
    assert own["prob_pos"] == again["prob_pos"]


def test_mil_score__attention_of_files_is_refused_not_ignored(here, bags: Path) -> None:
    assert train(here, bags, "--epochs", 1).returncode == 0
    done = here("mil", "score", bags.parent / "run", bags, "--attention", "-o", bags.parent / "s")
    assert done.returncode == 2, done.stderr
    assert "--attention: is written into stores, which s00.pt is not." in done.stderr


def test_mil_score__slide_that_comes_twice_is_refused(here, bags: Path) -> None:
    assert train(here, bags, "--epochs", 1).returncode == 0
    other = bags.parent / "other"
    other.mkdir()
    shutil.copy(bags / "s05.pt", other)
    done = here("mil", "score", bags.parent / "run", bags, other, "-o", bags.parent / "s.csv")
    assert done.returncode == 2, done.stderr
    assert f"slide s05 comes twice: {bags / 's05.pt'} and {other / 's05.pt'}." in done.stderr


def test_mil_score__attention_follows_the_models_that_may_be_asked(
    here, stores: Path, tmp_path: Path
) -> None:
    folder = copies(stores, tmp_path, "123")
    ids = sorted(path.stem for path in folder.glob("*.zarr"))
    few = ("--folds", 2, "--seeds", 1, "--epochs", 3, "--inner-folds", 2, "--lr", 0.01)
    words = ("--bags", folder, "--labels", tmp_path / "labels.csv", "-o", tmp_path / "run", *few)
    trained = here("mil", "train", *words)
    assert trained.returncode == 0, trained.stderr
    new = tmp_path / "again.zarr"
    shutil.copytree(folder / f"{ids[0]}.zarr", new)
    groups = tmp_path / "groups.csv"
    groups.write_text("slide_id,group\nagain,g0\n")

    def attention(*more: object) -> tuple[str, bytes]:
        scored = here("mil", "score", tmp_path / "run", new, "-o", tmp_path / "s.csv", *more)
        assert scored.returncode == 0, scored.stderr
        assert "warning" not in scored.stderr
        store = open_store(new)
        values = store.read("attention/run/tile/values")
        return store.attention_record("run", "tile").basis, values.tobytes()

    blind, told, again = attention(), attention("--groups", groups), attention()
    assert (blind[0], told[0], again[0]) == ("new", "out-of-fold (patient)", "new")
    assert blind[1]
    assert blind[1] != told[1]
    assert again[1] == blind[1]
