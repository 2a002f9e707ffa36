"""`cytofm evaluate probe` on simulated Pap fields."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

QUICK = ("--replicates", 100, "--draws", 2, "--k", 5, "--inner-folds", 2, "--threads", 1)


@pytest.fixture(scope="module")
def few(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the fields of three of the four patients."""
    folder = tmp_path_factory.mktemp("few")
    for row in csv.DictReader((simulated / "labels.csv").read_text().splitlines()):
        if row["group"] != "p1":
            shutil.copy(simulated / "slides" / f"{row['slide_id']}.jpg", folder)
    return folder


@pytest.fixture
def probe(here, simulated: Path):
    """Return a function that judges the fields of a folder."""
    tables = ("--points", simulated / "points.csv", "--groups", simulated / "labels.csv")

    def run(inputs: Path, out: Path, *more: object):
        words = ("evaluate", "probe", inputs, *tables, "-o", out, "--slide-mpp", 0.25)
        return here(*words, *QUICK, *more)

    return run


def test_evaluate__judges_compares_and_keeps_features(probe, few: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    task = ("--task", "abnormal", "--crop-um", 16)
    done = probe(few, run, *task)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("handcrafted: abnormal AUC ")
    assert "2 slide(s) of the points are not given" in done.stderr
    found = json.loads((run / "metrics.json").read_text())
    assert (found["slides"], found["groups"]) == (6, 3)
    assert any(note.startswith("2 slide(s) of the points are not given") for note in found["notes"])
    assert "2 slide(s) of the points are not given" in (run / "table.md").read_text()
    one = found["tasks"]["abnormal"]
    assert one["folds"] == 3
    assert sum(one["counts"].values()) == found["instances"]
    auc = one["encoders"]["handcrafted"]["probes"]["linear"]["auc"]
    assert 0.5 < auc["value"] <= 1
    assert auc["low"] <= auc["value"] <= auc["high"]
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 2 * found["instances"]
    folds = {
        row["group"]: {other["fold"] for other in rows if other["group"] == row["group"]}
        for row in rows
    }
    assert sorted(map(sorted, folds.values())) == [["0"], ["1"], ["2"]]

    again = probe(few, run, *task, "-v")
    assert again.returncode == 0
    assert "skipped" in again.stderr
    assert again.stdout == done.stdout
    other = probe(few, run, *task, "--seed", 1)
    assert other.returncode == 2
    assert "seed" in other.stderr

    (kept,) = (run / "features").iterdir()
    age = kept.stat().st_mtime_ns
    both = ("--encoder", "handcrafted", "--encoder", "timm/test_vit", "--random-weights")
    more = probe(few, run, *task, *both, "--overwrite", "--json")
    assert more.returncode == 0, more.stderr
    names = [json.loads(line)["encoder"] for line in more.stdout.splitlines()]
    assert names == ["handcrafted", "timm/test_vit-random0"]
    assert kept.stat().st_mtime_ns == age
    found = json.loads((run / "metrics.json").read_text())
    assert found["tasks"]["abnormal"]["encoders"]["handcrafted"]["probes"]["linear"]["auc"] == auc
    assert len(found["comparisons"]) == 4
    table = (run / "table.md").read_text()
    assert "timm/test_vit-random0 − handcrafted" in table

    # The other groups still train: what is said of the judged one does not change.
    part = probe(few, run, *task, "--judged", "p2", "--overwrite")
    assert part.returncode == 0, part.stderr
    assert kept.stat().st_mtime_ns == age
    left = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert left == [row for row in rows if row["group"] == "p2"]
    found = json.loads((run / "metrics.json").read_text())
    assert found["tasks"]["abnormal"]["folds"] == 1
    assert "held out, p2 judged." in (run / "table.md").read_text()


def test_evaluate__tiles_of_stores_by_their_stored_embeddings(
    here, simulated: Path, stores: Path, tmp_path: Path
) -> None:
    labels = "slide_id,group\n" + "".join(
        f"{path.name[:-5]},g{number % 2}\n"
        for number, path in enumerate(sorted(stores.glob("*.zarr")))
    )
    (tmp_path / "groups.csv").write_text(labels)
    words = ("evaluate", "probe", stores, "--points", simulated / "points.csv", "--unit", "tile")
    words = (*words, "--groups", tmp_path / "groups.csv", "--task", "abnormal", *QUICK)
    done = here(*words, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["unit"] == "tile"
    assert found["encoders"]["handcrafted"]["features"] == "of the stores"
    assert not list((tmp_path / "run" / "features").iterdir())


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--encoder", "sr-vit-tiny"), 3, "--random-weights"),
        (("--encoder", "handcrafted", "--weights", "w.pt"), 2, "0 are named"),
        (("--encoder", "sr-vit-tiny=absent.safetensors"), 3, "absent.safetensors"),
        (("--encoder", "handcraftd"), 2, "handcrafted"),
        (("--encoder", "handcrafted", "--encoder", "handcrafted"), 2, "named twice"),
        (("--task", "malignant"), 2, "abnormal"),
        (("--positive", "LSYL"), 3, "LSYL"),
        (("--unit", "tile"), 2, "stores"),
        (("--judged", "p2,p9", "--task", "abnormal"), 3, "no instance is of group p9"),
        (("--groups", Path(__file__)), 3, "no column"),
    ],
)
def test_evaluate__bad_requests_are_refused_in_one_line(
    probe, few: Path, tmp_path: Path, more: tuple[object, ...], code: int, said: str
) -> None:
    done = probe(few, tmp_path / "run", *more)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert len(errors) == 1
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_evaluate__groups_of_one_class_each_are_said(here, few: Path, tmp_path: Path) -> None:
    rows = [
        f"{path.stem},{200 + 40 * c},200,{label}" for path in sorted(few.iterdir())
        for c, label in enumerate(("NILM", "HSIL"))
    ]  # fmt: skip
    said = []
    for is_apart in (True, False):
        table = tmp_path / "points.csv"
        cells = [row.split(",") for row in rows]
        own = [f"{','.join(of)},{of[0]}{of[3] if is_apart else ''}" for of in cells]
        table.write_text("\n".join(["slide_id,x,y,label,group", *own]) + "\n")
        words = (few, "--points", table, "--slide-mpp", 0.25, "-o", tmp_path / "run", "--dry-run")
        done = here("evaluate", "probe", *words)
        assert done.returncode == 0, done.stderr
        said.append(" ".join(done.stderr.split()))
    assert "groups holds one class only: what tells classes apart may be what tells" in said[0]
    assert "holds one class only" not in said[1]


def test_evaluate__points_of_other_slides_and_foreign_folders_are_refused(
    here, probe, few: Path, tmp_path: Path
) -> None:
    points = tmp_path / "points.csv"
    points.write_text("slide_id,x,y,label\nsomething,1,1,NILM\nelse,1,1,HSIL\n")
    done = here("evaluate", "probe", few, "--points", points, "-o", tmp_path / "run")
    assert done.returncode == 3
    assert "none of its 2 slide(s) is given (else, something)" in done.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    done = probe(few, tmp_path / "other", "--task", "abnormal")
    assert done.returncode == 2
    assert "not a RUN" in done.stderr


def test_robustness__of_detected_cells_of_two_encoders(
    here, detected: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "robustness", detected, "-o", tmp_path / "run", "--max-places", 12)
    words = (*words, "--perturb", "jpeg:30,turn:90", "--crop-um", 16, "--threads", 1)
    words = (*words, "--encoder", "handcrafted", "--encoder", "timm/test_vit", "--random-weights")
    told = here(*words, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "would judge 2 encoder(s) on 12 cells: 2 perturbations" in told.stderr
    assert not (tmp_path / "run").exists()
    done = here(*words, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["encoder"] for line in lines] == ["handcrafted", "timm/test_vit-random0"]
    assert [row["second"] for row in lines[0]["comparisons"]] == ["jpeg:30", "turn:90"]
    assert lines[0]["comparisons"][1]["top"]["1"] == 1.0
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| timm/test_vit-random0 | jpeg:30 | 12 |" in table
    again = here(*words, "-v")
    assert again.returncode == 0
    assert "skipped" in again.stderr
    other = here(*words, "--seed", 1)
    assert other.returncode == 2
    assert "seed" in other.stderr


def test_retention__says_what_an_encoder_loses(here, simulated, few: Path, tmp_path: Path) -> None:
    tables = ("--points", simulated / "points.csv", "--groups", simulated / "labels.csv")
    words = ("evaluate", "retention", few, *tables, "-o", tmp_path / "run", "--slide-mpp", 0.25)
    words = (*words, "--task", "abnormal", "--perturb", "defocus:2", "--crop-um", 16)
    words = (*words, "--inner-folds", 2, "--swaps", 100, "--threads", 1)
    done = here(*words, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = (json.loads(line) for line in done.stdout.splitlines())
    assert [row["condition"] for row in line["comparisons"]] == ["unchanged", "defocus:2"] * 2
    assert all(row["task"] == "abnormal" for row in line["comparisons"])
    assert "| handcrafted | defocus:2 |" in (tmp_path / "run" / "table.md").read_text()
    assert "skipped" in here(*words, "-v").stderr


@pytest.mark.parametrize(
    ("command", "more", "code", "said"),
    [
        ("robustness", ("--perturb", "jpg:5"), 2, "no such kind"),
        ("robustness", ("--perturb", "jpeg:500"), 2, "quality; 1 to 100"),
        ("robustness", ("--pairs", "absent.csv"), 3, "absent.csv"),
        ("robustness", ("--pairs", Path(__file__)), 3, "no column slide_a"),
        ("robustness", ("--encoder", "sr-vit-tiny"), 3, "--random-weights"),
        ("robustness", ("--detector", "cellpose"), 3, "cellpose"),
        ("retention", ("--perturb", "turn:30"), 2, "90, 180 or 270"),
        ("retention", (), 2, "needs labelled points"),
    ],
)
def test_conditions__bad_requests_are_refused_in_one_line(
    here, detected: Path, tmp_path: Path, command: str, more: tuple, code: int, said: str
) -> None:
    done = here("evaluate", command, detected, "-o", tmp_path / "run", *more)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line]) == 1
    assert not (tmp_path / "run").exists()
