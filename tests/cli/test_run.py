"""`cytofm run`: one command for all steps, killed and started again, against the single ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cytofm_cli.store.io import open_store

from .test_kill import arrays, assert_all_valid, run_and_kill

TILES = ("--slide-mpp", 0.25, "--tile-px", 256)
STEPS = ["tile", "detect", "embed tile", "embed cell"]
PLACES = ["tiles", "nuclei/classical", "embeddings/handcrafted/tile"]  # of the first of them
HAND = ("--unit", "both", "--encoder", "handcrafted")


@pytest.fixture(scope="module")
def two(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two fields."""
    folder = tmp_path_factory.mktemp("two")
    for path in sorted(fields.iterdir())[:2]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def singly(cytofm, two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stores of the single commands, with bags of both units."""
    folder = tmp_path_factory.mktemp("singly")
    for words in (
        ("tile", two, "-o", folder, *TILES),
        ("detect", folder),
        ("embed", folder, "--encoder", "handcrafted"),
        ("embed", folder, "--encoder", "handcrafted", "--unit", "cell"),
    ):
        done = cytofm(*words)
        assert done.returncode == 0, done.stderr
    return folder


def records(stores: Path) -> dict[str, dict[str, object]]:
    """Return the records of all steps, without their times."""
    told = {}
    for path in sorted(stores.glob("*.zarr")):
        content = json.loads((path / "zarr.json").read_text())["attributes"]["cytofm"]
        for step, record in content["steps"].items():
            told[f"{path.name} {step}"] = {k: v for k, v in record.items() if k != "time_utc"}
    return told


def test_run__makes_what_the_single_commands_make(
    cytofm, two: Path, singly: Path, tmp_path: Path
) -> None:
    done = cytofm("run", two, "-o", tmp_path, *TILES, *HAND, "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(of["steps"]) for of in told] == [sorted(STEPS)] * 2
    assert {of["status"] for record in told for of in record["steps"].values()} == {"done"}
    assert arrays(tmp_path / "stores") == arrays(singly)
    assert records(tmp_path / "stores") == records(singly)
    assert len(records(singly)) == 8
    again = cytofm("run", two, "-o", tmp_path, *TILES, *HAND, "-v")
    assert again.returncode == 0, again.stderr
    assert "run: 2 skipped (done before)" in again.stderr
    assert sorted(again.stdout.split()) == [str(p) for p in sorted(tmp_path.glob("stores/*.zarr"))]


def test_settings__of_all_steps_stand_in_one_file(here, two: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.toml").write_text(
        "[tile]\ntile_px = 128\nslide_mpp = 0.25\nselect = 'densest'\nmax_tiles = 3\n"
        "[embed]\nunit = 'cell'\nencoder = 'handcrafted'\ncell_um = 20.0\n"
        "[export]\nto = ['csv']\n[mil]\nepochs = 3\n"
    )
    (field, _) = sorted(two.iterdir())
    words = ("run", field, "-o", tmp_path, "--config", tmp_path / "steps.toml")
    done = here(*words, "--tile-px", 192)
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / "stores" / f"{field.stem}.zarr")
    assert (store.tile.tile_px, store.tile.n_tiles) == (192, 3)
    (record,) = store.embedding_records("cell").values()
    assert (record.encoder, record.cell_um) == ("handcrafted", 20.0)
    assert (tmp_path / "export" / f"{field.stem}.csv").is_file()
    assert "tile done, detect done, embed cell done, export done: 3 tiles" not in done.stderr
    assert "run: 1 done: 3 tiles" in done.stderr


def test_bad_slide__costs_only_itself(here, two: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    done = here("run", two, tmp_path / "bad.jpg", "-o", out, *TILES, "--encoder", "handcrafted")
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("error: ") == 2  # of the slide, and how many in all
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["command"], record["slide_id"], record["step"]) == ("run", "bad", "tile")
    assert sorted(path.name for path in out.iterdir()) == ["failures.jsonl", "stores"]
    assert len(list(out.glob("stores/*.zarr"))) == 2
    assert [len(open_store(path).steps) for path in out.glob("stores/*.zarr")] == [3, 3]


def test_dry_run__writes_nothing(here, two: Path, tmp_path: Path) -> None:
    words = ("run", two, "-o", tmp_path / "out", *TILES, "--to", "geojson", "--dry-run", "--json")
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"planned"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 and no more", "net.pth: damaged weight file: it is cut or damaged."),
        (b"no weights at all", "net.pth: not a readable file of tensors: not written by"),
    ],
)
def test_weights_of_a_detector__are_read_before_any_slide_is_tiled(
    here, two: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    words = ("--detector", "cellvit", "--set", f"weights={tmp_path / 'net.pth'}", "--no-progress")
    done = here("run", two, "-o", tmp_path / "out", *TILES, *words)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line
    assert not list(tmp_path.glob("out/stores/*.zarr"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--unit", "tiles"), 2, "choose tile, cell, both. Hint: did you mean tile?"),
        (("--encoder", "uni"), 3, "encoder 'uni' needs weights."),
        (("--detector", "cellvit"), 3, "detector 'cellvit' needs a weight file: a CellViT"),
        (("--detector", "instanseg", "--set", "weights=none.pt"), 3, "none.pt: no such file"),
        (("--detector", "import", "--encoder", "nobody"), 2, "import"),
        (("--encoder", "nobody"), 2, "nobody"),
        (("--set", "min_probability=2"), 2, "--set min_probability=2 must be at most 1"),
        (("--to", "docx"), 2, "--to docx: choose"),
        (("--model", "nowhere"), 3, "nowhere"),
        (("--shard", "3/2"), 2, "--shard 3/2: must be i/n"),
        (("--tile-px", 8), 2, "--tile-px 8 must be at least 16."),
    ],
)
def test_bad_words__are_refused_before_anything_is_written(
    here, two: Path, tmp_path: Path, words: tuple[object, ...], code: int, said: str
) -> None:
    done = here("run", two, "-o", tmp_path / "out", "--slide-mpp", 0.25, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_scores__are_those_of_mil_score(here, fields: Path, tmp_path: Path) -> None:
    out, run, rows = tmp_path / "out", tmp_path / "run", []
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(8):
        source = sorted(fields.iterdir())[number % 4]
        shutil.copy(source, slides / f"s{number}.jpg")
        rows.append(f"s{number},{'ab'[number % 2]},g{number}")
    few = (*TILES, "--unit", "tile", "--select", "random", "--max-tiles", 4)
    made = here("run", slides, "-o", out, *few)
    assert made.returncode == 0, made.stderr
    (tmp_path / "labels.csv").write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    words = ("--folds", 2, "--inner-folds", 2, "--seeds", 1, "--epochs", 1, "--method", "mean")
    stores = out / "stores"
    trained = here("mil", "train", "--bags", stores, "--labels", tmp_path / "labels.csv",
                   "-o", run, *words)  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    wrong = here("run", slides, "-o", out, *few[:-6], "--unit", "cell", "--model", run)
    assert wrong.returncode == 2
    assert "has learnt bags of tiles, and cell bags are made here." in wrong.stderr
    scored = here("run", slides, "-o", out, *few, "--model", run)
    assert scored.returncode == 0, scored.stderr
    shutil.copytree(stores, tmp_path / "copy")
    again = here("mil", "score", run, tmp_path / "copy", "-o", tmp_path / "scores.csv")
    assert again.returncode == 0, again.stderr
    assert (out / "scores.csv").read_text() == (tmp_path / "scores.csv").read_text()
    assert (out / "scores.csv").read_text().count("\n") == 9
    attention = {name: data for name, data in arrays(stores).items() if "/attention/" in name}
    assert len(attention) == 8
    part = here("run", slides, "-o", out, *few, "--model", run, "--shard", "0/2")
    assert part.returncode == 0, part.stderr
    lines = (out / "scores.csv").read_text().splitlines()
    assert set((out / "scores.0-of-2.csv").read_text().splitlines()) <= set(lines)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kill__at_any_moment_the_same_command_ends_like_an_undisturbed_run(
    cytofm, two: Path, singly: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    words = [str(word) for word in ("run", two, "-o", tmp_path, *TILES, *HAND)]
    kills = 0
    # The first comes before anything can be done; on a fast machine later ones may come too late.
    for moment in sorted([0.5, *(chance.uniform(0.5, 6.0) for _ in range(6))]):
        kills += run_and_kill(words, moment)
        assert_all_valid(tmp_path / "stores")
    done = cytofm(*words)
    assert done.returncode == 0, done.stderr
    assert kills > 0
    assert arrays(tmp_path / "stores") == arrays(singly)
    assert records(tmp_path / "stores") == records(singly)
    assert not [path.name for path in (tmp_path / "stores").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("step", PLACES)
def test_kill__after_a_step_the_next_run_begins_with_the_one_behind_it(
    cytofm, two: Path, singly: Path, tmp_path: Path, step: str
) -> None:
    (field, _) = sorted(two.iterdir())
    store = tmp_path / "stores" / f"{field.stem}.zarr"
    words = [str(word) for word in ("run", field, "-o", tmp_path, *TILES, *HAND)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cytofm_cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not (store / step).exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = cytofm(*words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["steps"]
    finished = PLACES.index(step) + 1
    assert {told[name]["status"] for name in STEPS[:finished]} == {"skipped"}
    mine = {name: data for name, data in arrays(singly).items() if name.startswith(field.stem)}
    assert arrays(tmp_path / "stores") == mine
