"""A finished RUN is taken up however its settings are typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.config import resolve
from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.run import train_run
from cytofm_cli.mil.run_folder import read_config

QUICK = {"folds": 3, "seeds": 1, "inner_folds": 3, "bootstrap": 100, "workers": 1, "method": "mean",
         "epochs": 2}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same")
    rows = [f"s{i:02d},{'abnormal' if i % 2 else 'normal'},p{i // 2}" for i in range(24)]
    (folder / "labels.csv").write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    train(folder)
    return folder


def train(folder: Path, **settings: object) -> bool:
    rng = np.random.default_rng(0)
    bags = [
        Bag(f"s{i:02d}", rng.normal(size=(4, 3)).astype(np.float32) + 3 * (i % 2))
        for i in range(24)
    ]
    config = resolve(MilConfig, "mil", {**QUICK, **settings})
    return train_run(config, bags, folder / "labels.csv", folder / "run").skipped


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "cv"},  # what auto comes to
        {"test_fraction": 0.2},  # of a holdout
        {"classes": "normal,abnormal"},
        {"positive": "abnormal"},
        {"splits": "run/splits.csv"},
        {"splits": "run/splits.csv", "folds": 5, "inner_folds": 2},  # the file decides
    ],
)
def test_run__other_words_for_the_same_are_skipped(run: Path, settings: dict[str, str]) -> None:
    words = {k: run / v if k == "splits" else v for k, v in settings.items()}
    assert train(run, **words)


def test_run__the_preset_spelt_out_is_skipped(run: Path) -> None:
    recipe = read_config(run / "run")["recipe"]
    for name in ("lr", "epochs", "weight_decay", "patience"):
        assert train(run, **{name: recipe[name]})


@pytest.mark.parametrize(("name", "value"), [("lr", 0.5), ("folds", 4), ("seed", 1)])
def test_run__other_settings_are_refused_by_name(run: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigMismatchError, match=rf"{name}: .* → {value}"):
        train(run, **{name: value})


def test_run__the_device_is_recorded_as_what_auto_comes_to(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert read_config(run / "run")["mil"]["device"] == "cpu"
    assert train(run, device="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigMismatchError, match="device: 'cpu' → 'cuda'"):
        train(run, device="auto")
