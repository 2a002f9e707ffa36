"""The study of `studies/distil`: students can be trained, a teacher's head is that of its run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cytofm_cli.config import resolve
from cytofm_cli.pretrain.base import Length
from cytofm_cli.pretrain.by_length import by_length
from cytofm_cli.pretrain.heads import DinoHead
from cytofm_cli.pretrain.optim import peak_lr
from cytofm_cli.pretrain.published_heads import published_heads
from cytofm_cli.registry import pretrain_methods

STUDIES = Path(__file__).resolve().parents[1] / "studies"
NAMES = (
    "arms", "data", "distil", "heads", "judge", "outcomes", "places", "pretrain", "teacher_files",
)  # fmt: skip


@pytest.fixture(scope="module")
def study() -> Iterator[SimpleNamespace]:
    """Give the scripts, which import each other by their names."""
    before, path = {name: sys.modules.pop(name, None) for name in NAMES}, list(sys.path)
    sys.path.insert(0, str(STUDIES / "distil"))
    try:
        distil = importlib.import_module("distil")
        yield SimpleNamespace(distil=distil, files=importlib.import_module("teacher_files"))
    finally:
        sys.path[:] = path
        for name in NAMES:
            sys.modules.pop(name, None)
            if before[name] is not None:
                sys.modules[name] = before[name]


def test_students__can_be_trained_and_reach_the_same_rate(study, monkeypatch, tmp_path) -> None:
    asked = study.distil.ASKED
    begun = {}

    def train(stores, run, config, *, views, method_settings):
        own = pretrain_methods.load(config.method).config
        begun[run.name] = config, resolve(own, config.method, method_settings), views
        return SimpleNamespace(encoder=run / "encoder.safetensors")

    monkeypatch.setattr(study.distil, "pretrain_encoder", train)
    monkeypatch.setattr(study.distil, "WORK", tmp_path)
    for name in asked["students"]:
        study.distil.train(name, "teacher.safetensors")
    assert len(begun) == len(asked["students"])
    assert {(c.steps, c.batch, c.seed) for c, _, _ in begun.values()} == {
        tuple(asked["run"][key] for key in ("steps", "batch", "seed"))
    }
    rates = set()
    for config, method, views in begun.values():
        assert views.global_px == 48 and method.teacher == "teacher.safetensors"
        length = Length(n_steps=config.steps, steps_per_epoch=1, batch=config.batch)
        rates.add(round(peak_lr(by_length(method, length, {"lr"}), config.batch), 9))
    assert rates == {5e-4}


def test_plain_head__says_what_the_head_says_when_it_is_judged(study, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = DinoHead(12, 7, hidden=10, bottleneck=5, batch_norm=True)
    for _ in range(3):  # running statistics of its own
        head(3 * torch.randn(20, 12) + 1)
    head.eval()
    with torch.no_grad():
        for norm in (head.mlp[1], head.mlp[4]):
            norm.weight.normal_()
            norm.bias.normal_()
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    state = {f"{study.files.HEAD}{name}": value for name, value in head.state_dict().items()}
    save_file(state, run / "checkpoints" / "step-00000003" / "model.safetensors")
    save_file({"norm.weight": torch.ones(12)}, run / "encoder.safetensors", metadata={"a": "b"})
    study.files.with_heads(run, tmp_path / "teacher.safetensors")
    published = published_heads(load_file(tmp_path / "teacher.safetensors"), "teacher")
    x = torch.randn(6, 12)
    torch.testing.assert_close(published["cls"](x), head(x).detach(), rtol=1e-5, atol=1e-5)
    assert published["patch"] is published["cls"]
