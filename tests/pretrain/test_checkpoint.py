"""Checkpoints: what was saved comes back bit for bit; half-written ones never count."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from torch import nn

from cytofm_cli.errors import DiskFullError, StoreError
from cytofm_cli.pretrain import checkpoint

CPU = torch.device("cpu")


class Toy(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(2))


def toy(seed=0, width=3, updates=3):
    torch.manual_seed(seed)
    module = Toy(width)
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(updates):
        optimiser.zero_grad()
        module.layer(torch.randn(4, width)).square().sum().backward()
        optimiser.step()
        module.centre += 1
    return module, optimiser


def advance(module, optimiser):
    optimiser.zero_grad()
    module.layer(torch.ones(4, 3)).sum().backward()
    optimiser.step()
    return module.layer.weight.detach().clone()


def test_load__brings_back_weights_buffers_and_moments(tmp_path):
    module, optimiser = toy()
    checkpoint.save(tmp_path, 3, module, optimiser, {"meters": {"a": 0.1}})
    other, other_optimiser = toy(seed=1, updates=1)
    state = checkpoint.load(tmp_path, 3, other, other_optimiser, CPU)
    assert state == {"step": 3, "meters": {"a": 0.1}}
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert torch.equal(advance(module, optimiser), advance(other, other_optimiser))


def test_save__full_disk_leaves_the_former_one(tmp_path, monkeypatch):
    module, optimiser = toy()
    checkpoint.save(tmp_path, 1, module, optimiser, {})

    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DiskFullError, match="no space left"):
        checkpoint.save(tmp_path, 2, module, optimiser, {})
    assert checkpoint.saved_steps(tmp_path) == [1]
    assert [p.name for p in (tmp_path / checkpoint.FOLDER).iterdir()] == ["step-00000001"]


def test_saved_steps__half_written_ones_do_not_count(tmp_path):
    module, optimiser = toy()
    checkpoint.save(tmp_path, 5, module, optimiser, {})
    half = tmp_path / checkpoint.FOLDER / ".step-00000006.123.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.saved_steps(tmp_path) == [5]
    checkpoint.tidy(tmp_path)
    assert not half.exists()


def test_prune__keeps_the_named_and_every_so_many(tmp_path):
    module, optimiser = toy()
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, module, optimiser, {})
    checkpoint.prune(tmp_path, {7, 2}, every=3)
    assert checkpoint.saved_steps(tmp_path) == [2, 3, 6, 7]
    checkpoint.prune(tmp_path, {7}, every=0)
    assert checkpoint.saved_steps(tmp_path) == [7]


def test_load__refuses_another_model(tmp_path):
    module, optimiser = toy()
    checkpoint.save(tmp_path, 1, module, optimiser, {})
    other, other_optimiser = toy(width=4)
    with pytest.raises(StoreError, match=r"does not fit the model \(layer.weight\)"):
        checkpoint.load(tmp_path, 1, other, other_optimiser, CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_load__damaged_file_is_named(tmp_path, name):
    module, optimiser = toy()
    checkpoint.save(tmp_path, 1, module, optimiser, {})
    file = checkpoint.step_folder(tmp_path, 1) / name
    file.write_bytes(file.read_bytes()[:7])
    with pytest.raises(StoreError, match="step-00000001: damaged checkpoint"):
        checkpoint.load(tmp_path, 1, module, optimiser, CPU)


def test_save__state_is_plain_json(tmp_path):
    module, optimiser = toy()
    checkpoint.save(tmp_path, 1, module, optimiser, {"world": 2})
    text = (checkpoint.step_folder(tmp_path, 1) / "state.json").read_text()
    assert json.loads(text) == {"step": 1, "world": 2}
