"""Heads: what comes out, and that copies are independent."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from cytofm_cli.pretrain.heads import DinoHead, cosines, projector


def test_dino_head__gives_cosines_with_the_prototypes() -> None:
    head = DinoHead(3, 2, hidden=4, bottleneck=2).double()
    with torch.no_grad():
        head.prototypes.copy_(torch.tensor([[3.0, 0.0], [0.0, -0.1]]))  # lengths do not count
    head.mlp = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        head.mlp.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    out = head(torch.tensor([[3.0, 4.0, 9.0], [-2.0, 0.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[0.6, -0.8], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_dino_head__gradient_of_a_prototype_is_orthogonal_to_it() -> None:
    head = DinoHead(5, 7, hidden=6, bottleneck=4).double()
    (head(torch.randn(3, 5, dtype=torch.float64)) * torch.randn(3, 7)).sum().backward()
    along_K = (head.prototypes * head.prototypes.grad).sum(1)
    torch.testing.assert_close(along_K, torch.zeros_like(along_K))
    assert (head.prototypes.grad.norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,)])
def test_cosines__equal_autograd_through_normalised_prototypes(shape: tuple[int, ...]) -> None:
    own = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=own, dtype=torch.float64, requires_grad=True)
    v = torch.randn(5, 4, generator=own, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*shape[:-1], 5, generator=own, dtype=torch.float64)
    expected = nn.functional.linear(z, nn.functional.normalize(v, dim=-1))
    found = cosines(z, v)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (z, v)),
        torch.autograd.grad((expected * weight).sum(), (z, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_cosines__of_autocast_are_float32_and_their_gradients_as_the_inputs() -> None:
    z = nn.functional.normalize(torch.randn(6, 16), dim=1).requires_grad_()
    v = torch.randn(9, 16, requires_grad=True)
    exact = cosines(z, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cosines(z, v)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.01, rtol=0)
    rounded.square().sum().backward()
    assert z.grad.dtype == v.grad.dtype == torch.float32
    (dv,) = torch.autograd.grad(exact.square().sum(), v)
    torch.testing.assert_close(v.grad, dv, atol=0.05, rtol=0)


def test_dino_head__any_leading_shape_and_no_rows() -> None:
    head, x = DinoHead(5, 7, hidden=6, bottleneck=4), torch.randn(2, 3, 5)
    torch.testing.assert_close(head(x).flatten(0, 1), head(x.flatten(0, 1)))
    empty = head(torch.zeros(0, 5))
    assert empty.shape == (0, 7)
    empty.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_dino_head__copy_after_a_pass_is_equal_and_independent() -> None:
    head, x = DinoHead(5, 7, hidden=6, bottleneck=4), torch.randn(2, 5)
    before = head(x)  # torch's old weight_norm could not be copied from here on
    other = copy.deepcopy(head)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        head.prototypes.neg_()
    assert torch.equal(other(x), before)


def test_dino_head__with_batch_norm_is_by_hand() -> None:
    torch.manual_seed(0)
    head = DinoHead(5, 7, hidden=6, bottleneck=4, batch_norm=True).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    z = x
    for linear in (head.mlp[0], head.mlp[3]):
        z = linear(z)
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
        z = functional.gelu(z)
    z = functional.normalize(head.mlp[6](z), dim=-1)
    expected = z @ functional.normalize(head.prototypes, dim=-1).T
    torch.testing.assert_close(head(x.view(3, 3, 5)).flatten(0, 1), expected)
    head.eval()  # the running mean, also of one row and of none while training
    one = head(x[:1])
    torch.testing.assert_close(head.train()(x[:1]), one)
    assert head(x[:0]).shape == (0, 7)


def test_dino_head__with_batch_norm_tells_like_inputs_apart_from_the_start() -> None:
    torch.manual_seed(0)
    x = torch.randn(128) + 0.01 * torch.randn(64, 128)  # what a trunk with random weights gives
    spread = [
        DinoHead(128, 32, hidden=64, bottleneck=16, batch_norm=norm)(x).std(0).mean()
        for norm in (False, True)
    ]
    assert spread[1] > 20 * spread[0]


def test_dino_head__published_size() -> None:
    head = DinoHead(384, 1024)
    widths = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
    assert widths == [(1024, 256), (2048, 384), (2048, 2048), (256, 2048)]


@pytest.mark.parametrize("last_norm", [True, False])
def test_projector__has_norms_between_layers_and_perhaps_last(last_norm: bool) -> None:
    net = projector((6, 8, 8, 4), bias=not last_norm, last_norm=last_norm)
    kinds = [type(layer).__name__ for layer in net]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [*block, *block, "Linear", *["BatchNorm1d"] * last_norm]
    assert [layer.bias is not None for layer in net if isinstance(layer, nn.Linear)] == (
        [not last_norm] * 3
    )
    out = net(torch.randn(64, 6))
    if last_norm:
        assert net[-1].weight is None
        torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.var(0, correction=0), torch.ones(4), atol=1e-2, rtol=0)
