"""Losses against values worked out by hand, their invariances, and lightly's numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain import losses

GOLDEN = load_file(Path(__file__).parent / "golden" / "golden.safetensors")
LOG2 = math.log(2)


def equal(found: object, expected: object, tolerance: float = 1e-9) -> None:
    found = torch.as_tensor(found, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- views and patches


def test_dino_loss__is_the_mean_over_pairs_of_different_views() -> None:
    # The student is certain with odds e^(±1/T) = 3 : 1, T = 1 / log 3.
    temperature = 1 / math.log(3)
    p_TBK = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    logits_SBK = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    # Pairs: (0,1) log 2, (0,2) log 4, (1,0) log 4, (1,2) log 4/3.
    expected = (LOG2 + 2 * math.log(4) + math.log(4 / 3)) / 4
    equal(losses.dino_loss(p_TBK, logits_SBK, temperature), expected)


def test_dino_loss__one_view_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="no other"):
        losses.dino_loss(torch.ones(1, 2, 3) / 3, torch.zeros(1, 2, 3), 0.1)


def test_dino_loss__order_of_tiles_does_not_matter() -> None:
    p, z, order = draw(2, 6, 5).softmax(-1), draw(4, 6, 5, seed=1), torch.randperm(6)
    equal(losses.dino_loss(p[:, order], z[:, order], 0.1), losses.dino_loss(p, z, 0.1))


def test_dino_loss_and_centre__equal_lightly() -> None:
    teacher, student = GOLDEN["dino.teacher"], GOLDEN["dino.student"].requires_grad_()
    centre = losses.Centre(teacher.shape[-1]).double()
    values = []
    for rows_TBK, temperature in zip(teacher, (0.05, 0.06), strict=True):
        p_TBK = centre(rows_TBK.flatten(0, 1), temperature).view(rows_TBK.shape)
        values.append(losses.dino_loss(p_TBK, student, 0.1))
        centre.move()
        if len(values) == 1:
            equal(centre.centre_K, GOLDEN["dino.centre"])
    equal(torch.stack(values), GOLDEN["dino.loss"], 1e-7)  # lightly's temperatures are float32
    equal(torch.autograd.grad(sum(values), student)[0], GOLDEN["dino.grad"], 1e-7)


def test_masked_patch_loss__is_the_mean_over_images_of_means_over_patches() -> None:
    # Image 0 masks patches worth log 2 and log 4, image 1 none, image 2 one worth log 2.
    z = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, 0.0]], dtype=torch.float64)
    p = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    weight = torch.tensor([1 / 6, 1 / 6, 1 / 3], dtype=torch.float64)
    expected = ((LOG2 + math.log(4)) / 2 + 0 + LOG2) / 3
    equal(losses.masked_patch_loss(p, z, weight, 1.0), expected)


def test_masked_patch_loss__without_masked_patches_is_zero_and_has_a_gradient() -> None:
    z = torch.zeros(0, 4, requires_grad=True)
    loss = losses.masked_patch_loss(torch.zeros(0, 4), z, torch.zeros(0), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None


def test_masked_patch_loss__equals_lightly() -> None:
    student, mask = GOLDEN["ibot.student"].requires_grad_(), GOLDEN["ibot.mask"].flatten(1)
    weight_GN = mask / (mask.sum(1, keepdim=True).clamp(min=1) * len(mask))
    centre = losses.Centre(student.shape[-1]).double()
    values = []
    for rows_MK in GOLDEN["ibot.teacher"]:
        p_MK = centre(rows_MK, 0.06)
        values.append(losses.masked_patch_loss(p_MK, student, weight_GN[mask], 0.1))
        centre.move()
    equal(torch.stack(values), GOLDEN["ibot.loss"], 1e-6)  # lightly's weights are float32
    equal(torch.autograd.grad(sum(values), student)[0], GOLDEN["ibot.grad"], 1e-6)


# ---------------------------------------------------------------- centring


def test_centre__softens_by_the_old_mean_and_moves_once_for_all_parts() -> None:
    centre = losses.Centre(2, momentum=0.75).double()
    centre.centre_K.copy_(torch.tensor([1.0, 0.0]))
    p = centre(torch.tensor([[1.0, math.log(3)]], dtype=torch.float64), 1.0)
    equal(p, [[1 / 4, 3 / 4]])
    centre(torch.tensor([[3.0, 0.0], [5.0, 0.0]], dtype=torch.float64), 1.0)
    equal(centre.centre_K, [1.0, 0.0])  # not yet
    centre.move()
    equal(centre.centre_K, [0.75 + 0.25 * 3, 0.25 * math.log(3) / 3])
    before = centre.centre_K.clone()
    centre.move()  # nothing was seen since
    centre(torch.zeros(0, 2), 1.0)
    centre.move()  # nor without rows
    assert torch.equal(centre.centre_K, before)


def test_centre__half_precision_is_computed_in_float32() -> None:
    centre = losses.Centre(3)
    with torch.autocast("cpu", torch.bfloat16):
        p = centre(torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.bfloat16), 0.04)
    assert p.dtype == torch.float32
    equal(p.sum(), 1.0, 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_sinkhorn__sums_converge_to_one_a_tile_and_equal_use_of_prototypes(
    n: int, k: int, seed: int
) -> None:
    cosines = torch.tanh(draw(n, k, seed=seed))
    equal(losses.sinkhorn_knopp(cosines, 0.1).sum(1), torch.ones(n))
    many = losses.sinkhorn_knopp(cosines, 0.5, iterations=300)
    equal(many.sum(0), torch.full((k,), n / k), 1e-6)


def test_sinkhorn__one_round_by_hand() -> None:
    # exp: rows (1, 2) and (3, 2); columns sum to 4: (1/4, 1/2), (3/4, 1/2); then rows to 1.
    logits = torch.tensor([[1.0, 2.0], [3.0, 2.0]], dtype=torch.float64).log() * 0.2
    equal(losses.sinkhorn_knopp(logits, 0.2, iterations=1), [[1 / 3, 2 / 3], [3 / 5, 2 / 5]])


def test_sinkhorn__three_rounds_are_the_default() -> None:
    x = torch.tanh(draw(6, 5))
    expected = losses.sinkhorn_knopp(x, 0.1, iterations=3)
    assert torch.equal(losses.sinkhorn_knopp(x, 0.1), expected)
    assert torch.equal(losses.Sinkhorn()(x, 0.1), expected)
    assert not torch.allclose(losses.sinkhorn_knopp(x, 0.1, iterations=2), expected)


def test_sinkhorn__no_rows_give_no_rows() -> None:
    assert losses.sinkhorn_knopp(torch.zeros(0, 4), 0.1).shape == (0, 4)


def test_sinkhorn__order_of_tiles_does_not_matter() -> None:
    x, order = torch.tanh(draw(6, 5)), torch.randperm(6)
    equal(losses.sinkhorn_knopp(x, 0.1)[order], losses.sinkhorn_knopp(x[order], 0.1))


def test_entropy__uniform_and_certain_rows() -> None:
    p = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    equal(losses.entropy(p), math.log(4) / 2)
    assert losses.entropy(p[:0]).item() == 0


# ---------------------------------------------------------------- features


def test_koleo__by_hand() -> None:
    # Directions 0°, 60° and 180°: nearest distances 1, 1 and √3 (chord of 120°).
    angle = torch.tensor([0.0, math.pi / 3, math.pi], dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [5.0], [0.2]])
    equal(losses.koleo_loss(x), -math.log(math.sqrt(3)) / 3, 1e-7)


def test_koleo__opposite_tiles_find_each_other_not_themselves() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    equal(losses.koleo_loss(x), -LOG2, 1e-7)


def test_koleo__one_tile_is_refused() -> None:
    with pytest.raises(UsageError, match="two tiles"):
        losses.koleo_loss(torch.ones(1, 3))


def test_koleo__gradient_pushes_neighbours_apart_under_autocast() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses.koleo_loss(x).backward()
    assert x.grad[0, 1] > 0 > x.grad[1, 1]  # against the gradient: downwards and upwards


def test_nt_xent__two_pairs_by_hand() -> None:
    # Both views of tile a are e1, of b e2: similarity 1 to the positive, 0 to two negatives.
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    expected = math.log(1 + 2 * math.exp(-1 / 0.5))
    equal(losses.nt_xent(x, 7 * x, 0.5), expected)


def test_info_nce__two_pairs_by_hand() -> None:
    # Unlike NT-Xent one negative only, and times 2 T.
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    equal(losses.info_nce(x, 7 * x, 0.25), math.log(1 + math.exp(-4)) * 2 * 0.25)


def test_byol_loss__by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    equal(losses.byol_loss(x, y), 2 - 2 * (1 + math.sqrt(0.5) - 1) / 3)


@pytest.mark.parametrize("name", ["koleo", "nt_xent", "cosine"])
def test_loss_of_features__equals_lightly(name: str) -> None:
    x, y = GOLDEN["pairs.x"].requires_grad_(), GOLDEN["pairs.y"]
    ours = {
        "koleo": lambda: losses.koleo_loss(x),
        "nt_xent": lambda: losses.nt_xent(x, y, 0.3),
        "cosine": lambda: losses.byol_loss(x, y) / 2 - 1,  # lightly has -cos
    }[name]()
    equal(ours, GOLDEN[f"pairs.{name}"], 1e-7)
    equal(torch.autograd.grad(ours, x)[0], GOLDEN[f"pairs.{name}.grad"], 1e-7)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_contrast__order_of_tiles_does_not_matter(name: str) -> None:
    x, y, order = draw(6, 4), draw(6, 4, seed=1), torch.randperm(6)
    loss = getattr(losses, name)
    equal(loss(x[order], y[order], 0.2), loss(x, y, 0.2))


@pytest.mark.parametrize("name", ["info_nce", "byol_loss"])
def test_targets__take_no_gradient(name: str) -> None:
    x, y = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    arguments = (x, y, 0.2) if name == "info_nce" else (x, y)
    getattr(losses, name)(*arguments).backward()
    assert y.grad is None
    assert x.grad.abs().sum() > 0


def test_nt_xent__gradient_reaches_both_views() -> None:
    x, y = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: losses.nt_xent(a, b, 0.2), (x, y))


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "byol_loss", "koleo_loss"])
def test_loss__half_precision_is_computed_in_float32(name: str) -> None:
    x, y = draw(8, 16).bfloat16(), draw(8, 16, seed=1).bfloat16()
    arguments = {"koleo_loss": 1, "byol_loss": 2}.get(name, 3)
    loss = getattr(losses, name)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*(x, y, 0.1)[:arguments])
    assert found.dtype == torch.float32
    equal(found, loss(*(x.double(), y.double(), 0.1)[:arguments]), 1e-5)


def test_standardise__first_batch_by_itself_later_ones_by_all_rows_before():
    standardise = losses.Standardise(1, largest=2.0)
    first = torch.tensor([[1.0], [3.0], [5.0]])  # mean 3, variance 8/3
    expected = torch.tensor([-2.0, 0.0, 2.0]) / math.sqrt(8 / 3)
    torch.testing.assert_close(standardise(first)[:, 0], expected)
    torch.testing.assert_close(standardise(first)[:, 0], expected)  # nothing moved yet
    standardise._seen = None
    standardise(first)
    standardise.move()
    second = torch.tensor([[7.0], [4.0]])
    shown = standardise(second)[:, 0].tolist()
    assert shown == pytest.approx([2.0, 1 / math.sqrt(8 / 3)])  # 4 / 1.63 is cut at 2
    standardise.move()
    assert standardise.moments_3E[:, 0].tolist() == [5.0, 20.0, 100.0]
    third = standardise(torch.tensor([[4.0]])).item()
    assert third == pytest.approx(0.0)  # mean of the five rows


def test_standardise__a_feature_that_never_changes_is_zero():
    standardise = losses.Standardise(2)
    shown = standardise(torch.tensor([[5.0, 1.0], [5.0, 2.0]]))
    assert shown[:, 0].tolist() == [0.0, 0.0] and shown[:, 1].tolist() == [-1.0, 1.0]
