"""The study of `studies/tiny`: its settings are ones, and its tables say what its files say."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cytofm_cli.config import resolve
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.recipes import recipe_of

STUDY = Path(__file__).resolve().parents[1] / "studies" / "tiny"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """Give the script that writes the tables."""
    spec = importlib.util.spec_from_file_location("tiny_report", STUDY / "report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(STUDY.glob("*.toml")), ids=lambda path: path.stem)
def test_settings__are_those_of_the_command(path: Path) -> None:
    tables = tomllib.loads(path.read_text())
    config = resolve(PretrainConfig, "pretrain", tables["pretrain"])
    method = pretrain_methods.load(config.method)
    resolve(method.config, config.method, tables.get(config.method, {}))
    views = resolve(ViewsConfig, "views", {"recipe": config.method, **tables.get("views", {})})
    assert len(recipe_of(views).views) == 3  # two of the student, one of the teacher


def metrics(auc: float, gap: float) -> dict[str, Any]:
    """Give what `evaluate probe` writes of four encoders: `gap` is second minus first."""
    encoders = ("cytofm-tiny-2", "handcrafted", "cytofm-tiny", "sr-vit-nano-random0")
    value = {"auc": {"value": auc, "low": auc - 0.1, "high": auc + 0.05}}
    task = {"encoders": {name: {"probes": {"linear": value, "knn20": value}} for name in encoders}}
    rows = [
        {"first": first, "second": second, "probe": probe, "metric": metric, "value": gap,
         "low": gap - 0.25, "high": gap + 0.5, "p": 0.5, "p_adjusted": 1.0}
        for i, first in enumerate(encoders)
        for second in encoders[i + 1 :]
        for probe in ("linear", "knn20")
        for metric in ("auc", "balanced_accuracy")
    ]  # fmt: skip
    return {
        "groups": 7, "instances": 70, "crop_um": 20.0, "tasks": {"x": task}, "comparisons": rows,
    }  # fmt: skip


def test_tables__say_what_the_probes_say(report: ModuleType, tmp_path: Path) -> None:
    gaps = {"malaria_nih": -0.75, "sipakmed": -0.125, "lbc_cdetector": 0.125, "cric": 0.5}
    for name, gap in gaps.items():
        (tmp_path / "judged" / name).mkdir(parents=True)
        (tmp_path / "judged" / name / "metrics.json").write_text(json.dumps(metrics(0.75, gap)))
    (tmp_path / "needle" / "needle1-cytofm-tiny-2").mkdir(parents=True)
    (tmp_path / "needle" / "needle1-cytofm-tiny-2" / "metrics.json").write_text(
        json.dumps({"auc": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 3}})
    )
    found = report.collect(tmp_path)
    assert found["bags"] == {"needle1-cytofm-tiny-2": {"value": 0.9, "low": 0.8, "high": 0.95}}
    page = report.page(found)
    row = "| malaria cells, 7 patients | linear | "
    assert row + " | ".join(["0.750 [0.650, 0.800]"] * 4) + " |" in page
    # Its own minus the other, so that ends change places; bold where 0 is outside.
    assert row + " | ".join(["**+0.750** [+0.250, +1.000]"] * 3) + " |" in page
    assert "| SIPaKMeD, 5 classes, 7 blocks | k-NN | +0.125 [−0.375, +0.375] |" in page
    assert "| CRIC, abnormal or not, 7 groups | linear | **−0.500** [−1.000, −0.250] |" in page


def test_page__holds_the_tables_of_the_file(report: ModuleType) -> None:
    page = report.PAGE.read_text()
    inside = page.partition(report.BEGIN + "\n")[2].partition(report.END)[0]
    assert inside == report.page(json.loads(report.RESULTS.read_text()))
