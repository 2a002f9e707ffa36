"""`cytofm mil benchmark` and `compare`: what many runs say together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.special import softmax

from cytofm_cli.mil.artefacts import load_model
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.train import predict_logits

from .mil_runs import rows_of, train


def test_mil_benchmark__says_what_is_learnt(here, bags: Path) -> None:
    labels = bags.parent / "labels.csv"
    rows = [line.rsplit(",", 1)[0] for line in labels.read_text().splitlines()]
    labels.write_text("\n".join(rows).replace("neg", "normal").replace("pos", "abnormal"))
    words = ("mil", "benchmark", "--bags", bags, "--labels", labels, "-o", bags.parent / "bench")
    few = ("--folds", 3, "--seeds", 1, "--epochs", 1, "--method", "mean", "--workers", 1)
    for more in (["--dry-run"], []):
        done = here(*words, *few, *more)
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        assert "positive class: 'abnormal' ('normal' says that nothing was found)" in said
        assert "12 slides of 12 groups (every slide taken as a patient)" in said
        assert any(line.endswith(": encoder not stated, unit tile") for line in said)
        assert any("every slide is taken as a patient of its own" in line for line in said)
    assert "recall of 'abnormal'" in done.stderr
    assert "6 of 12 groups are 'normal'" in done.stderr


def test_mil_compare__says_on_how_few_groups_it_rests(here, bags: Path) -> None:
    runs = []
    for method in ("mean", "max"):
        few = ("--folds", 3, "--seeds", 1, "--epochs", 2, "--method", method, "-q")
        words = ("--bags", bags, "--labels", bags.parent / "labels.csv", "-o", bags.parent / method)
        assert here("mil", "train", *words, *few).returncode == 0
        runs.append(bags.parent / method)
    done = here("mil", "compare", *runs)
    assert done.returncode == 0, done.stderr
    assert "positive class: 'pos'" in done.stderr
    assert "warning: 6 of 6 groups are " in done.stderr


def benchmark(here, bags: Path, *more: object):
    words = ("mil", "benchmark", "--bags", bags, "--labels", bags.parent / "labels.csv")
    few = ("--folds", 3, "--seeds", 1, "--epochs", 1, "--workers", 1, "--bootstrap", 100)
    return here(*words, "-o", bags.parent / "bench", *few, *more)


def test_mil_benchmark__one_spelling_names_heads_units_and_encoders(here, bags: Path) -> None:
    config = bags.parent / "c.toml"
    config.write_text('[mil]\nmethod = ["max"]\n')
    done = benchmark(here, bags, "--config", config, "--unit", "cell", "--encoder", "uni")
    assert done.returncode == 0, done.stderr
    table = bags.parent / "bench" / "table.csv"
    (row,) = rows_of(table)
    kind = (row["bags"], row["encoder"], row["unit"], row["method"])
    assert kind == ("uni cell", "uni", "cell", "max")
    more = ("--method", "mean", "--method", "max,abmil", "--unit", "cell", "--encoder", "uni")
    done = benchmark(here, bags, *more)
    assert done.returncode == 0, done.stderr
    assert [row["method"] for row in rows_of(table)] == ["mean", "max", "abmil"]
    for old in ("methods", "units", "encoders"):
        done = benchmark(here, bags, f"--{old}", "x")
        assert done.returncode == 2
        assert f"--{old}" in done.stderr
        assert f"--{old[:-1]}" in done.stderr.replace(f"--{old}", "")


def test_mil_compare__one_run_or_one_twice_is_a_usage_error(here, bags: Path) -> None:
    assert train(here, bags, "--epochs", 1).returncode == 0
    run = bags.parent / "run"
    alone = here("mil", "compare", run)
    assert alone.returncode == 2, alone.stderr
    assert "two runs or more, here 1" in alone.stderr
    (bags.parent / "alias").symlink_to(run)
    twice = here("mil", "compare", run, bags.parent / "alias")
    assert twice.returncode == 2, twice.stderr
    assert "is named twice" in twice.stderr


def split_off(bags: Path, n: int) -> Path:
    """Move the labels of the last patients into a table of their own, and return it."""
    labels = bags.parent / "labels.csv"
    head, *rows = labels.read_text().splitlines()
    labels.write_text("\n".join([head, *rows[:-n]]) + "\n")
    other = bags.parent / "other.csv"
    other.write_text("\n".join([head, *rows[-n:]]) + "\n")
    return other


def test_mil_benchmark__ensemble_against_one_model_on_other_slides(here, bags: Path) -> None:
    other, bench = split_off(bags, 4), bags.parent / "bench"
    more = ("--method", "mean", "--allow-missing", "--ensemble", "--outside-labels", other)
    more += ("--encoder", "uni")
    done = benchmark(here, bags, *more)
    assert done.returncode == 0, done.stderr
    folder = bench / "ensemble" / "uni_tile-mean"
    record = json.loads((folder / "ensemble.json").read_text())
    assert (record["n_slides"], record["n_groups"], record["models"]) == (4, 2, 3)
    assert record["averaged"].startswith("probabilities")
    assert record["mean"]["value"] == 1.0
    rows = rows_of(folder / "predictions.csv")
    assert [row["slide_id"] for row in rows] == ["s08", "s09", "s10", "s11"]
    # The mean is what `mil score` says.
    table = bags.parent / "scores.csv"
    words = ("mil", "score", bench / "runs" / "uni_tile-mean", bags, "-o", table)
    assert here(*words, "--encoder", "uni").returncode == 0
    scored = {row["slide_id"]: float(row["prob_pos"]) for row in rows_of(table)}
    for row in rows:
        assert float(row["mean_pos"]) == pytest.approx(scored[row["slide_id"]], abs=1e-6)
    model, _ = load_model(folder / "whole.safetensors")
    logits = predict_logits(model, load_bags(bags, "uni", "tile")[8:], "cpu")
    assert [float(r["one_pos"]) for r in rows] == pytest.approx(
        softmax(logits, axis=1)[:, 1].tolist(), abs=1e-5
    )
    assert "| uni tile | mean | 1.000 [" in (bench / "ensemble.md").read_text()
    stamp = (folder / "whole.safetensors").stat().st_mtime_ns
    assert benchmark(here, bags, *more).returncode == 0
    assert (folder / "whole.safetensors").stat().st_mtime_ns == stamp  # nothing done again


def test_mil_benchmark__ensemble_refuses_slides_that_a_run_knows(here, bags: Path) -> None:
    labels = bags.parent / "labels.csv"
    more = ("--method", "mean", "--ensemble", "--outside-labels", labels)
    done = benchmark(here, bags, *more)
    assert done.returncode == 3, done.stderr
    assert "was trained on 12 of the outside slides" in done.stderr
    alone = benchmark(here, bags, "--method", "mean", "--ensemble")
    assert alone.returncode == 2
    assert "--outside-labels" in alone.stderr
    odd = bags.parent / "odd.csv"
    odd.write_text(labels.read_text().replace("s00,neg", "s00,other"))
    done = benchmark(here, bags, "--method", "mean", "--ensemble", "--outside-labels", odd)
    assert done.returncode == 3
    assert "class 'other' is not one of neg, pos" in done.stderr
