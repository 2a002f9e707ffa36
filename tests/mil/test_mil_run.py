"""Whole runs: learning, no leak, resume after a kill, refusal, scoring without labels."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cytofm_cli.config import resolve
from cytofm_cli.errors import ConfigMismatchError, InputError, LabelError, UsageError, WeightsError
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.run import train_run
from cytofm_cli.mil.run_folder import read_config, read_metrics
from cytofm_cli.mil.score import load_run, score_bag, scores_csv

QUICK = {
    "folds": 3,
    "seeds": 2,
    "epochs": 6,
    "lr": 2e-3,
    "inner_folds": 3,
    "bootstrap": 200,
    "workers": 1,
}
FILES = ("config.toml", "splits.csv", "predictions.csv", "metrics.json", "log.jsonl", "models")


def quick(**settings: object) -> MilConfig:
    return resolve(MilConfig, "mil", {**QUICK, **settings})


def make_bags(n: int = 36, signal_size: float = 6.0, seed: int = 0, width: int = 8) -> list[Bag]:
    """Odd slides hold a few instances that stand out in one feature; others hold none."""
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(n):
        x = rng.normal(size=(int(rng.integers(5, 12)), width)).astype(np.float32)
        if i % 2:
            x[:3, 0] += signal_size
        # Raw features have wild scales: the scaler of the model must cope.
        bags.append(Bag(f"s{i:02d}", (x * np.logspace(-3, 4, width)).astype(np.float32)))
    return bags


def write_labels(folder: Path, n: int = 36, classes: int = 2) -> Path:
    rows = [f"s{i:02d},{i % classes},p{i // 2 % 12}" for i in range(n)]
    path = folder / "labels.csv"
    path.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return path


def contents(run: Path) -> dict[str, bytes]:
    files = sorted(p for p in run.rglob("*") if p.is_file())
    found = {str(p.relative_to(run)): p.read_bytes() for p in files}
    lines = found["log.jsonl"].splitlines()
    found["log.jsonl"] = b"\n".join(lines[:-1])  # the last line holds the time
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    train_run(quick(epochs=12), make_bags(), write_labels(folder), folder / "run")
    return folder / "run"


def test_train_run__learns_and_writes_what_the_design_names(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == sorted(FILES)
    metrics = read_metrics(run)
    assert metrics["auc"]["value"] > 0.95
    for name in ("auc", "accuracy", "recall"):
        low, value, high = (metrics[name][key] for key in ("low", "value", "high"))
        assert low <= value <= high
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    header = ["slide_id", "fold", "seed", "label", "prob_0", "prob_1", "predicted"]
    assert list(rows[0]) == [*header, "threshold_1"]
    assert all((r["prob_1"] >= r["threshold_1"]) == (r["predicted"] == "1") for r in rows)
    assert len(rows) == 36 * 2  # every slide once a seed: tested once, never more
    assert all(abs(float(r["prob_0"]) + float(r["prob_1"]) - 1) < 2e-6 for r in rows)
    config = read_config(run)
    assert config["recipe"]["standardise"] is True
    assert config["abmil"]["gated"] is True
    assert config["task"]["classes"] == ["0", "1"]
    assert not [p.name for p in run.parent.iterdir() if p.name.startswith(".")]


def test_train_run__reported_auc_follows_from_the_written_predictions(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    config = quick(method="mean", epochs=3)
    report = train_run(config, make_bags(signal_size=1.5), write_labels(tmp_path), tmp_path / "r")
    mean: dict[str, list[float]] = {}
    label = {}
    for row in csv.DictReader((tmp_path / "r" / "predictions.csv").read_text().splitlines()):
        mean.setdefault(row["slide_id"], []).append(float(row["prob_1"]))
        label[row["slide_id"]] = int(row["label"])
    expected = roc_auc_score(
        [label[s] for s in sorted(mean)], [np.mean(mean[s]) for s in sorted(mean)]
    )
    assert report.metrics["auc"]["value"] == pytest.approx(expected, abs=1e-4)


def test_train_run__labels_without_signal_give_chance(tmp_path: Path) -> None:
    # A leak from test to training, selection or threshold would lift these numbers. The group
    # carries a strong signature, so a slide-level split would leak it.
    rng = np.random.default_rng(0)
    groups = [f"p{i // 4}" for i in range(96)]
    labels = [int(rng.random() < 0.5) for _ in range(24)]
    signature = rng.normal(size=(24, 6)) * 4
    bags = [
        Bag(f"s{i:02d}", (rng.normal(size=(6, 6)) + signature[i // 4]).astype(np.float32))
        for i in range(96)
    ]
    path = tmp_path / "labels.csv"
    rows = [f"s{i:02d},{labels[i // 4]},{groups[i]}" for i in range(96)]
    path.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    found = train_run(
        quick(method="mean", seeds=1, repeats=2), bags, path, tmp_path / "run"
    ).metrics
    assert 0.2 < found["auc"]["value"] < 0.72
    assert found["auc"]["low"] < 0.5


def test_train_run__second_time_is_skipped_other_settings_are_refused(tmp_path: Path) -> None:
    bags, labels, out = make_bags(), write_labels(tmp_path), tmp_path / "run"
    mean = {"method": "mean", "seeds": 1, "epochs": 2}
    train_run(quick(**mean), bags, labels, out)
    before = contents(out)
    assert train_run(quick(**mean, workers=2), bags, labels, out).skipped
    with pytest.raises(ConfigMismatchError, match=r"recipe\.epochs: 2 → 3"):
        train_run(quick(**{**mean, "epochs": 3}), bags, labels, out)
    changed = [Bag(bags[0].slide_id, bags[0].features_ND * 2), *bags[1:]]
    with pytest.raises(ConfigMismatchError, match=r"task\.bags_digest"):
        train_run(quick(**mean), changed, labels, out)
    assert contents(out) == before
    report = train_run(quick(**{**mean, "epochs": 3}), bags, labels, out, overwrite=True)
    assert not report.skipped
    assert contents(out) != before


@pytest.mark.slow
def test_train_run__processes_give_the_same_bytes(tmp_path: Path) -> None:
    bags, labels = make_bags(24), write_labels(tmp_path, 24)
    few = {"folds": 2, "epochs": 2, "seeds": 2}
    train_run(quick(**few, workers=1), bags, labels, tmp_path / "one")
    train_run(quick(**few, workers=2), bags, labels, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def small() -> MilConfig:
    return quick(method="mean", folds=2, epochs=3, retrain=True)


# Each model is followed by a pause: the run is still going when it is killed.
KILLED = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_mil_run import make_bags, small
from cytofm_cli.mil.run import train_run
folder = Path(sys.argv[2])
train_run(small(), make_bags(), folder / "labels.csv", folder / "killed",
          progress=lambda done, total, name: (print(done, flush=True), time.sleep(0.3)))
"""


@pytest.mark.slow
def test_train_run__killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    labels = write_labels(tmp_path)
    train_run(small(), make_bags(), labels, tmp_path / "whole")
    rng = random.Random(1)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    for cells in (1, 2):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(cells):
            assert child.stdout is not None
            child.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert not (tmp_path / "killed").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_train_run__retrained_model_is_reported_and_not_shipped(tmp_path: Path) -> None:
    found = train_run(
        quick(method="mean", retrain=True, seeds=1, lr=0.03), make_bags(), write_labels(tmp_path),
        tmp_path / "run",
    ).metrics  # fmt: skip
    assert found["retrained"]["auc"]["value"] > 0.9
    ensemble = load_run(tmp_path / "run")
    assert len(ensemble.models) == 3
    assert all(card.seed >= 0 for card in ensemble.cards)


def test_train_run__splits_of_another_run_are_used_again(tmp_path: Path) -> None:
    labels = write_labels(tmp_path)
    train_run(quick(method="mean", epochs=1, seed=5), make_bags(), labels, tmp_path / "first")
    again = quick(method="max", epochs=1, seed=9, splits=str(tmp_path / "first" / "splits.csv"))
    other_encoder = make_bags(seed=3, width=5)
    train_run(again, other_encoder, labels, tmp_path / "second")
    first, second = ((tmp_path / r / "splits.csv").read_text() for r in ("first", "second"))
    assert first == second


def test_train_run__three_ordered_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["NILM", "LSIL", "HSIL"]
    bags, rows = [], []
    for i in range(45):
        x = rng.normal(size=(6, 4)).astype(np.float32)
        x[:, 0] += 6 * (i % 3)
        bags.append(Bag(f"s{i:02d}", x))
        rows.append(f"s{i:02d},{names[i % 3]},p{i // 3}")
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    config = quick(method="mean", seeds=1, epochs=15, lr=0.03, bag_loss="ordinal")
    found = train_run(config, bags, path, tmp_path / "run").metrics
    assert found["classes"] == names
    assert found["quadratic_kappa"]["value"] > 0.8
    assert found["auc_from_class_2"]["value"] > 0.95


def test_train_run__diverging_loss_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="diverged") as error:
        train_run(
            quick(method="mean", lr=1e38), make_bags(), write_labels(tmp_path), tmp_path / "run"
        )
    assert "--preset cytofm" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "abmill"}, UsageError, "no MIL method"),
        ({"device": "cuda:99"}, UsageError, "cuda:99"),
        ({"protocol": "column"}, InputError, "no `split` column"),
        ({"folds": 13}, LabelError, "fewer than the 13 folds"),
        ({"label": "grade"}, LabelError, "no column grade"),
    ],
)
def test_train_run__impossible_wish_leaves_nothing_behind(
    tmp_path: Path, settings: dict, error: type[Exception], message: str
) -> None:
    labels = write_labels(tmp_path)
    with pytest.raises(error, match=message):
        train_run(quick(**settings), make_bags(), labels, tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["labels.csv"]


def test_train_run__foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigMismatchError, match="not a RUN"):
        train_run(quick(), make_bags(), write_labels(tmp_path), tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_score__new_slides_without_labels(run: Path) -> None:
    ensemble = load_run(run)
    fresh = [Bag(f"new{b.slide_id}", b.features_ND) for b in make_bags(20, seed=7)]
    scores = [score_bag(ensemble, bag) for bag in fresh]
    assert [s.predicted for s in scores] == [str(i % 2) for i in range(20)]
    assert {(s.n_models, s.basis) for s in scores} == {(6, "new")}
    for bag, score in zip(fresh, scores, strict=True):
        assert score.columns == ("attention",)
        assert score.instances_NK.shape == (len(bag.features_ND), 1)
        assert score.instances_NK.sum() == pytest.approx(1, abs=1e-5)
    found = np.mean([s.instances_NK[:3, 0].sum() for s in scores[1::2]])
    assert found > 0.5  # the three instances that make a slide positive
    rows = list(csv.DictReader(scores_csv(scores, ("0", "1")).splitlines()))
    assert rows[1]["slide_id"] == "news01"
    assert list(rows[0])[1:5] == ["prob_0", "prob_1", "sd_0", "sd_1"]


def test_score__slide_of_the_run_is_judged_by_models_that_never_saw_it(run: Path) -> None:
    ensemble, bag = load_run(run), make_bags()[3]
    score = score_bag(ensemble, bag)
    assert (score.basis, score.n_models) == ("out-of-fold", 2)
    rows = csv.DictReader((run / "predictions.csv").read_text().splitlines())
    written = [float(r["prob_1"]) for r in rows if r["slide_id"] == bag.slide_id]
    assert score.p_C[1] == pytest.approx(np.mean(written), abs=2e-6)
    assert score_bag(ensemble, bag, out_of_fold=False).basis == "training"


def test_score__bag_that_does_not_fit_is_named(run: Path) -> None:
    ensemble = load_run(run)
    with pytest.raises(InputError, match="x: features are 5 wide, the models read 8"):
        score_bag(ensemble, Bag("x", np.zeros((2, 5), np.float32)))
    with pytest.raises(InputError, match=r"empty bag .*: x"):
        score_bag(ensemble, Bag("x", np.zeros((0, 8), np.float32)))


def test_load_run__model_of_another_head_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    other = tmp_path / "other"
    train_run(quick(method="mean", epochs=1), make_bags(), write_labels(tmp_path), other)
    target = copy / "models" / "fold1_seed0.safetensors"
    shutil.copy(other / "models" / "fold1_seed0.safetensors", target)
    with pytest.raises(WeightsError, match="'mean'"):
        load_run(copy)
    tensors = load_file(run / "models" / "fold1_seed0.safetensors")
    save_file(tensors, target)
    with pytest.raises(WeightsError, match="not a model of"):
        load_run(copy)
    target.write_bytes(b"\x00" * 100)
    with pytest.raises(WeightsError, match="damaged"):
        load_run(copy)
    with pytest.raises(InputError, match="not a finished RUN"):
        load_run(tmp_path)


def test_load_run__weights_that_do_not_fit_their_card(run: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors import safe_open

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "models" / "fold0_seed0.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    card = json.loads(metadata["cytofm"])
    card["head"]["hidden"] += 1
    save_file(load_file(path), path, {"cytofm": json.dumps(card)})
    with pytest.raises(WeightsError, match="do not fit head 'abmil'"):
        load_run(copy)


def test_train_run__tells_the_loss_of_each_model_and_pass(tmp_path: Path) -> None:
    bags, labels = make_bags(), write_labels(tmp_path)
    models: list[tuple[int, int, str]] = []
    passes: list[tuple[int, int, float]] = []
    train_run(
        quick(method="mean", seeds=1, epochs=3),
        bags,
        labels,
        tmp_path / "run",
        progress=lambda *told: models.append(told),
        passing=lambda *told: passes.append(told),
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [loss for _, _, loss in passes] == losses
    assert [done for done, _, _ in models] == list(range(1, len(models) + 1))
    last_of_first = next(row["loss"] for row in reversed(rows) if row.get("fold") == 0)
    assert any(f"loss {last_of_first:.3g}" in text for _, _, text in models)
