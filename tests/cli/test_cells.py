"""`cytofm cells` on simulated Pap fields."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cytofm_cli.store import io

TRAIN = ("--encoder", "handcrafted", "--penalty", 0.01, "--replicates", 100, "--threads", 1)


@pytest.fixture(scope="module")
def nuclei(cytofm, simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return stores of four fields, one a patient, with nuclei."""
    slides = tmp_path_factory.mktemp("slides")
    for path in sorted((simulated / "slides").iterdir())[::2]:
        shutil.copy(path, slides)
    stores = tmp_path_factory.mktemp("nuclei") / "stores"
    done = cytofm("tile", slides, "-o", stores, "--slide-mpp", 0.25)
    assert done.returncode == 0, done.stderr
    assert cytofm("detect", stores).returncode == 0
    return stores


@pytest.fixture(scope="module")
def run(cytofm, nuclei: Path, simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cells") / "abnormal"
    tables = ("--labels", simulated / "points.csv", "--groups", simulated / "labels.csv")
    done = cytofm("cells", "train", nuclei, *tables, "-o", out, *TRAIN, "--task", "abnormal")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("handcrafted linear: AUC 0.")
    assert "slide(s) of the points are not given" in done.stderr
    assert "above 0.9: " in done.stderr
    return out


def test_dry_run__says_what_would_be_learnt_and_writes_nothing(
    here, nuclei: Path, simulated: Path, tmp_path: Path
) -> None:
    tables = ("--labels", simulated / "points.csv", "--groups", simulated / "labels.csv")
    words = ("cells", "train", nuclei, *tables, "-o", tmp_path / "out", "--dry-run")
    done = here(*words, "--model", "one-class")
    assert done.returncode == 0, done.stderr
    assert "would learn one-class on " in done.stderr
    assert "of 4 groups in 4 folds, by cytofm-tiny" in done.stderr
    assert "task one-class: 'normal' " in done.stderr
    assert not list(tmp_path.iterdir())


def test_apply_and_count__of_every_nucleus(
    here, run: Path, nuclei: Path, simulated: Path, tmp_path: Path
) -> None:
    stores = Path(shutil.copytree(nuclei, tmp_path / "stores"))
    planned = here("cells", "apply", run, stores, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert not list(stores.glob("*/classes"))
    done = here("cells", "apply", run, stores, "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["basis"] for row in rows] == ["out-of-fold"] * 4
    table = tmp_path / "counts.csv"
    counted = here("cells", "count", stores, "-o", table, "--min-probability", 0.7)
    assert counted.returncode == 0, counted.stderr
    for row in csv.DictReader(table.read_text().splitlines()):
        n = io.open_store(stores / f"{row['slide_id']}.zarr").nuclei_record().n
        left = int(row["counted"]) + int(row["below_gate"]) + int(row["abstained"])
        assert left == int(row["nuclei"]) == n
        assert int(row["n_NILM"]) + int(row["n_abnormal"]) == int(row["counted"])
    said = here("info", sorted(stores.iterdir())[0])
    assert "nuclei as NILM, abnormal by linear" in said.stdout
    assert here("cells", "apply", run, stores).stderr.count("4 skipped") == 1


def test_count__of_stores_without_classes_says_so_and_counts_the_others(
    here, run: Path, nuclei: Path, tmp_path: Path
) -> None:
    stores = Path(shutil.copytree(nuclei, tmp_path / "stores"))
    table = tmp_path / "counts.csv"
    assert here("cells", "count", stores, "-o", table).returncode == 3
    assert not table.exists()
    first = sorted(stores.glob("*.zarr"))[0]
    assert here("cells", "apply", run, first).returncode == 0
    done = here("cells", "count", stores, "-o", table)
    assert done.returncode == 4
    assert "3 of 4 slides failed" in done.stderr
    assert len(table.read_text().splitlines()) == 2


def test_count__of_a_slide_without_nuclei_is_json_too(
    here, nuclei: Path, simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "odd"
    tables = ("--labels", simulated / "points.csv", "--groups", simulated / "labels.csv")
    how = (*TRAIN[:2], *TRAIN[4:], "--model", "one-class")
    assert here("cells", "train", nuclei, *tables, "-o", out, *how).returncode == 0
    Image.new("RGB", (300, 300), (240, 240, 240)).save(tmp_path / "blank.png")
    stores = tmp_path / "blank"
    words = ("-o", stores, "--slide-mpp", 0.25, "--foreground", "none")
    assert here("tile", tmp_path / "blank.png", *words).returncode == 0
    assert here("detect", stores).returncode == 0
    assert here("cells", "apply", out, stores).returncode == 0
    done = here("cells", "count", stores, "--json")
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert (counted["nuclei"], counted["n"]) == (0, {"normal": 0, "outlier": 0})
    assert counted["top_score"] is None
    assert counted["share"] == counted["top"] == {"normal": None, "outlier": None}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("cells", "train", "STORES"), 2, "-o RUN"),
        (("cells", "train", "STORES", "-o", "OUT"), 2, "labelled points"),
        (("cells", "train", "STORES", "-o", "OUT"), 2, "of `cells train` --labels"),
        (("cells", "train", "STORES", "--labels", "none.csv", "-o", "OUT"), 3, "none.csv"),
        (("cells", "apply", "none", "STORES"), 3, "not a finished RUN"),
        (("cells", "apply", "RUN", "none"), 3, "none"),
        (("cells", "apply", "RUN", "STORES", "--detector", "cellvit"), 3, "cellvit"),
        (("cells", "apply", "RUN", "STORES", "--abstain", "2"), 2, "--abstain"),
        (("cells", "apply", "RUN", "STORES", "--weights", "none.pt"), 3, "none.pt"),
        (
            ("cells", "train", "STORES", "-o", "OUT", "--lora-rank", 4),
            2,
            "--lora-rank 4 is for lora",
        ),
        (
            ("cells", "train", "STORES", "-o", "OUT", "--random-weights"),
            2,
            "--random-weights has nothing to draw: cytofm-tiny (weights are there, or none needed)",
        ),
        (("cells", "count", "STORES", "--run", "other"), 3, "other"),
    ],
)
def test_what_cannot_be_done__has_one_clear_line(
    here, run: Path, nuclei: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    places = {"STORES": nuclei, "RUN": run, "OUT": tmp_path / "out"}
    done = here(*(places.get(word, word) for word in words))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not list(nuclei.glob("*/classes"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "words", "said"),
    [
        # What is changed of each row of the table, what is asked, and the one line of the answer.
        (
            "odd",
            ("--task", "abnormal"),
            "needs labels of the Bethesda system; these are others: odd",
        ),
        ("odd", ("--ordinal",), "--ordinal: nobody says in which order"),
        ("NILM", (), "have one label ('NILM'): nothing to tell apart"),
        ("one", (), "have fewer than two labels found in two or more groups"),
        ("one", ("--task", "abnormal"), "1 instance(s) are abnormal, in 1 group(s)"),
        ("own", (), "have fewer than two labels found in two or more groups"),
        ("patient", (), "belong to one group ('p'): none can be held out"),
        ("twice", (), "has two groups: 'g0' and 'other'"),
        ("blank", (), "empty label"),
        ("heads", (), "class and diagnosis could be meant. Hint: rename one label"),
        ("patients", (), "differently. Hint: leave the column out that is not of patients"),
    ],
)
def test_bad_labels__have_one_clear_line_and_nothing_is_written(
    here, nuclei: Path, tmp_path: Path, column: str, words: tuple[str, ...], said: str
) -> None:
    names = [path.stem for path in sorted(nuclei.glob("*.zarr"))]
    # Two classes in each of four groups, then what is wrong.
    rows = [[name, 200, 200 + 40 * c, label, f"g{i}"] for i, name in enumerate(names)
            for c, label in enumerate(("NILM", "HSIL"))]  # fmt: skip
    for i, row in enumerate(rows):
        if column in ("odd", "NILM", "blank") and row[3] == "HSIL":
            row[3] = {"blank": ""}.get(column, column)
        if column == "one" and i != 1:
            row[3] = "NILM"
        if column == "own":  # each group has one label, and no other group has it
            row[3] = f"class {row[4]}"
        if column == "patient":
            row[4] = "p"
    if column == "twice":
        rows.append([*rows[0][:4], "other"])
    table = tmp_path / "points.csv"
    text = [",".join(map(str, row)) for row in rows]
    heads = {"heads": "slide_id,x,y,class,diagnosis", "patients": "slide_id,patient,y,label,group"}
    table.write_text("\n".join([heads.get(column, "slide_id,x,y,label,group"), *text]) + "\n")
    out = tmp_path / "out"
    done = here("cells", "train", nuclei, "--labels", table, "-o", out, *TRAIN, *words)
    assert done.returncode == 3, done.stderr
    assert said in " ".join(done.stderr.split())
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill__apply_ends_like_an_undisturbed_run_on_any_number_of_workers(
    cytofm, run: Path, nuclei: Path, tmp_path: Path, workers: int
) -> None:
    def classes(stores: Path) -> dict[str, bytes]:
        files = [path for path in stores.glob("*.zarr/classes/**/*") if path.is_file()]
        kept = [path for path in files if path.name != "zarr.json"]
        return {path.relative_to(stores).as_posix(): path.read_bytes() for path in kept}

    whole = Path(shutil.copytree(nuclei, tmp_path / "whole"))
    assert cytofm("cells", "apply", run, whole).returncode == 0
    stores = Path(shutil.copytree(nuclei, tmp_path / "stores"))
    words = ["cells", "apply", str(run), str(stores), "--workers", str(workers)]
    for after_s in (0.8, 1.6, 2.4):
        process = subprocess.Popen(
            [sys.executable, "-m", "cytofm_cli", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in stores.glob("*.zarr"):
            store = io.open_store(path)
            if "classes/abnormal" in store.steps:
                n = store.classes_record().n
                assert store.read("classes/abnormal/class").shape == (n,)
    assert cytofm(*words).returncode == 0
    assert classes(stores) == classes(whole) != {}
    assert not [path for path in stores.iterdir() if path.name.startswith(".")]
