"""Nested search: what it may look at, what it chooses, how it is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.config import resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.mil import cells
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.plan import make_plan
from cytofm_cli.mil.run import train_run
from cytofm_cli.mil.run_folder import read_config
from cytofm_cli.mil.tune import Candidate, InnerAnswer, choose, inner_split
from cytofm_cli.stats.folds import TEST, TRAIN, Fold

QUICK = {"method": "mean", "folds": 2, "seeds": 1, "epochs": 5, "inner_folds": 3, "workers": 1}


def quick(**settings: object) -> MilConfig:
    return resolve(MilConfig, "mil", {**QUICK, "bootstrap": 200, **settings})


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[list[Bag], Path]:
    """Thirty slides of ten patients; one feature tells the label."""
    rng = np.random.default_rng(0)
    bags, rows = [], []
    for i in range(30):
        x = rng.normal(size=(6, 5)).astype(np.float32)
        x[:, 0] += 2.0 * (i % 2)
        bags.append(Bag(f"s{i:02d}", x))
        rows.append(f"s{i:02d},{i % 2},p{i // 3}")
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return bags, labels


def candidates(*rates: float) -> list[Candidate]:
    return [Candidate({"lr": rate}, None, {}) for rate in rates]  # type: ignore[arg-type]


def test_inner_split__judged_epoch_and_training_sets_are_apart_and_without_test() -> None:
    part = np.array([TEST, 0, 1, 2, TRAIN, 0, 1, 2, TEST])
    fold = Fold(part)
    train, choosing, judged = inner_split(fold, 2)
    assert judged.tolist() == [3, 7]
    assert choosing.tolist() == [1, 5]
    assert train.tolist() == [2, 4, 6]
    two = Fold(np.array([TEST, 0, 1, 0, 1]))
    train, choosing, judged = inner_split(two, 1)
    assert (train.tolist(), choosing.tolist(), judged.tolist()) == ([1, 3], [2, 4], [2, 4])


def test_choose__least_loss_with_every_class_counting_the_same() -> None:
    y = np.array([0, 0, 0, 1])
    sure_of_zero = np.array([[3.0, 0.0]] * 4)  # right on three of four slides
    undecided = np.zeros((4, 2))
    found = choose(
        candidates(0.1, 0.2),
        [
            InnerAnswer(0, np.array([0, 1]), sure_of_zero[:2]),
            InnerAnswer(1, np.arange(4), undecided),
            InnerAnswer(0, np.array([2, 3]), sure_of_zero[2:]),
        ],
        y,
    )
    assert found["chosen"] == 1
    assert found["settings"] == {"lr": 0.2}
    log1p = np.log1p(np.exp(-3.0))
    assert found["tried"][0]["loss"] == pytest.approx((log1p + (3 + log1p)) / 2)
    assert found["tried"][1]["loss"] == pytest.approx(np.log(2))
    assert found["tried"][1]["auc"] == 0.5


def test_train_run__search_is_recorded_used_and_judged_once(
    cohort: tuple[list[Bag], Path], tmp_path: Path
) -> None:
    bags, labels = cohort
    tune = {"lr": ["1e-9", "0.03"], "hidden": ["0", "4"]}
    report = train_run(quick(), bags, labels, tmp_path / "run", tune=tune)
    for fold in report.metrics["tuned"]:
        assert len(fold["tried"]) == 4
        assert fold["settings"]["lr"] == 0.03  # 1e-9 learns nothing
        assert fold["tried"][fold["chosen"]]["loss"] == min(t["loss"] for t in fold["tried"])
    assert report.metrics["auc"]["value"] > 0.9
    assert read_config(tmp_path / "run")["tune"] == {"lr": [1e-9, 0.03], "hidden": [0, 4]}
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()[:-1]:
        assert json.loads(line)["lr"] == 0.03
    assert train_run(quick(), bags, labels, tmp_path / "run", tune=tune).skipped


def test_train_run__labels_of_the_test_part_cannot_move_the_choice(
    cohort: tuple[list[Bag], Path], tmp_path: Path
) -> None:
    bags, labels = cohort
    tune = {"lr": ["1e-9", "0.003", "0.01"]}
    train_run(quick(), bags, labels, tmp_path / "run", tune=tune)
    splits = (tmp_path / "run" / "splits.csv").read_text().splitlines()[1:]
    tested = {row.split(",")[0] for row in splits if row.split(",")[2] == "test"}
    flipped = [
        f"{s},{1 - int(y)},{g}" if s in tested else f"{s},{y},{g}"
        for s, y, g in (row.split(",") for row in labels.read_text().splitlines()[1:])
    ]
    labels.write_text("slide_id,label,group\n" + "\n".join(flipped) + "\n")
    again = quick(splits=str(tmp_path / "run" / "splits.csv"))
    train_run(again, bags, labels, tmp_path / "flipped", tune=tune)
    first, second = (
        json.loads((tmp_path / run / "metrics.json").read_text())["tuned"]
        for run in ("run", "flipped")
    )
    assert first[0] == second[0]
    assert first[1] != second[1]  # there the flipped slides are training slides


def test_train_run__killed_search_goes_on_with_what_was_tried(
    cohort: tuple[list[Bag], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, labels = cohort
    tune = {"lr": ["0.003", "0.01"]}

    def stop(done: int, total: int, name: str) -> None:
        assert total == 2 * (2 * 3 + 1)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(quick(), bags, labels, tmp_path / "run", tune=tune, progress=stop)
    tried = []
    original = cells._run_trial
    monkeypatch.setattr(
        cells, "_run_trial", lambda *words: (tried.append(words[2].name), original(*words))[1]
    )
    report = train_run(quick(), bags, labels, tmp_path / "run", tune=tune)
    assert len(tried) == 12 - 5
    whole = train_run(quick(), bags, labels, tmp_path / "whole", tune=tune)
    assert report.metrics == whole.metrics


@pytest.mark.parametrize(
    ("tune", "settings", "said"),
    [
        ({"learning_rate": ["1"]}, {}, "no setting 'learning_rate'"),
        ({"lr": ["fast"]}, {}, "lr"),
        ({"lr": ["0.1"]}, {"lr": 0.2}, "both set and tuned"),
    ],
)
def test_make_plan__search_that_cannot_be(
    cohort: tuple[list[Bag], Path], tune: dict, settings: dict, said: str
) -> None:
    bags, labels = cohort
    with pytest.raises(UsageError, match=said):
        make_plan(quick(**settings), bags, labels, {}, tune=tune)


def test_tune__a_misspelt_setting_is_compared_with_those_of_recipe_and_head(
    cohort: tuple[list[Bag], Path],
) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(quick(), *cohort, {}, tune={"lrr": ["1e-3", "1e-4"]})
    assert caught.value.message == "--tune: recipe and head 'mean' have no setting 'lrr'."
    assert caught.value.hint == "did you mean lr?"
    with pytest.raises(UsageError) as caught:
        make_plan(quick(), *cohort, {}, tune={"hiden": ["8", "16"]})
    assert caught.value.hint == "did you mean hidden?"
