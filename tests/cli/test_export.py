"""`cytofm export` says what it wrote and what was there, and refuses what it would not look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cytofm_cli.store.io import claim_step


def test_export__goes_on_where_it_stopped(here, stores: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in stores.glob("*.zarr"))
    done = here("export", stores, "-o", tmp_path, "--to", "pt", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(record["file"]).name for record in records] == [f"{n}.pt" for n in names]
    assert {record["status"] for record in records} == {"written"}
    assert f"export: {len(names)} file(s) written" in done.stderr
    (tmp_path / f"{names[0]}.pt").unlink()
    done = here("export", stores, "-o", tmp_path, "--to", "pt")
    assert done.stdout.split() == [str(tmp_path / f"{name}.pt") for name in names]
    assert f"export: 1 file(s) written, {len(names) - 1} file(s) up to date" in done.stderr
    quiet = here("export", stores, "-o", tmp_path, "--to", "pt", "-q")
    assert quiet.stdout == done.stdout and quiet.stderr == ""
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "pt,xyz"), "--to xyz: choose csv, geojson, h5, h5ad, pt, spatialdata"),
        (("--to", "pt", "--detector", "classical"), "--detector is for nuclei"),
        (("--to", "pt", "--run", "RUN"), "--run is for nuclei"),
        (("--to", "csv", "--encoder", "handcrafted"), "--encoder is for bags"),
        (("--to", "csv", "--unit", "tile"), "--unit tile is for bags"),
        (("--to", "pt", "--no-measure"), "--no-measure is for nuclei"),
        (("--to", "pt", "--layout", "clam"), "--layout is for --to h5"),
        (("--to", "csv", "--origin", "slide"), "--origin is for --to geojson"),
        (("--set", "a=b"), "--set: 0 of --to h5 have settings of their own"),
        (("--unit", "nucleus"), "--unit nucleus: choose tile, cell"),
        (("--to", "geojson", "--origin", "corner"), "--origin corner: choose bounds, slide"),
    ],
)
def test_export__what_is_not_looked_at_is_refused(
    here, stores: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = here("export", stores, "-o", tmp_path / "out", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_export__settings_may_stand_in_a_file_and_nothing_is_written_in_a_rehearsal(
    here, stores: Path, tmp_path: Path
) -> None:
    names = sorted(path.stem for path in stores.glob("*.zarr"))
    (tmp_path / "all.toml").write_text('[export]\nto = ["pt", "h5"]\nlayout = "clam"\n')
    out = tmp_path / "out"
    words = ("export", stores, "-o", out, "--config", tmp_path / "all.toml")
    shown = here(*words, "--to", "pt,h5", "--unit", "tile", "--print-config")
    assert shown.stdout.startswith('[export]\nto = ["pt", "h5"]\nlayout = "clam"\n')
    assert 'unit = "tile"' in shown.stdout.splitlines()
    tried = here(*words, "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert f"export: {4 * len(names)} file(s) would be written" in tried.stderr
    assert not out.exists()
    assert here(*words, "-v").stdout == tried.stdout
    again = here(*words, "--dry-run", "--json")
    assert {json.loads(line)["status"] for line in again.stdout.splitlines()} == {"skipped"}


def test_export__parts_of_a_job_array_make_every_file_once(
    here, stores: Path, tmp_path: Path
) -> None:
    whole = here("export", stores, "-o", tmp_path / "out", "--dry-run").stdout.split()
    parts = [
        here("export", stores, "-o", tmp_path / "out", "--dry-run", "--shard", f"{i}/3")
        for i in range(3)
    ]
    assert sorted(word for part in parts for word in part.stdout.split()) == sorted(whole)
    for part in parts:
        assert part.stdout or "export: no stores in this part" in part.stderr
    first = min(stores.glob("*.zarr"))
    alone = [
        here("export", first, "-o", tmp_path / "out", "--shard", part) for part in ("0/2", "1/2")
    ]
    assert [done.returncode for done in alone] == [0, 0]
    assert "export: no stores in this part" in "".join(done.stderr for done in alone)


def test_export__any_number_of_workers_writes_the_same_files(
    here, stores: Path, tmp_path: Path
) -> None:
    for n in (1, 3):
        done = here("export", stores, "-o", tmp_path / str(n), "--to", "pt,h5", "--workers", n)
        assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "1").rglob("*.pt"))
    assert len(files) == len(list(stores.glob("*.zarr")))
    for file in files:
        assert file.read_bytes() == (tmp_path / "3" / file.name).read_bytes()


def test_export__one_store_that_fails_does_not_stop_the_others(
    here, stores: Path, tmp_path: Path
) -> None:
    for store in sorted(stores.glob("*.zarr"))[:2]:
        shutil.copytree(store, tmp_path / "stores" / store.name)
    broken = min((tmp_path / "stores").glob("*.zarr"))
    shutil.rmtree(broken / "embeddings")
    out = tmp_path / "out"
    words = ("export", tmp_path / "stores", "-o", out, "--to", "pt")
    done = here(*words)
    assert done.returncode == 4
    assert "export: 1 file(s) written, 1 store(s) failed" in done.stderr
    (failure,) = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert (failure["command"], failure["slide_id"]) == ("export", broken.stem)
    assert "holds no embeddings for unit tile" in failure["error"]
    shutil.rmtree(broken)
    shutil.copytree(stores / broken.name, broken)
    assert "1 file(s) written, 1 file(s) up to date" in here(*words).stderr
    assert not (out / "failures.jsonl").exists()


def test_export__a_file_of_another_program_is_kept(here, stores: Path, tmp_path: Path) -> None:
    store = min(stores.glob("*.zarr"))
    mine = tmp_path / f"{store.stem}.pt"
    mine.write_text("mine")
    words = ("export", store, "-o", tmp_path, "--to", "pt")
    done = here(*words)
    assert done.returncode == 2
    assert f"{mine}: is there, and no export of cytofm has written it" in done.stderr
    assert mine.read_text() == "mine"
    assert here(*words, "--overwrite").returncode == 0
    assert mine.read_bytes()[:2] == b"PK"
    assert here(*words).returncode == 0


def test_export__stores_of_one_name_are_refused(here, stores: Path, tmp_path: Path) -> None:
    store = min(stores.glob("*.zarr"))
    shutil.copytree(store, tmp_path / store.name)
    done = here("export", store, tmp_path / store.name, "-o", tmp_path / "out", "--to", "pt")
    assert done.returncode == 2
    assert "have the same name, and so have their files" in done.stderr


@pytest.mark.slow
def test_export__what_another_process_writes_is_left_to_it(
    here, stores: Path, tmp_path: Path
) -> None:
    store = min(stores.glob("*.zarr"))
    with claim_step(tmp_path, store.stem, "export.pt"):
        done = here("export", store, "-o", tmp_path, "--to", "pt")
    assert done.returncode == 75
    assert "export: 1 store(s) held by other processes" in done.stderr
    assert not list(tmp_path.glob("*.pt"))


def test_export__help_lists_the_exporters(cytofm) -> None:
    # In a process of its own: this one may have learnt of the toys of other tests.
    said = " ".join(cytofm("export", "--help").stdout.split())
    assert (
        "Kinds of files, with commas or repeated: csv, geojson, h5, h5ad, pt, spatialdata." in said
    )


def test_export__cells_that_are_not_there_are_named(here, stores: Path, tmp_path: Path) -> None:
    store = next(stores.glob("*.zarr"))
    done = here("export", store, "-o", tmp_path, "--unit", "cell")
    assert done.returncode == 3
    assert "no embeddings for unit cell" in done.stderr


def test_export__pool_writes_one_row_a_slide(here, stores: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.h5ad"
    done = here("export", stores, "-o", table, "--pool", "mean", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(table), "slides": 4, "values": 263}
    again = here("export", stores, "-o", table, "--pool", "mean")
    assert again.returncode != 0
    assert "exists" in again.stderr
    for words, said in (
        (("--shard", "0/2"), "neither --set nor --shard"),
        (("--layout", "clam"), "has no effect with --pool"),
    ):
        refused = here("export", stores, "-o", tmp_path / "x.h5ad", "--pool", "max", *words)
        assert refused.returncode == 2
        assert said in refused.stderr
