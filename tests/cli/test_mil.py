"""`cytofm mil train`, `compare` and `benchmark` on bags whose answer is known."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ..nodes import put_node  # noqa: TID252 - of all tests
from .mil_runs import plain, rows_of, train, write_bag


def test_mil__train_and_score(here, bags: Path) -> None:
    done = train(here, bags)
    assert done.returncode == 0, done.stderr
    run = bags.parent / "run"
    assert done.stdout.strip() == str(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["auc"]["value"] == 1.0
    assert metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"]
    splits = rows_of(run / "splits.csv")
    assert len(splits) == 12
    (bags.parent / "c.toml").write_text("[run]\ndry_run = true\n[mil_score]\ndevice = 'cpu'\n")
    table = bags.parent / "scores.csv"
    planned = here("mil", "score", run, bags, "-o", table, "--config", bags.parent / "c.toml")
    assert planned.stderr == f"would score 12 slides into {table}\n"
    assert not table.exists()
    scored = here("mil", "score", run, bags, "-o", table)
    assert scored.returncode == 0, scored.stderr
    scores = rows_of(bags.parent / "scores.csv")
    wanted = {row["slide_id"]: row["label"] for row in rows_of(bags.parent / "labels.csv")}
    assert {row["slide_id"]: row["predicted"] for row in scores} == wanted
    again = train(here, bags, "-v")
    assert again.returncode == 0
    assert "skipped" in again.stderr
    other = train(here, bags, "--seed", 1)
    assert other.returncode == 2
    assert "mil.seed" in other.stderr


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace("s00,neg,g0\n", ""), "--allow-missing"),
        (lambda text: text + "s99,pos,g9\n", "s99"),
        (lambda text: text.replace("neg", "pos"), "class"),
        (
            lambda text: (
                text.replace(",g1", ",g0")
                .replace(",g2", ",g0")
                .replace(",g3", ",g0")
                .replace(",g4", ",g0")
                .replace(",g5", ",g0")
            ),
            "group",
        ),
        (lambda text: text + "s00,pos,g0\n", "s00"),
        (lambda text: text.replace("slide_id", "scan_no"), "no column slide_id"),
        (lambda text: text.replace("s03,pos", "s03,NA"), "s03"),
        (lambda text: text.replace("label,group", "label,label"), "two columns are called"),
    ],
)
def test_mil__labels_that_cannot_be_used_are_refused_in_one_line(
    here, bags: Path, edit, said: str
) -> None:
    labels = bags.parent / "labels.csv"
    labels.write_text(edit(labels.read_text()))
    done = train(here, bags)
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (bags.parent / "run").exists()


def test_mil_train__says_what_is_learnt_and_what_was_assumed(here, bags: Path) -> None:
    labels, run = bags.parent / "labels.csv", bags.parent / "run"
    text = labels.read_text().replace("neg", "normal").replace("pos", "abnormal")
    labels.write_text(text.replace("group", "case_id").replace("s00,normal", "s00,Normal"))
    said = [
        "classes of column 'label': 'normal' 6 slides of 6 groups, 'abnormal' 6 slides of 6 groups",
        "positive class: 'abnormal' ('normal' says that nothing was found)",
        "12 slides of 6 groups (column 'case_id')",
        "bags: encoder not stated, unit tile",
        "warning: class 'normal' is also written 'Normal': taken as one",
    ]
    for more in (["--dry-run"], []):
        done = train(here, bags, *more)
        assert done.returncode == 0, done.stderr
        assert set(said) <= set(done.stderr.splitlines())
    assert "warning: 6 of 6 groups are " in done.stderr
    assert "warning: no usable interval of average_precision" in done.stderr
    assert re.search(r"auc 1\.000 \[0\.\d{3}, 1\.000\]", done.stderr)
    assert "recall of 'abnormal' 1.000" in done.stderr
    assert "threshold for 'abnormal'" in done.stderr
    found = json.loads((run / "metrics.json").read_text())
    assert (found["positive"], found["group_column"]) == ("abnormal", "case_id")
    assert found["class_groups"] == {"normal": 6, "abnormal": 6}
    warned = {line.removeprefix("warning: ") for line in done.stderr.splitlines()}
    assert set(found["notes"]) <= warned
    quiet = train(here, bags, "-q", "--overwrite", "--positive", "NORMAL")
    assert quiet.returncode == 0, quiet.stderr
    assert all(line.startswith("warning: ") for line in quiet.stderr.splitlines())
    assert json.loads((run / "metrics.json").read_text())["positive"] == "normal"
    assert list(rows_of(run / "predictions.csv")[0])[-2:] == ["predicted", "threshold_normal"]
    unknown = train(here, bags, "--positive", "tumour")
    assert unknown.returncode == 3
    assert "the classes are normal, abnormal" in unknown.stderr


def alive_in_session(session: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGUSR1, 75, 1), (signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 2)],
)
def test_mil_train__signal_to_all_processes_keeps_models_and_resumes(
    bags: Path, number: signal.Signals, code: int, workers: int
) -> None:
    words = ["--bags", bags, "--labels", bags.parent / "labels.csv", "-o", bags.parent / "run"]
    words += ["--folds", 3, "--seeds", 2, "--patience", 0, "--workers", workers, "-v"]
    command = [sys.executable, "-m", "cytofm_cli", "mil", "train", *map(str, words)]
    long = [*command, "--epochs", "200"]
    with subprocess.Popen(long, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stderr is not None
        before = ""
        while "1/6 models" not in before:
            line = child.stderr.readline()
            assert line, before
            before += line
        time.sleep(0.5)  # the worker processes, if any, are starting
        os.killpg(child.pid, number)
        said = child.stderr.read()
    assert child.returncode == code, said
    errors = [line for line in said.splitlines() if "models:" not in line]
    assert len(errors) == 1, said
    assert errors[0].startswith(f"error: stopped by {number.name}; what was finished is kept.")
    while alive_in_session(child.pid):  # else the limit of pytest ends it
        time.sleep(0.1)  # Python's tracker of semaphores leaves a moment after its parent
    kept = sorted((bags.parent / ".run.partial" / "cells").glob("[!.]*.json"))
    assert 1 <= len(kept) < 6
    assert not (bags.parent / ".run.claim").exists()
    if number is not signal.SIGUSR1:  # going on is the same after all three
        return
    again = subprocess.run(long, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept) + 1}/6 models" in again.stderr
    assert "1/6 models" not in again.stderr
    assert sorted(p.name for p in bags.parent.iterdir()) == ["bags", "labels.csv", "run"]


def test_mil__out_of_the_wrong_kind_is_a_usage_error(here, bags: Path) -> None:
    (bags.parent / "run").write_text("a file")
    done = train(here, bags)
    assert done.returncode == 2, done.stderr
    assert "is a file" in done.stderr
    (bags.parent / "run").unlink()
    assert train(here, bags).returncode == 0
    scored = here("mil", "score", bags.parent / "run", bags, "-o", bags)
    assert scored.returncode == 2, scored.stderr
    assert "is a folder" in scored.stderr
    assert sorted(p.name for p in bags.parent.iterdir()) == ["bags", "labels.csv", "run"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (plain(0), "1 slide(s) have an empty bag (no instances): s03."),
        (plain() * np.nan, "1 slide(s) have NaN or infinite features: s03."),
        (plain(width=5), "s00 is 8, s03 is 5"),
    ],
)
def test_mil_train__bad_bag_is_named(here, bags: Path, values: np.ndarray, said: str) -> None:
    write_bag(bags / "s03.pt", values)
    done = train(here, bags)
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in bags.parent.iterdir()) == ["bags", "labels.csv"]


def test_mil_train__bag_of_one_instance_is_fine(here, bags: Path) -> None:
    write_bag(bags / "s03.pt", plain(1))
    done = train(here, bags, "--method", "clam_sb", "--epochs", 2)
    assert done.returncode == 0, done.stderr


def test_mil_train__patient_in_two_parts_of_a_splits_file_is_refused(here, bags: Path) -> None:
    parts = ("test", "validation0", "train")
    rows = [f"s{n:02},g{n // 2},{parts[n % 3]}" for n in range(12)]
    splits = bags.parent / "splits.csv"
    splits.write_text("slide_id,group,fold0\n" + "\n".join(rows) + "\n")
    done = train(here, bags, "--splits", splits, "--folds", 5)  # the default: the file says
    assert done.returncode == 3, done.stderr
    assert "group(s) both in test and outside: g0, g1, g3 and 1 more" in done.stderr
    assert "all slides of a patient into one part" in done.stderr


def test_mil_train__part_of_a_splits_file_without_a_class(here, bags: Path) -> None:
    rows = [
        f"s{n:02},g{n},{'test' if n % 2 else 'validation' + str(n % 4 // 2)}" for n in range(12)
    ]
    splits = bags.parent / "splits.csv"
    splits.write_text("slide_id,group,fold0\n" + "\n".join(rows) + "\n")
    labels = bags.parent / "labels.csv"
    labels.write_text(labels.read_text().replace(",g", ",h"))
    rows = [line.rsplit(",", 1)[0] for line in labels.read_text().splitlines()]
    labels.write_text("\n".join(rows) + "\n")  # every slide its own group
    done = train(here, bags, "--splits", splits, "--folds", 5)  # the default: the file says
    assert done.returncode == 3, done.stderr
    assert "fold0" in done.stderr
    assert "'pos'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_mil_train__search_of_settings(here, bags: Path) -> None:
    few = ("--method", "mean", "--inner-folds", 2)
    done = train(here, bags, *few, "--tune", "lr=1e-9,0.01", "--tune", "hidden=0")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((bags.parent / "run" / "metrics.json").read_text())
    assert [fold["settings"] for fold in metrics["tuned"]] == [{"lr": 0.01, "hidden": 0}] * 3
    bad = train(here, bags, "--tune", "lr")
    assert bad.returncode == 2
    assert "--tune lr: must be KEY=VALUE,VALUE" in bad.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--protocol", "holdout", "--folds", 4), "--folds 4 has no effect: --protocol is holdout"),
        (("--test-fraction", 0.2), "--test-fraction 0.2 has no effect: --protocol is cv"),
        (("--splits", "S.csv", "--repeats", 2), "--repeats 2 has no effect: the folds are those"),
        (("--splits", "S.csv", "--protocol", "cv"), "--protocol cv and --splits both say"),
    ],
)
@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_mil__settings_without_effect_are_refused(
    here, bags: Path, command: str, words: tuple[object, ...], said: str
) -> None:
    paths = ("--bags", bags, "--labels", bags.parent / "labels.csv", "-o", bags.parent / "x")
    done = here("mil", command, *paths, *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (bags.parent / "x").exists()


def test_mil__folds_beside_a_split_column_are_refused(here, bags: Path) -> None:
    labels = bags.parent / "labels.csv"
    head, *rows = labels.read_text().splitlines()
    parts = ["test" if n < 4 else "train" for n in range(12)]
    lines = [f"{row},{part}" for row, part in zip(rows, parts, strict=True)]
    labels.write_text("\n".join([f"{head},split", *lines]) + "\n")
    done = train(here, bags)  # asks for 3 folds
    assert done.returncode == 2, done.stderr
    assert (
        "--folds 3 has no effect: the folds are those of the table's `split` column" in done.stderr
    )
    assert train(here, bags, "--protocol", "cv", "--epochs", 1).returncode == 0


def test_mil_train__threshold_of_two_classes_is_refused_for_three(here, bags: Path) -> None:
    labels = bags.parent / "labels.csv"
    rows = [f"s{n:02},{'abc'[n % 3]}" for n in range(12)]
    labels.write_text("slide_id,label\n" + "\n".join(rows) + "\n")
    done = train(here, bags, "--threshold", "half")
    assert done.returncode == 2, done.stderr
    assert "--threshold half has no effect: there are 3 classes, not two." in done.stderr


def test_mil__encoder_of_bags_that_do_not_say_is_stated_and_kept(here, bags: Path) -> None:
    assert train(here, bags, "--encoder", "uni", "--epochs", 1).returncode == 0
    run, table = bags.parent / "run", bags.parent / "scores.csv"
    assert json.loads((run / "metrics.json").read_text())["encoder"] == "uni"
    silent = here("mil", "score", run, bags / "s00.pt", "-o", table)
    assert silent.returncode == 3, silent.stderr
    assert "s00: encoder not stated, the RUN learnt uni." in silent.stderr
    assert "`--encoder uni`" in silent.stderr
    other = here("mil", "score", run, bags, "-o", table, "--encoder", "conch")
    assert other.returncode == 2, other.stderr
    assert "--encoder conch: the RUN learnt features of uni." in other.stderr
    stated = here("mil", "score", run, bags, "-o", table, "--encoder", "uni")
    assert stated.returncode == 0, stated.stderr
    mixed = here("mil", "score", run, bags, "-o", table, "--allow-mixed", "-q")
    assert mixed.returncode == 0, mixed.stderr
    assert mixed.stderr == (
        "warning: 12 slide(s) scored with --allow-mixed: encoder not stated, the RUN learnt uni\n"
    )
    assert rows_of(table)[0]["differs"] == "encoder not stated, the RUN learnt uni"


def test_mil__run_without_its_models_is_neither_done_nor_scored(here, bags: Path) -> None:
    assert train(here, bags, "--epochs", 1).returncode == 0
    run = bags.parent / "run"
    (run / "models" / "fold1_seed0.safetensors").unlink()
    scored = here("mil", "score", run, bags, "-o", bags.parent / "s.csv")
    assert scored.returncode == 3, scored.stderr
    assert "lacks 1 of 3 models: fold1_seed0.safetensors" in scored.stderr
    again = train(here, bags, "--epochs", 1)
    assert again.returncode == 0, again.stderr
    assert "made again, because files are gone: models/fold1_seed0.safetensors" in again.stderr
    assert here("mil", "score", run, bags, "-o", bags.parent / "s.csv").returncode == 0


def test_mil__stores_of_other_tiles_are_refused_and_exports_keep_what_they_are(
    here, stores: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stores"
    for copy in "123":
        for path in stores.glob("*.zarr"):
            shutil.copytree(path, folder / f"{path.stem}-{copy}.zarr")
    ids = sorted(path.stem for path in folder.glob("*.zarr"))
    rows = [f"{slide},{'ab'[n % 2]},g{n}" for n, slide in enumerate(ids)]
    labels, run = tmp_path / "labels.csv", tmp_path / "run"
    labels.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    few = ("--labels", labels, "--folds", 2, "--seeds", 1, "--epochs", 1, "--inner-folds", 2)
    done = here("mil", "train", "--bags", folder, "-o", run, *few)
    assert done.returncode == 0, done.stderr
    for kind in ("h5", "pt"):
        assert here("export", folder, "-o", tmp_path / kind, "--to", kind).returncode == 0
        scored = here("mil", "score", run, tmp_path / kind, "-o", tmp_path / "s.csv")
        assert scored.returncode == 0, scored.stderr
        assert "not checked" not in scored.stderr
    root = folder / f"{ids[0]}.zarr" / "zarr.json"
    node = json.loads(root.read_text())
    tile = node["attributes"]["cytofm"]["steps"]["tile"]
    side = tile["tile_px"]
    tile["tile_px"] = 2 * side
    put_node(root, node)
    group = root.parent / "tiles" / "zarr.json"
    node = json.loads(group.read_text())
    node["attributes"]["cytofm"]["tile_px"] = 2 * side
    put_node(group, node)
    mixed = here("mil", "train", "--bags", folder, "-o", tmp_path / "mixed", *few)
    assert mixed.returncode == 3, mixed.stderr
    assert f"tile size is {side} px in {ids[1]}, {2 * side} px in {ids[0]}" in mixed.stderr
    scored = here("mil", "score", run, root.parent, "-o", tmp_path / "s.csv")
    assert scored.returncode == 3, scored.stderr
    assert f"tile size {2 * side} px, the RUN learnt {side} px" in scored.stderr
