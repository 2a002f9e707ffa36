"""`generate counterfactual` and `restain` as a user runs them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.api.generate_uses import scorer_of
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.config import GenerateConfig
from cytofm_cli.generate.run import train

from .conftest import make_store
from .test_generate_cli import SMALL

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"sampler": "euler", "steps": 2, "device": "cpu"}


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number in range(4):
        make_store(folder, f"s{number}", range(8 * number, 8 * number + 8))
    return folder


@pytest.fixture(scope="module")
def runs(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give generators by their condition, and cell classifiers by what is special of them."""
    folder = tmp_path_factory.mktemp("uses")
    paths = sorted(stores.glob("*.zarr"))
    for kind in ("encoder", "class"):
        align = "cytofm-tiny" if kind == "encoder" else "none"
        train(
            GenerateConfig(**SMALL, condition=kind, align=align, cell_um=8.0), paths, folder / kind
        )
    for name, how in {
        "linear": {},
        "knn": {"model": "one-class", "normal": ("dark",), "distance": "knn"},
        "handcrafted": {"encoder": "handcrafted"},
    }.items():
        settings = {"penalty": 0.1} if name != "knn" else {}
        cytofm.train_cells(stores, None, folder / name, crop_um=8.0, folds=2, **how, **settings)
    names = ("encoder", "class", "linear", "knn", "handcrafted")
    return {name: folder / name for name in names}


def test_counterfactual__scores_conditions_as_asked_and_pictures_as_they_are(
    runs: dict[str, Path], stores: Path, tmp_path: Path
) -> None:
    like = [f"{stores / 's1.zarr'}:0", f"{stores / 's2.zarr'}:3"]  # a dark and a light cell
    settings = {"like": like, "n": 2, "frames": 3, "to": 0.8, **QUICK}
    report = cytofm.make_counterfactual(
        runs["encoder"], runs["linear"], tmp_path / "strips", judge=runs["handcrafted"], **settings
    )
    rows = table_of(tmp_path / "strips" / "scores.csv")
    assert [(row["cell"], row["noise"], row["frame"]) for row in rows] == [
        (cell, str(noise), str(frame)) for cell in like for noise in range(2) for frame in range(3)
    ]
    assert [cell["cell"] for cell in report.metrics["cells"]] == like
    for cell, first in zip(report.metrics["cells"], (rows[0], rows[6]), strict=True):
        assert float(first["p_condition"]) == pytest.approx(cell["p"], rel=1e-4)
        assert float(first["moved"]) == 0
    odds = np.array([float(row["log_odds_condition"]) for row in rows]).reshape(4, 3)
    assert odds[:, 2] == pytest.approx(np.log(4), abs=0.02)
    assert odds[:, 1] == pytest.approx((odds[:, 0] + odds[:, 2]) / 2, abs=0.02)
    assert report.metrics["class"] == "light" and report.metrics["strips"] == 4
    # The picture's score is what the classifier says of that PNG, encoded again.
    encoder = cytofm.load_encoder("cytofm-tiny")
    image = Image.open(tmp_path / "strips" / rows[4]["file"])
    seen = encoder.embed(np.asarray(image)[None])
    wanted = scorer_of(runs["linear"], None).odds("s1")(seen)[0][0]
    assert float(rows[4]["log_odds_image"]) == pytest.approx(wanted, abs=0.05)
    for file in (image, Image.open(tmp_path / "strips" / "strip.png")):
        assert (file.text["Synthetic"] == "true" and "moved towards" in file.text["Source"]) or (
            "the first of each row is the cell itself" in file.text["Source"]
        )
    assert {"followed", "score", "cells"} <= report.metrics["judge"].keys()
    assert json.loads((tmp_path / "strips" / "metrics.json").read_text()) == report.metrics
    again = cytofm.make_counterfactual(
        runs["encoder"], runs["linear"], tmp_path / "strips", judge=runs["handcrafted"], **settings
    )
    assert again.skipped and again.metrics == report.metrics


def test_counterfactual__unmoved_and_from_the_cell_itself_shows_the_cell(
    runs: dict[str, Path], stores: Path, tmp_path: Path
) -> None:
    settings = {"like": [f"{stores / 's1.zarr'}:0"], "frames": 2, "strength": 0.0, **QUICK}
    cytofm.make_counterfactual(runs["encoder"], runs["linear"], tmp_path / "strips", **settings)
    first, last = (
        np.asarray(Image.open(tmp_path / "strips" / "images" / f"0000{n}.png")) for n in (0, 1)
    )
    assert np.array_equal(first, last)  # nothing is drawn anew, whatever the condition


@pytest.mark.parametrize(
    ("generator", "score", "changes", "error", "said"),
    [
        ("class", "linear", {}, UsageError, "this generator's condition is class"),
        ("encoder", "knn", {}, UsageError, "it has no gradient"),
        ("encoder", "handcrafted", {}, InputError, r"reads vectors of width \d+ .handcrafted."),
        ("encoder", "linear", {"towards": "HSIL"}, UsageError, "learnt no class HSIL"),
        ("encoder", "linear", {"like": ["s1.zarr:8"]}, InputError, "has 8 cells, counted from 0"),
        ("encoder", "linear", {"like": ["s1.zarr"]}, UsageError, "must be STORE:NUMBER"),
        ("encoder", "encoder", {}, InputError, "neither a RUN of `cytofm cells train` nor"),
    ],
)
def test_counterfactual__what_it_cannot_do_is_one_line(
    runs: dict[str, Path],
    stores: Path,
    tmp_path: Path,
    generator: str,
    score: str,
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    settings: dict[str, Any] = {"like": ["s1.zarr:0"], **QUICK, **changes}
    settings["like"] = [str(stores / word) for word in settings["like"]]
    with pytest.raises(error, match=said):
        cytofm.make_counterfactual(runs[generator], runs[score], tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_restain__measures_each_strength_beside_the_cell_and_its_colours(
    runs: dict[str, Path], stores: Path, tmp_path: Path
) -> None:
    settings = {"like": stores / "s0.zarr", "n": 3, "strength": (0.0, 1.0), "nucleus": "dark"}
    report = cytofm.restain_cells(
        runs["encoder"], stores / "s1.zarr", tmp_path / "out", **settings, **QUICK
    )
    rows = report.metrics["rows"]
    assert list(rows) == ["as it is", "colours moved only", "0", "1"]
    assert rows["as it is"]["dice"] == 1 and rows["as it is"]["lost"] == 0
    assert (report.metrics["cells"], report.metrics["other_cells"]) == (3, 8)
    assert rows["colours moved only"]["dice"] > 0.9
    table = table_of(tmp_path / "out" / "cells.csv")
    assert [row["cell"] for row in table[:3]] == [
        f"{stores / 's0.zarr'}:{number}" for number in (0, 4, 7)
    ]
    assert len(table) == 12 and [bool(row["file"]) for row in table] == [False] * 6 + [True] * 6
    mean = np.mean([float(row["dice"]) for row in table if row["how"] == "1"])
    assert mean == pytest.approx(rows["1"]["dice"], rel=1e-4)
    text = Image.open(tmp_path / "out" / "images" / "00003.png").text
    assert text["Synthetic"] == "true" and text["Source"].endswith("strength 1")
    # At full noise it is plain sampling under a cell's condition, whatever the cell was.
    of_cell = {**settings, "strength": (1.0,)}
    for name, like in (("a", "s0.zarr"), ("b", "s2.zarr")):
        cytofm.restain_cells(
            runs["encoder"], f"{stores / 's1.zarr'}:5", tmp_path / name,
            **{**of_cell, "like": stores / like}, **QUICK,
        )  # fmt: skip
    first, second = (
        np.asarray(Image.open(tmp_path / name / "images" / "00000.png")) for name in "ab"
    )
    assert np.array_equal(first, second)


def test_restain__what_it_cannot_do_is_one_line(
    runs: dict[str, Path], stores: Path, tmp_path: Path
) -> None:
    a, b = stores / "s0.zarr", stores / "s1.zarr"
    with pytest.raises(UsageError, match="this generator's condition is class"):
        cytofm.restain_cells(runs["class"], b, tmp_path / "out", like=a, **QUICK)
    with pytest.raises(UsageError, match=r"one cell .STORE:NUMBER., or whole stores"):
        cytofm.restain_cells(runs["encoder"], [f"{b}:0", a], tmp_path / "out", like=a, **QUICK)
    with pytest.raises(InputError, match="counted from 0"):
        cytofm.restain_cells(runs["encoder"], f"{b}:99", tmp_path / "out", like=a, **QUICK)
    with pytest.raises(InputError, match="no such"):
        cytofm.restain_cells(runs["encoder"], b, tmp_path / "out", like=stores / "no.zarr", **QUICK)
    assert not list(tmp_path.iterdir())
