"""`cytofm mil train` and `score` on bags whose answer is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    """Twelve bags in six groups; instances of positives are far from those of negatives."""
    folder = tmp_path / "bags"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        label = number % 2
        values = rng.normal(size=(20, 8)).astype(np.float32)
        values += 3.0 * label
        torch.save(torch.from_numpy(values), folder / f"s{number:02}.pt")
        rows.append(f"s{number:02},{'pos' if label else 'neg'},g{number // 2}")
    (tmp_path / "labels.csv").write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def train(cytofm, bags: Path, *more: object):
    labels, run = bags.parent / "labels.csv", bags.parent / "run"
    words = ("mil", "train", "--bags", bags, "--labels", labels, "-o", run)
    return cytofm(*words, "--folds", 3, "--seeds", 1, "--epochs", 30, *more)


def test_mil__train_and_score(cytofm, bags: Path) -> None:
    done = train(cytofm, bags)
    assert done.returncode == 0, done.stderr
    run = bags.parent / "run"
    assert done.stdout.strip() == str(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["auc"]["value"] == 1.0
    assert metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"]
    splits = rows_of(run / "splits.csv")
    assert len(splits) == 12
    scored = cytofm("mil", "score", run, bags, "-o", bags.parent / "scores.csv")
    assert scored.returncode == 0, scored.stderr
    scores = rows_of(bags.parent / "scores.csv")
    wanted = {row["slide_id"]: row["label"] for row in rows_of(bags.parent / "labels.csv")}
    assert {row["slide_id"]: row["predicted"] for row in scores} == wanted
    again = train(cytofm, bags, "-v")
    assert again.returncode == 0
    assert "skipped" in again.stderr
    other = train(cytofm, bags, "--seed", 1)
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
        (lambda text: text.replace("slide_id", "slide"), "slide_id"),
    ],
)
def test_mil__labels_that_cannot_be_used_are_refused_in_one_line(
    cytofm, bags: Path, edit, said: str
) -> None:
    labels = bags.parent / "labels.csv"
    labels.write_text(edit(labels.read_text()))
    done = train(cytofm, bags)
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (bags.parent / "run").exists()
