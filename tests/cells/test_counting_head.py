"""The head that counts classes: by hand, and as a MIL run whose bags are class probabilities."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cytofm_cli as cytofm
from cytofm_cli.cli.mil import _heads
from cytofm_cli.errors import InputError
from cytofm_cli.mil.bag import Bag, notes
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.base import make_head
from cytofm_cli.mil.config import BenchmarkConfig
from cytofm_cli.mil.methods.count import Count
from cytofm_cli.mil.origin import Origin
from cytofm_cli.store import io

from .drawn_cells import Cohort

BAG = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.4, 0.35, 0.25], [0.0, 0.0, 0.0]]])


def bag_vector(settings: dict, x: torch.Tensor = BAG) -> tuple[np.ndarray, np.ndarray]:
    out = make_head("count", x.shape[2], 2, settings)[0](x)
    return out.embedding_BKE[0, 0].detach().numpy(), out.attention_BKN[0, 0].detach().numpy()


def clr(counts: list[float]) -> np.ndarray:
    logs = np.log(np.array(counts) + 0.5)
    return logs - logs.mean()


def test_shares__are_centred_log_ratios_of_the_counts() -> None:
    soft, seen = bag_vector({})
    assert soft == pytest.approx(clr([1.5, 1.25, 0.25]), abs=1e-6)
    assert seen == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])  # of the last one nothing is said
    hard, _ = bag_vector({"hard": True})
    assert hard == pytest.approx(clr([2, 1, 0]), abs=1e-6)
    gated, seen = bag_vector({"hard": True, "gate": 0.5})
    assert gated == pytest.approx(clr([1, 1, 0]), abs=1e-6)
    assert seen == pytest.approx([0.5, 0.5, 0, 0])


def test_top__is_the_mean_of_the_most_certain_cells() -> None:
    top, seen = bag_vector({"by": "top", "k": 2})
    means = np.array([(0.9 + 0.4) / 2, (0.8 + 0.35) / 2, (0.25 + 1e-4) / 2])
    assert top == pytest.approx(np.log(means / (1 - means)), abs=1e-4)
    assert seen.sum() == pytest.approx(1)
    distance = torch.tensor([[[1.0], [9.0], [-3.0], [4.0]]])
    top, seen = bag_vector({"k": 2}, distance)  # one column: as it is
    assert top.tolist() == [6.5]
    assert seen.tolist() == [0, 0.5, 0, 0.5]
    assert bag_vector({"k": 50}, distance)[0].tolist() == [11 / 4]


def cohort_of_shares(folder: Path, encoder: str = "cells:r") -> tuple[list[Bag], Path]:
    """Thirty slides of 400 cells; abnormal ones are 2 % of the positive slides, else 0.2 %."""
    rng = np.random.default_rng(0)
    bags, rows = [], ["slide_id,label,group"]
    for number in range(30):
        share = (0.002, 0.02)[number % 2]
        ill_N = rng.random(400) < share
        p_N = np.where(ill_N, rng.uniform(0.7, 1, 400), rng.uniform(0, 0.02, 400))
        p_NC = np.stack([1 - p_N, p_N], 1).astype(np.float32)
        origin = Origin(encoder=encoder, unit="cell")
        bags.append(Bag(f"s{number}", p_NC, None, origin, "new"))
        rows.append(f"s{number},{('NILM', 'HSIL')[number % 2]},p{number}")
    path = folder / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return bags, path


def test_run__tells_a_rare_class_by_its_share_and_is_compared_with_the_mean(tmp_path: Path) -> None:
    bags, labels = cohort_of_shares(tmp_path)
    how = {"unit": "cell", "seeds": 1, "bootstrap": 100, "folds": 3}
    report = cytofm.train(bags, labels, tmp_path / "count", method="count", **how)
    assert report.metrics["auc"]["value"] > 0.95
    assert not [line for line in report.metrics["notes"] if "held them" in line]
    config = (tmp_path / "count" / "config.toml").read_text()
    assert 'encoder = "cells:r"' in config
    assert "standardise = false" in config


def test_run__says_which_slides_have_no_cell_behind_the_gate(tmp_path: Path) -> None:
    bags, labels = cohort_of_shares(tmp_path)
    p_NC = np.tile(np.float32([0.6, 0.4]), (400, 1))
    bags[4] = replace(bags[4], features_ND=p_NC + np.float32([[0.0, 0.01]]))
    how = {"unit": "cell", "seeds": 1, "bootstrap": 100, "folds": 3, "method": "count"}
    report = cytofm.train(bags, labels, tmp_path / "count", head_settings={"gate": 0.7}, **how)
    said = "1 of 30 slide(s) have no cell whose best class reaches gate = 0.7, and get the same"
    assert [line for line in report.metrics["notes"] if line.startswith(said) and "s4" in line]
    bag_of = {bag.slide_id: bag.features_ND for bag in bags}
    share, strict = ({"by": "share", "gate": gate} for gate in (0.6, 0.9))
    assert Count.notes([share], bag_of) == []
    assert Count.notes([strict, share], bag_of) == []  # a fold may choose the lower gate
    assert len(Count.notes([strict, strict], bag_of)) == 1
    assert Count.notes([strict, {"by": "top", "gate": 1.0}], bag_of) == []
    assert Count.notes([strict], {"one": p_NC[:, :1]}) == []
    (abstained,) = Count.notes([{"by": "share", "gate": 0.0}], {"a": 0 * p_NC, "b": p_NC})
    assert abstained.startswith("1 of 2 slide(s) have no cell that was classified")


def test_benchmark_of_all_heads__is_of_those_that_read_embeddings() -> None:
    heads = _heads(BenchmarkConfig(method=("all",)))
    assert "count" not in heads
    assert {"abmil", "mean", "max"} <= set(heads)
    assert _heads(BenchmarkConfig(method=("count", "mean"))) == ("count", "mean")


def test_run__refuses_embeddings(tmp_path: Path) -> None:
    bags, labels = cohort_of_shares(tmp_path, "handcrafted")
    with pytest.raises(InputError, match="30 slide"):
        cytofm.train(bags, labels, tmp_path / "run", method="count", unit="cell")
    assert not (tmp_path / "run").exists()


def test_notes__say_which_slides_the_classifier_has_seen(tmp_path: Path) -> None:
    bags, _ = cohort_of_shares(tmp_path)
    assert notes(bags) == []
    seen = [replace(bags[0], basis="training"), replace(bags[1], basis="out-of-fold"), *bags[2:]]
    first, second = notes(seen)
    assert first.startswith("the classifier of cells has learnt from 1 of these slides")
    assert second.startswith("1 slide(s) were classified by classifiers")


def test_stores__classes_are_bags_that_are_scored_and_exported(
    cohort: Cohort, tmp_path: Path
) -> None:
    stores = Path(shutil.copytree(cohort.stores, tmp_path / "stores"))
    how = {"encoder": "handcrafted", "crop_um": 16.0, "replicates": 100, "penalty": 0.1}
    cytofm.train_cells(stores, cohort.labels, tmp_path / "cells", **how)
    cytofm.apply_cells(tmp_path / "cells", stores).raise_failures()
    for number in range(5):
        shutil.copytree(stores / f"s{number}.zarr", stores / f"s{number + 5}.zarr")
    with pytest.raises(InputError, match="of cells"):
        load_bags(stores, "cells", "tile")
    bags = load_bags(stores, "cells", "cell")
    assert [bag.encoder for bag in bags] == ["cells:cells"] * 10
    assert {bag.basis for bag in bags} == {"new", "out-of-fold"}
    assert all(math.isclose(bag.features_ND.sum(), 9, rel_tol=1e-5) for bag in bags)
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\n" + "".join(f"s{i},{'ab'[i % 2]}\n" for i in range(10)))
    run = tmp_path / "count"
    how = {"method": "count", "unit": "cell", "seeds": 1, "bootstrap": 100, "folds": 2}
    report = cytofm.train(stores, labels, run, **how)
    assert any("had held them out" in line for line in report.metrics["notes"])
    with pytest.warns(cytofm.CytofmWarning):
        scores = cytofm.score(run, stores, tmp_path / "scores.csv")
    assert len(scores) == 10
    store = io.open_store(stores / "s0.zarr")
    assert list(store.steps["attention/count/cell"].made_from or {}) == ["classes/cells"]
    cytofm.export(stores / "s0.zarr", tmp_path / "out", to=("geojson", "csv"))
    head = (tmp_path / "out" / "s0.csv").read_text().splitlines()[0]
    assert "probability of LSIL" in head
    assert "attention for the slide's answer" in head
    collection = json.loads((tmp_path / "out" / "s0.geojson").read_text())
    said = {of["properties"]["classification"]["name"] for of in collection["features"]}
    assert said <= {"NILM", "LSIL", "HSIL"}
    assert len(said) > 1
