"""The probe that runs during training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cytofm_cli.errors import InputError
from cytofm_cli.evaluate.online import CellProbe

HOW = {"crop_um": 8.0, "px": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.5), "mpp": 0.25}


def colours(x_BCHW: torch.Tensor) -> torch.Tensor:
    return x_BCHW.mean((2, 3))


@pytest.mark.parametrize("kind", ["slides", "stores"])
def test_cell_probe__sees_colours_and_nothing_in_noise(smears, kind: str) -> None:
    paths = smears.slides
    if kind == "stores":
        paths = {name: smears.stores / f"{name}.zarr" for name in paths}
    probe = CellProbe.load(smears.points, paths, groups=smears.groups, **HOW)
    assert probe.crops_NCHW.shape == (48, 3, 16, 16)
    assert probe.crops_NCHW.dtype == torch.uint8
    assert probe.classes == ("blue", "red")
    assert len(set(probe.fold_N.tolist())) == 3
    score = probe.score(colours, batch=7)
    assert score == {"balanced_accuracy": 1.0, "auc": 1.0, "k": 20, "cells": 48}
    torch.manual_seed(0)
    assert probe.score(lambda x: torch.randn(len(x), 8))["auc"] < 0.8


def test_cell_probe__normalises_as_told_and_keeps_no_gradients(smears) -> None:
    probe = CellProbe.load(smears.points, smears.slides, groups=smears.groups, **HOW)
    seen = []

    def encode(x_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(x_BCHW)
        assert not torch.is_grad_enabled()
        return colours(x_BCHW)

    probe.score(encode, batch=48)
    wanted = (probe.crops_NCHW[:, 2].double() / 255 - 0.3) / 0.5
    torch.testing.assert_close(seen[0][:, 2].double(), wanted, atol=1e-6, rtol=0)


def test_cell_probe__a_choice_of_cells_is_fixed_and_nan_is_refused(smears) -> None:
    one, other = (
        CellProbe.load(smears.points, smears.slides, groups=smears.groups, max_cells=20, **HOW)
        for _ in range(2)
    )
    assert len(one.y_N) == 20
    assert torch.equal(one.crops_NCHW, other.crops_NCHW)
    with pytest.raises(InputError, match="NaN"):
        one.score(lambda x: colours(x) * float("nan"))


def test_cell_probe__task_by_name(smears, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    text = smears.points.read_text().replace("red", "NILM").replace("blue", "HSIL")
    path.write_text(text.replace("48.5,64.5,NILM", "48.5,64.5,LSIL"))
    probe = CellProbe.load(path, smears.slides, groups=smears.groups, **HOW)
    assert probe.classes == ("NILM", "abnormal")
    assert int(probe.y_N.sum()) == 30
    given = CellProbe.load(path, smears.slides, groups=smears.groups, task="labels", **HOW)
    assert given.classes == ("NILM", "LSIL", "HSIL")
