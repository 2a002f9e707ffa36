"""The ablation of `examples/ablation`: its arms exist, and its differences are paired."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cytofm_cli.config import field_types, resolve
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews
from cytofm_cli.registry import pretrain_methods

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "examples" / "ablation" / "ablation.py"


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(flags: tuple[str, ...]) -> PretrainConfig:
    values: dict[str, object] = {}
    words = list(flags)
    while words:
        name = words.pop(0).removeprefix("--")
        if name in ("ncp", "irpe", "no-ncp", "no-irpe"):
            values[name.removeprefix("no-")] = not name.startswith("no-")
        else:
            values[name] = words.pop(0)
    assert values.keys() <= field_types(PretrainConfig).keys() | field_types(PretrainViews).keys()
    return resolve(PretrainConfig, "pretrain", values)


def test_arms__add_one_part_each_and_then_all(ablation):
    arms = {name: settings_of(flags) for name, flags in ablation.arms(8).items()}
    parts = {name: (a.ncp, a.h, a.irpe) for name, a in arms.items()}
    assert parts["dino"] == (False, 0, False)
    assert parts["dino+ncp"] == (True, 0, False)
    assert parts["dino+top-h"] == (False, 8, False)
    assert parts["dino+irpe"] == (False, 0, True)
    for method in ("simclr", "moco", "byol", "dino", "ibot"):
        assert method in pretrain_methods.names()
        assert arms[method].method == arms[f"{method}+all"].method == method
        assert parts[method] == (False, 0, False)
        assert parts[f"{method}+all"] == (True, 8, True)
    assert len(arms) == 13
    assert set(ablation.BASELINES) | set(ablation.BASELINES.values()) == set(arms)


def test_arms__flags_for_dino_go_to_dino_and_ibot_alone(ablation):
    plain, more = ablation.arms(8), ablation.arms(8, ("--n-local", "4"))
    changed = {name for name in plain if plain[name] != more[name]}
    assert changed == {name for name in plain if name.startswith(("dino", "ibot"))}
    assert more["ibot+all"] == (*plain["ibot+all"], "--n-local", "4")


def test_parse__what_follows_two_dashes_is_for_pretrain(ablation):
    words = ["stores", "-o", "out", "--points", "p.csv", "--groups", "g.csv", "--labels",
             "abnormal=a.csv:2", "--labels", "lsil_plus=l.csv", "--dino-flags",
             "--set prototypes=64 --n-local 2", "--", "--steps", "3"]  # fmt: skip
    a = ablation.parse(words)
    assert a.pretrain == ["--steps", "3"]
    assert a.labels == {"abnormal": "a.csv", "lsil_plus": "l.csv"}
    assert a.folds == {"abnormal": 2, "lsil_plus": 5}
    assert a.dino_flags == ["--set", "prototypes=64", "--n-local", "2"]
    assert ablation.parse(words[:-3]).pretrain == []


def test_judge__difference_is_paired_and_averaged_over_seeds(ablation):
    slides = [f"s{i // 6:02}" for i in range(120)]
    y_N = np.arange(120) % 2
    noise = np.random.default_rng(0).normal(size=(3, 120))

    def read(name: str, seed: int):
        strength = {"dino": 0.5, "dino+ncp": 3.0, "dino+irpe": 0.5}[name]
        return slides, y_N, strength * y_N + noise[seed]

    table = ablation.judge(read, ["dino", "dino+ncp", "dino+irpe"], 3, replicates=200)
    assert table["dino"]["auc"] == pytest.approx(np.mean(table["dino"]["seeds"]))
    gap = table["dino+ncp"]["against"]
    assert gap["difference"] == pytest.approx(table["dino+ncp"]["auc"] - table["dino"]["auc"])
    assert gap["low"] > 0.1 and gap["p_holm"] < 0.05
    same = table["dino+irpe"]["against"]  # the same predictions: no difference in any replicate
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert "| dino+ncp |" in ablation.markdown({"cells": table})


def run(*words: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ablation__two_arms_from_fields_to_the_table(simulated: Path, tmp_path: Path) -> None:
    """Run what the README says, small: two fields of each of four patients, two steps."""
    stores, out = tmp_path / "stores", tmp_path / "out"
    tile = ("--slide-mpp", 0.25, "--tile-px", 256)
    run("-m", "cytofm_cli", "tile", simulated / "slides", "-o", stores, *tile)
    run("-m", "cytofm_cli", "detect", stores)
    labels = simulated / "labels.csv"
    words = (FILE, stores, "-o", out, "--points", simulated / "points.csv", "--groups", labels,
             "--labels", f"odd={labels}:2", "--seeds", 1, "--h", 4,
             "--only", "simclr,simclr+all", "--crop-um", 16)  # fmt: skip
    run(*words, "--", "--global-px", 32, "--batch", 4, "--steps", 2)
    found = json.loads((out / "results.json").read_text())
    assert list(found) == ["cells, linear", "cells, knn20", "odd, ABMIL"]
    for task in found.values():
        assert set(task) == {"simclr", "simclr+all"}
        assert task["simclr+all"]["against"]["arm"] == "simclr"
        assert 0 <= task["simclr"]["auc"] <= 1
    table = (out / "table.md").read_text()
    assert len(table.splitlines()) == 4
