"""The study of `studies/cyto_ssl`: its arms exist, and its numbers are right on made-up results."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.config import resolve
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.registry import pretrain_methods

STUDY = Path(__file__).resolve().parents[1] / "studies" / "cyto_ssl"


@pytest.fixture(scope="module")
def study() -> Iterator[SimpleNamespace]:
    """Give the scripts of the study, which import each other by their names."""
    names = ("arms", "data", "heads", "judge", "outcomes", "places", "pretrain", "report")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(STUDY))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(STUDY))
        for name in names:
            sys.modules.pop(name, None)
            if before[name] is not None:
                sys.modules[name] = before[name]


def test_all_runs__each_once_and_each_can_be_begun(study) -> None:
    runs = list(study.arms.all_runs())
    assert len({run.name for run in runs}) == len(runs) == len(set(runs))
    for run in runs:
        tables = tomllib.loads(study.arms.as_toml(study.arms.settings(run)))
        config = resolve(PretrainConfig, "pretrain", tables["pretrain"])
        views = resolve(PretrainViews, "views", tables["views"])
        assert (config.method, config.seed, config.steps) == (run.method, run.seed, run.steps)
        views_of(config.method, views, config.encoder)
        own = pretrain_methods.load(run.method).config
        resolve(own, run.method, tables.get(run.method, {}))


def test_arms__of_one_seed_differ_in_their_parts_alone(study) -> None:
    run = study.arms.Run
    plain = study.arms.settings(run("dino", 1))["pretrain"]
    differences = {}
    for arm in ("dino+ncp", "dino+top-h", "dino+irpe", "dino+all"):
        own = study.arms.settings(run(arm, 1))["pretrain"]
        changed = {key: value for key, value in own.items() if value != plain[key]}
        assert changed.pop("name") == f"{arm.replace('+', '-')}-s1"
        differences[arm] = changed
    assert differences == {
        "dino+ncp": {"ncp": True},
        "dino+top-h": {"h": 8},
        "dino+irpe": {"irpe": True},
        "dino+all": {"ncp": True, "h": 8, "irpe": True},
    }


@pytest.mark.parametrize(("name", "arm"), [("best", "dino+top-h"), ("plain", "dino")])
def test_arms_of_the_gpu_day__are_those_of_the_study(study, name: str, arm: str) -> None:
    written = (STUDY / "gpu_day" / f"{name}.toml").read_text()
    assert written == study.arms.as_toml(study.arms.settings(study.arms.Run(arm, 0)))


def test_within__parts_each_stratum_by_hash(study) -> None:
    rows = [{"label": name, "group": f"{name}{i}"} for name in "ab" for i in range(9)]
    chosen = study.data.within(rows, "label", "group", 1 / 3)
    assert sorted(name[0] for name in chosen) == ["a"] * 3 + ["b"] * 3
    assert chosen == study.data.within(rows[::-1], "label", "group", 1 / 3)
    # SHA-256 begins with fb (P1), ac (P2), 9f (P3), e0 (P4).
    assert study.data.by_hash(["P1", "P2", "P3", "P4"], 0.5) == {"P2", "P3"}


def test_within_groups__auc_of_each_patient_that_has_both(study) -> None:
    scores = [("P1", False, 0.2), ("P1", False, 0.6), ("P1", True, 0.4), ("P1", True, 0.9)]
    scores += [("P2", False, 0.9), ("P3", True, 0.7), ("P3", False, 0.7)]
    assert study.judge.within_groups(scores) == {"P1": 0.75, "P3": 0.5}


def test_needle__counts_patients_whose_bag_with_the_parasite_scores_higher(study) -> None:
    def result(**patients: list[float]) -> dict[str, Any]:
        return {"bags": {"needle1": {"abmil": {"patients": patients}}}}

    some = [result(P1=[0.1, 0.9], P2=[0.8, 0.3], P3=[0.5, 0.5])]
    some.append(result(P1=[0.6, 0.4], P2=[0.1, 0.2]))
    assert study.outcomes.needle(some, "needle1", "abmil") == {"P1": 0.5, "P2": 0.5, "P3": 0.5}
    assert study.outcomes.needle(some[:1], "needle1", "abmil") == {"P1": 1.0, "P2": 0.0, "P3": 0.5}


def test_heads__each_has_a_rate(study) -> None:
    assert set(study.heads.RATES) == set(study.heads.ASKED["methods"])
    assert set(study.judge.STUDY["judge"]["heads"]) <= set(study.heads.RATES)


def test_compare__is_paired_over_patients(study) -> None:
    first = {f"P{i}": 0.6 for i in range(8)}
    second = {f"P{i}": 0.6 + 0.01 * (i + 1) for i in range(8)}
    gap = study.outcomes.compare(first, second)
    assert gap.value == pytest.approx(0.045)
    half = 2.3646243 * np.std(0.01 * np.arange(1, 9), ddof=1) / np.sqrt(8)
    assert (gap.low, gap.high) == pytest.approx((0.045 - half, 0.045 + half))
    # All eight signs agree: 2 of 256 ways to flip them are as far from zero.
    assert gap.p == pytest.approx(2 / 256, abs=0.002)
    assert study.outcomes.compare(first, first).p == 1


def test_sign_test_and_holm__by_hand(study) -> None:
    assert study.outcomes.sign_test([0.1, 0.2, 0.1, 0.3, 0.1, 0.2]) == pytest.approx(2 / 64)
    assert study.outcomes.sign_test([0.0]) == 1
    adjusted = study.outcomes.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_colours__are_mean_and_deviation_of_each_tile(study, tmp_path: Path, monkeypatch) -> None:
    field = np.full((64, 128, 3), 255, np.uint8)
    field[:, 64:] = (51, 102, 0)
    field[:32, 64:] = (153, 102, 0)
    Image.fromarray(field).save(tmp_path / "field.png")
    judged = tmp_path / "judged"
    cytofm.tile(
        tmp_path / "field.png", judged / "cric", tile_px=64, slide_mpp=0.25, mpp=0.25,
        foreground="none", pixels="lossless",
    )  # fmt: skip
    monkeypatch.setattr(study.heads, "JUDGED", judged)
    monkeypatch.setattr(study.heads, "WORK", tmp_path)
    with h5py.File(study.heads.colours() / "field.h5") as file:
        features, places = file["features"][:], file["coords"][:].tolist()
    of_place = {tuple(place): row for place, row in zip(places, features, strict=True)}
    np.testing.assert_allclose(of_place[0, 0], [1, 1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(of_place[64, 0], [0.4, 0.4, 0, 0.2, 0, 0], atol=1e-4)


def made_up(arm: str, seed: int, value: float, budget: float = 1.0) -> dict[str, Any]:
    patients = {f"P{i}": value + 0.01 * i for i in range(5)}
    cells = {
        name: {probe: {"value": value, "low": value, "high": value, "within": patients}
               for probe in ("linear", "knn20")}
        for name in ("malaria_nih", "sipakmed", "lbc_cdetector", "cric")
    }  # fmt: skip
    heads = {"patients": {f"P{i}": [0.4, value] for i in range(5)}}
    bags = {task: dict.fromkeys(("abmil", "max_score"), heads) for task in ("needle1", "control1")}
    return {"arm": arm, "seed": seed, "budget": budget, "cells": cells, "bags": bags}


def test_report__tables_and_picture_hold_the_numbers(study, tmp_path: Path, monkeypatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    rows = [made_up("handcrafted", 0, 0.7), made_up("dino", 0, 0.5), made_up("dino+all", 0, 0.6)]
    rows += [made_up("dino", 0, 0.45, 0.25), made_up("dino+all", 0, 0.5, 0.25)]
    for number, row in enumerate(rows):
        (results / f"{number}.json").write_text(json.dumps(row))
    heads = {"dino": {"mean": {"value": 0.51, "low": 0.4, "high": 0.6}}}
    (results / "heads").mkdir()
    (results / "heads" / "needle1.json").write_text(json.dumps(heads))
    page = tmp_path / "study.md"
    page.write_text("before\n<!-- numbers -->\nold\n<!-- /numbers -->\nafter\n")
    for name, value in (("RESULTS", results), ("PAGE", page), ("PICTURE", tmp_path / "a.svg")):
        monkeypatch.setattr(study.report, name, value)
    study.report.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| handcrafted (1) | 0.720 [" in text
    assert "| dino+all (1) | 0.620 [" in text
    assert "+0.100 [+0.100, +0.100]" in text
    assert "| 250 | 0.470 | 0.520 | +0.050" in text
    assert "| needle1 | dino | 0.510 [0.400, 0.600] | – |" in text
    assert (tmp_path / "a.svg").read_text().count("<circle") == 3 * 3
