"""Low-rank updates: an identity at first, the published sum later, plain weights in the end."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cytofm_cli.encoders.lora import LoraLinear, add_lora, plain_state, scale_of
from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig
from cytofm_cli.errors import UsageError


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return SrVit(SrVitConfig(img_px=32, h=3), depth=2, embed_dim=12, num_heads=3).double().eval()


def disturb(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=generator)


def test_layer__by_hand():
    plain = nn.Linear(2, 2)
    layer = LoraLinear(plain, rank=1, alpha=3.0)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        plain.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.lora_a.copy_(torch.tensor([[2.0, 1.0]]))
        layer.lora_b.copy_(torch.tensor([[1.0], [-1.0]]))
    # x = (1, 2): A x = 4, B A x = (4, -4), times alpha / r = 3: (12, -12)
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [1 + 0.5 + 12, 2 - 12]
    # alpha / r with r = 2
    assert LoraLinear(plain, rank=2, alpha=3.0).scale == 1.5


def test_add__is_the_identity_and_trains_updates_and_tables_only(vit):
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = vit(x)
    changed = add_lora(vit, 2, 16.0)
    assert changed == [f"blocks.{i}.attn.{n}" for i in (0, 1) for n in ("qkv", "proj")]
    assert torch.equal(vit(x), before)
    trained = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    assert trained == {
        name for name in vit.state_dict() if "lora_" in name or ".rpe_" in name
    } and len(trained) == 2 * (2 * 2 + 3)  # fmt: skip


def test_plain_state__folds_exactly_into_a_network_without_updates(vit):
    plain = copy.deepcopy(vit)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = vit(x)
    add_lora(vit, 2, 16.0)
    disturb(vit)
    updated = vit(x)
    assert (updated - before).abs().max() > 1e-2
    state, scale = plain_state(vit.state_dict(), scale_of(vit)), scale_of(vit)
    assert scale == 8.0 and torch.equal(vit(x), updated)  # plain_state changes nothing
    plain.load_state_dict(state)
    assert scale_of(plain) == 0
    torch.testing.assert_close(plain(x), updated, rtol=1e-12, atol=1e-12)


def test_plain_state__in_float32_rounds_once():
    plain = nn.Linear(64, 64)
    layer = LoraLinear(plain, 8, 4.0)
    disturb(layer)
    weight = plain.weight.double() + 0.5 * layer.lora_b.double() @ layer.lora_a.double()
    state = plain_state(nn.ModuleDict({"x": layer}).state_dict(), layer.scale)
    assert torch.equal(state["x.weight"], weight.float())


def test_gradient__reaches_b_first(vit):
    add_lora(vit, 2, 16.0)
    vit(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    attn = vit.blocks[0].attn.qkv
    assert attn.lora_b.grad.abs().max() > 0  # A's is zero as long as B is
    assert attn.lora_a.grad.abs().max() == 0 and attn.weight.grad is None


@pytest.mark.parametrize(
    ("rank", "alpha", "match"),
    [(0, 1.0, "rank 0"), (13, 1.0, "rank 13: at most 12"), (2, 0.0, "alpha 0")],
)
def test_add__refuses_impossible_ranks_and_alphas(vit, rank, alpha, match):
    with pytest.raises(UsageError, match=match):
        add_lora(vit, rank, alpha)


def test_add__refuses_a_network_without_such_layers():
    with pytest.raises(UsageError, match="no linear layers called qkv, proj") as found:
        add_lora(nn.Sequential(nn.Conv2d(3, 8, 3)), 2, 4.0)
    assert "Vision Transformers" in found.value.hint
