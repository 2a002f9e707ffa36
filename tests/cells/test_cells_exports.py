"""Classes of a RUN in the files of other programs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.errors import StoreError
from cytofm_cli.store import io

from .drawn_cells import Cohort, embed_cells


@pytest.fixture(scope="module")
def store(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> io.Store:
    root = tmp_path_factory.mktemp("exports")
    path = Path(shutil.copytree(cohort.stores / "s4.zarr", root / "stores" / "s4.zarr"))
    how = {"encoder": "handcrafted", "crop_um": 16.0, "replicates": 100, "penalty": 0.1}
    cytofm.train_cells(cohort.stores, cohort.labels, root / "sure", **how)
    embed_cells(path, cell_um=16.0)
    cytofm.apply_cells(root / "sure", path).raise_failures()
    p_N = io.open_store(path).read("classes/sure/probability").max(1)
    threshold = float(np.sort(p_N)[2])
    cytofm.apply_cells(root / "sure", path, abstain=threshold, overwrite=True).raise_failures()
    return io.open_store(path)


def test_every_format__has_class_and_probabilities(store: io.Store, tmp_path: Path) -> None:
    cytofm.export(store.path, tmp_path, to=("csv", "geojson", "h5ad"))
    p_NC, class_N = (store.read(f"classes/sure/{name}") for name in ("probability", "class"))
    silent_N = store.read("classes/sure/abstained") == 1
    assert silent_N.sum() == 2
    names = np.array(store.classes_record().classes)
    said = np.where(silent_N, "abstained", names[class_N]).tolist()
    rows = list(csv.DictReader((tmp_path / "s4.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == said
    written = [[float(row[f"probability of {name}"]) for name in names] for row in rows]
    assert np.array(written) == pytest.approx(p_NC, abs=1e-5)
    features = json.loads((tmp_path / "s4.geojson").read_text())["features"]
    assert [of["properties"]["classification"]["name"] for of in features] == said
    measured = [of["properties"]["measurements"]["probability of HSIL"] for of in features]
    assert measured == pytest.approx(p_NC[:, 2].tolist(), rel=1e-4, abs=1e-6)
    data = anndata.read_h5ad(tmp_path / "s4.h5ad")
    assert data.obs["class"].tolist() == said
    assert data.obs["probability of NILM"].to_numpy() == pytest.approx(p_NC[:, 0])


def test_classes_detector__leaves_the_classes_that_were_found(
    store: io.Store, tmp_path: Path
) -> None:
    cytofm.export(store.path, tmp_path, to="csv", classes="detector")
    rows = list(csv.DictReader((tmp_path / "s4.csv").read_text().splitlines()))
    assert {row["class"] for row in rows} == {"nucleus"}
    assert not [name for name in rows[0] if name.startswith("probability of")]


def test_classes_of_no_such_run__are_refused(store: io.Store, tmp_path: Path) -> None:
    with pytest.warns(cytofm.CytofmWarning), pytest.raises(StoreError, match="other"):
        cytofm.export(store.path, tmp_path, to="csv", classes="other")
    assert not list(tmp_path.glob("*.csv"))
