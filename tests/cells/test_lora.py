"""Low-rank updates learnt from cells: hand-worked losses, the same bytes, going on, applying."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cytofm_cli as cytofm
from cytofm_cli.cells import lora, network
from cytofm_cli.cells.classifier import Answer
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.cells.network import Layout
from cytofm_cli.cells.run_folder import load_run
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.lora import adapted, adapters_of, with_updates
from cytofm_cli.encoders.run import Embedder, EmbedJob
from cytofm_cli.encoders.torch_encoder import pool
from cytofm_cli.errors import StoppedError, UsageError, WeightsError
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.store import io, schema

from .drawn_cells import QUIET, Cohort

pytestmark = pytest.mark.slow

CROP = 16.0
VIT = "timm/vit_tiny_patch16_224"
HOW: dict[str, Any] = {
    "encoder": "sr-vit-nano", "random_weights": True, "crop_um": CROP, "folds": 2, "penalty": 0.01,
    "model": "lora", "lora_rank": 2, "epochs": 2, "epoch_cells": 16, "lr": 0.003,
    "device": "cpu", "threads": 1,
}  # fmt: skip


def train(cohort: Cohort, out: Path, **more: Any):
    return cytofm.train_cells(cohort.stores, cohort.labels, out, **(HOW | more))


def two_epochs(patch: pytest.MonkeyPatch) -> None:
    """Have updates, whether they help or not."""
    patch.setattr(lora, "_best_epochs", lambda *_: 2)


@pytest.fixture(scope="session")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        two_epochs(patch)
        train(cohort, out)
    return out


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("ordinal", [False, True])
def test_log_probabilities__are_those_of_the_classifier(n_classes: int, ordinal: bool) -> None:
    layout = Layout(4, n_classes, 0, ordinal)
    rng = np.random.default_rng(n_classes)
    weights = {name: rng.normal(size=shape) for name, shape in layout.shapes().items()}
    x = rng.normal(size=(7, 4))
    z = torch.tensor(x @ weights["output"][:-1] + weights["output"][-1])
    gaps = torch.tensor(weights["log_gaps"]) if "log_gaps" in weights else None
    said = lora.log_probabilities(layout, z, gaps).numpy()
    assert np.allclose(said, network.log_probabilities(layout, weights, x), rtol=0, atol=1e-12)
    assert np.allclose(np.exp(said).sum(1), 1)


def test_flipped__gives_each_image_one_of_its_eight_views() -> None:
    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    turned = lora.flipped(np.stack([image] * 200), np.random.default_rng(0))
    views = {
        np.rot90(of, k, (1, 2)).tobytes() for of in (image, image[:, :, ::-1]) for k in range(4)
    }
    assert {of.tobytes() for of in turned} == views
    assert len(views) == 8


def test_present_auc__is_the_mean_of_the_classes_that_there_are() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    # class 0 in rows 0 and 3 against rows 1 and 2: pairs (.7>.2), (.7>.6), (.5>.2), (.5<.6)
    # class 1 in rows 1 and 2: pairs (.7>.2), (.7>.4), (.3>.2), (.3<.4)
    assert lora.present_auc(np.array([0, 1, 1, 0]), Answer(np.log(p))) == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["sr-vit-nano", VIT, "cytofm-tiny"])
def test_adapted__computes_what_the_updates_did_and_the_encoder_stays(name: str) -> None:
    encoder = load_encoder(name, device="cpu", random_weights=name != "cytofm-tiny")
    side = encoder.spec.input_px
    batch = torch.randint(0, 255, (2, 3, side, side), dtype=torch.uint8)
    before = encoder.encode(batch)
    model = with_updates(encoder, 2, 8.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("lora_b"):
                parameter.normal_(0, 0.1)
    updates = adapters_of(model)
    assert len(updates) == 2 * 2 * len(model.blocks)
    updated = adapted(encoder, updates, 4.0)
    x = (batch.float() / 255 - encoder._mean) / encoder._std
    with torch.no_grad():
        wanted = pool(model, x, encoder.spec.pooling).numpy()
    assert np.abs(wanted - before).max() > 1e-3
    assert np.allclose(updated.encode(batch), wanted, rtol=0, atol=1e-4)
    assert np.array_equal(encoder.encode(batch), before)
    assert adapted(encoder, {}, 4.0) is encoder
    foreign = {f"no.such.lora_{letter}": np.zeros((2, 2)) for letter in "ab"}
    with pytest.raises(WeightsError, match="do not fit"):
        adapted(encoder, foreign, 1.0)


def test_train__judges_folds_held_out_and_keeps_updates_apart(cohort: Cohort, run: Path) -> None:
    trained = load_run(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert trained.card.model == metrics["model"] == "lora"
    assert any("nothing says when to stop" in note for note in metrics["notes"])
    assert metrics["epochs"] == [2, 2, 2] == trained.card.adapters["epochs"]
    assert trained.card.adapters["scale"] == 8.0
    assert set(trained.adapters) == {"fold0", "fold1", "whole"}
    assert len(trained.adapters["whole"]) == 6 * 2 * 2
    assert not all(
        np.array_equal(trained.adapters["fold0"][key], trained.adapters["fold1"][key])
        for key in trained.adapters["fold0"]
    )
    assert metrics["balanced_accuracy"]["value"] > 0.6
    assert {path.name.partition("-")[0] for path in (run / "features").iterdir()} == {"sr"}
    assert train(cohort, run).skipped


def test_train__gives_the_same_bytes_on_any_number_of_threads(
    cohort: Cohort, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_epochs(monkeypatch)
    train(cohort, tmp_path / "again", threads=3)
    for name in ("adapters.safetensors", "model.safetensors", "predictions.csv", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_train__goes_on_with_the_folds_that_were_finished(
    cohort: Cohort, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_epochs(monkeypatch)
    out, tune, asked = tmp_path / "run", lora.tune, []

    def stopped(cells, rows, seed, tell):
        asked.append(seed)
        if seed == (2,):
            raise StoppedError("stopped")
        return tune(cells, rows, seed, tell)

    monkeypatch.setattr(lora, "tune", stopped)
    with pytest.raises(StoppedError):
        train(cohort, out)
    assert asked == [(1,), (2,)] or asked == [(1,), (2,), (0,)]
    (kept,) = (out / "features").glob("lora-*-fold0.safetensors")
    asked.clear()

    def counted(cells, rows, seed, tell):
        asked.append(seed)
        return tune(cells, rows, seed, tell)

    monkeypatch.setattr(lora, "tune", counted)
    train(cohort, out)
    assert (1,) not in asked and (2,) in asked and not kept.exists()
    for name in ("adapters.safetensors", "model.safetensors", "predictions.csv"):
        assert (out / name).read_bytes() == (run / name).read_bytes()


def test_train__no_epoch_that_helps_leaves_the_linear_classifier(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "_inner", lambda cells, rows: np.arange(len(rows)) < 9)
    monkeypatch.setattr(lora, "_best_epochs", lambda *_: 0)
    train(cohort, tmp_path / "tuned")
    plain = {k: v for k, v in HOW.items() if k not in ("lora_rank", "epochs", "epoch_cells", "lr")}
    cytofm.train_cells(
        cohort.stores, cohort.labels, tmp_path / "linear", **plain | {"model": "linear"}
    )
    tuned, linear = (tmp_path / name / "predictions.csv" for name in ("tuned", "linear"))
    assert tuned.read_bytes() == linear.read_bytes()
    assert load_run(tmp_path / "tuned").adapters == {}


def test_epochs__are_chosen_on_groups_that_are_not_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    # Validation sees its own groups only, and the best of 0, 0.2, 0.9, 0.9, 0.4 is after 2 epochs.
    y, group = np.arange(12) % 2, np.repeat(np.arange(6), 2)
    rng = np.random.default_rng(0)
    config = CellsConfig(model="lora", epochs=4, penalty=1.0, inner_folds=3)
    x, crops = rng.normal(size=(12, 3)).astype(np.float32), np.zeros((12, 3, 1, 1), np.uint8)
    cells = lora.Cells(config, None, crops, x, y, group, 2)  # type: ignore[arg-type]
    seen: list[tuple[set[int], set[int]]] = []
    aucs = iter([0.0, 0.2, 0.9, 0.9, 0.4])

    def trained(cells, rows, start, c, epochs, seed, watch, tell):
        seen.append((set(group[rows].tolist()), epochs))
        for epoch in range(epochs + 1):
            watch(epoch, torch.nn.Linear(1, 1), start)

    monkeypatch.setattr(lora, "_train", trained)
    monkeypatch.setattr(lora, "_features", lambda cells, model, rows: cells.x_ND[rows])
    monkeypatch.setattr(lora, "present_auc", lambda y, answer: next(aucs))
    tuned = lora.tune(cells, np.arange(12), (0,))
    assert tuned.epochs == 2
    (inner, most), (whole, chosen) = seen
    assert len(inner) == 4 and whole == set(range(6))
    assert (most, chosen) == (4, 2)


@pytest.mark.slow
def test_apply__embeds_by_the_updated_encoder_of_the_fold(
    cohort: Cohort, run: Path, tmp_path: Path
) -> None:
    stores = Path(shutil.copytree(cohort.stores, tmp_path / "stores"))
    for path in stores.glob("*.zarr"):  # embeddings of the encoder as it is are not taken
        config = EmbedConfig(encoder="sr-vit-nano", random_weights=True, unit="cell", cell_um=CROP)
        Embedder().embed(
            EmbedJob(slide_id=path.stem, path=str(path), store=path, config=config), *QUIET
        )
    cytofm.apply_cells(run, stores, device="cpu").raise_failures()
    trained = load_run(run)
    encoder = load_encoder("sr-vit-nano", device="cpu", random_weights=True)
    for path in sorted(stores.glob("*.zarr")):
        store = io.open_store(path)
        fold = None if path.stem == "s4" else int(path.stem[1]) // 2
        name = "whole" if fold is None else f"fold{fold}"
        updated = adapted(encoder, trained.adapters[name], 8.0)
        with open_cells(store, detector=None, cell_um=CROP) as crops:
            pixels = crops.read_many(np.arange(9))
        x_ND = updated.encode(updated.prepare(pixels))
        of = trained.whole if fold is None else trained.folds[fold]
        heat = trained.card.temperature if fold is None else trained.card.temperatures[fold]
        p_NC = of.answer(x_ND).probabilities(heat)
        step = schema.classes_step("tuned")
        assert np.allclose(store.read(f"{step}/probability"), p_NC, rtol=0, atol=1e-5)
        assert not np.allclose(
            of.answer(encoder.encode(encoder.prepare(pixels))).probabilities(heat), p_NC, atol=1e-3
        )


def test_apply__damaged_updates_are_refused(run: Path, cohort: Cohort, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    (broken / "adapters.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match=r"adapters\.safetensors: is not the file"):
        load_run(broken)


def test_train__refuses_what_cannot_be_trained_before_anything_is_written(
    cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^lora: encoder handcrafted is no network"):
        train(cohort, tmp_path / "run", encoder="handcrafted", random_weights=False)
    with pytest.raises(UsageError, match="rank 500: at most 128"):
        train(cohort, tmp_path / "run", lora_rank=500)
    with pytest.raises(UsageError, match=r"lr=0.1\) is for lora"):
        CellsConfig(model="linear", lr=0.1)
    assert not (tmp_path / "run").exists()
