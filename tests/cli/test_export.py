"""`cytofm export` says what it wrote and what was there, and refuses what it would not look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


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
        (("--to", "pt,xyz"), "--to xyz: choose csv, geojson, h5, pt"),
        (("--to", "pt", "--detector", "classical"), "--detector is for nuclei"),
        (("--to", "pt", "--run", "RUN"), "--run is for nuclei"),
        (("--to", "csv", "--encoder", "handcrafted"), "--encoder is for bags"),
        (("--to", "csv", "--unit", "cell"), "--unit is for bags"),
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


def test_export__help_lists_the_exporters(cytofm) -> None:
    # In a process of its own: this one may have learnt of the toys of other tests.
    said = " ".join(cytofm("export", "--help").stdout.split())
    assert "Kinds of files, with commas or repeated: csv, geojson, h5, pt." in said


def test_export__cells_that_are_not_there_are_named(here, stores: Path, tmp_path: Path) -> None:
    store = next(stores.glob("*.zarr"))
    done = here("export", store, "-o", tmp_path, "--unit", "cell")
    assert done.returncode == 3
    assert "no embeddings for unit cell" in done.stderr
