"""Hand-worked cases and float64 references of the heads' parts; these always run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.mil import vpu
from cytofm_cli.mil.base import Recipe, make_head, seeded
from cytofm_cli.mil.clam import smooth_svm
from cytofm_cli.mil.convert import read_official
from cytofm_cli.mil.layers import AttentionScores, FastDropout, Projection, masked_softmax
from cytofm_cli.mil.nystrom import NystromAttention, PseudoInverse
from cytofm_cli.mil.optim import Lookahead, learning_rate, ordinal_loss


def test_attention_scores__plain_and_gated_hand_worked() -> None:
    layer = AttentionScores(1, 1, gated=True)
    with torch.no_grad():
        layer.hidden.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        layer.hidden.bias.zero_()
        layer.score.weight.fill_(3.0)
        layer.score.bias.fill_(0.5)
    expected = 3 * math.tanh(2 * 0.7) / (1 + math.exp(0.7)) + 0.5
    assert layer(torch.tensor([[[0.7]]])).item() == pytest.approx(expected, rel=1e-6)


def test_masked_softmax__padding_is_exactly_zero() -> None:
    scores = torch.tensor([[[1.0, 50.0, 2.0]]])
    weights = masked_softmax(scores, torch.tensor([[True, False, True]]))
    e = math.e
    torch.testing.assert_close(weights[0, 0], torch.tensor([1 / (1 + e), 0.0, e / (1 + e)]))


def test_smooth_svm__hand_worked_smooth_and_hard_rows() -> None:
    scores = torch.tensor([[1.0, 0.5], [0.0, 8.0]])
    smooth = math.log(math.exp(0) + math.exp(0.5 + 1 - 1))
    hard = 8 + 1 - 0  # the gap of 8 is above ln 1000 = 6.9: the maximum alone
    found = smooth_svm(scores, torch.tensor([0, 0]))
    assert found.item() == pytest.approx((smooth + hard) / 2, rel=1e-6)


def test_smooth_svm__column_of_targets_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 1\)"):
        smooth_svm(torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.long))


def test_clam__small_bags_never_use_an_instance_as_both_ends() -> None:
    head, _ = make_head("clam_sb", 4, 2, {"k": 8})
    for n, expected in ((1, 0), (2, 1), (9, 4), (16, 8), (40, 8)):
        _, logits, targets = head.instance_loss(head(torch.randn(1, n, 4)), 0, 1)
        assert (len(logits), int(targets.sum())) == (2 * expected, expected)


def plain_nystrom(layer: NystromAttention, x: Tensor, first_rows: bool) -> Tensor:
    """The attention as published: zeros in front, all 256 landmarks, step by step."""
    heads, m = layer.heads, layer.landmarks
    n, d = x.shape
    pad = -n % m
    x = F.pad(x, (0, 0, pad, 0))
    q, k, v = (t.reshape(-1, heads, d // heads).transpose(0, 1) for t in layer.qkv(x).chunk(3, -1))
    q = q * (d // heads) ** -0.5
    means = [t.reshape(heads, m, -1, d // heads).mean(2) for t in (q, k)]
    a1 = (q @ means[1].mT).softmax(-1)
    a2 = (means[0] @ means[1].mT).softmax(-1)
    a3 = (means[0] @ k.mT).softmax(-1)
    z = a2.mT / (a2.sum(-1).max() * a2.sum(-2).max())
    eye = torch.eye(m, dtype=x.dtype)
    for _ in range(6):
        az = a2 @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    y = a1 @ z @ (a3 @ v) + layer.residual(v[None])[0]
    y = layer.out(y.transpose(0, 1).flatten(1))
    return y[:n] if first_rows else y[-n:]


@pytest.mark.parametrize("n", [2, 5, 15, 16, 17, 33, 50, 64])
@pytest.mark.parametrize("first_rows", [False, True])
def test_nystrom__merging_equal_landmarks_changes_no_number(n: int, first_rows: bool) -> None:
    with seeded(n):
        layer = NystromAttention(32, heads=4, landmarks=16, first_rows=first_rows).double().eval()
        x = torch.randn(n, 32, dtype=torch.float64) * 2
    x.requires_grad_()
    found, _ = layer(x)
    expected = plain_nystrom(layer, x, first_rows)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    weight = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((y * weight).sum(), (x, layer.qkv.weight)) for y in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_nystrom__masked_padding_takes_no_attention() -> None:
    with seeded(0):
        layers = [
            NystromAttention(32, heads=4, landmarks=16, masked=masked).eval()
            for masked in (False, True)
        ]
        layers[1].load_state_dict(layers[0].state_dict())
        x = torch.randn(11, 32)
    shares = [float(layer(x)[1].sum()) for layer in layers]
    assert shares[0] < 0.8
    assert shares[1] == pytest.approx(1.0, abs=1e-3)


def test_pseudo_inverse__inverts_a_well_conditioned_matrix() -> None:
    a = (torch.randn(2, 8, 8, dtype=torch.float64) + 6 * torch.eye(8)).softmax(-1)
    eye = torch.eye(8, dtype=torch.float64).expand(2, 8, 8)
    torch.testing.assert_close(PseudoInverse(a, 0, 12).times(a), eye, atol=1e-8, rtol=0)


def test_pseudo_inverse__equals_the_published_iteration_from_both_sides() -> None:
    a = torch.randn(3, 20, 20, dtype=torch.float64).softmax(-1)
    z = a.mT / a.sum(-2).max()
    eye = torch.eye(20, dtype=torch.float64)
    for _ in range(6):
        p = a @ z
        z = 0.25 * z @ (13 * eye - p @ (15 * eye - p @ (7 * eye - p)))
    b = torch.randn(3, 20, 4, dtype=torch.float64)
    close = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(PseudoInverse(a).times(b), z @ b, **close)
    torch.testing.assert_close(PseudoInverse(a).after(b.mT), b.mT @ z, **close)
    single = PseudoInverse(a.float()).times(b.float())
    assert ((single - z @ b).norm() / (z @ b).norm()) < 1e-4


def test_position_encoder__one_kernel_equals_three_convolutions() -> None:
    from cytofm_cli.mil.methods.transmil import PositionEncoder

    encoder = PositionEncoder(6).double()
    h = torch.randn(17, 6, dtype=torch.float64)
    square = h[1:].T.reshape(1, 6, 4, 4)
    y = square + encoder.conv7(square) + encoder.conv5(square) + encoder.conv3(square)
    torch.testing.assert_close(encoder(h, 4), torch.cat([h[:1], y[0].flatten(1).T]))


def test_transmil__square_bag_repeats_nothing_and_others_repeat_the_first() -> None:
    from cytofm_cli.mil.methods.transmil import _fold

    attention = torch.tensor([9.0, 1.0, 2.0, 3.0, 0.1])  # class token, 3 instances, a repeat
    assert _fold(attention, 3).tolist() == pytest.approx([1.1, 2.0, 3.0])
    assert _fold(attention[:4], 3).tolist() == [1.0, 2.0, 3.0]


def test_dtfd__no_more_pseudo_bags_than_instances_and_k_zero_refused() -> None:
    head, _ = make_head("dtfd", 4, 2, {"pseudo_bags": 4})
    head.train()
    assert head(torch.randn(1, 2, 4)).aux["tier1_BGC"].shape == (1, 2, 2)
    with pytest.raises(UsageError, match="per_end"):
        make_head("dtfd", 4, 2, {"per_end": 0})


def test_dtfd__tier_two_does_not_train_tier_one() -> None:
    head, _ = make_head("dtfd", 4, 2, {"distill": "MaxMinS"})
    head.train()
    out = head(torch.randn(1, 9, 4))
    F.cross_entropy(out.logits_BC, torch.tensor([1])).backward()
    trained = {name for name, p in head.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"attention2", "classifier2"}


def test_dtfd__evaluation_averages_draws_fixed_by_the_slide() -> None:
    x = torch.randn(1, 30, 4)
    with seeded(0):
        one = make_head("dtfd", 4, 2, {"draws": 1})[0].eval()
    with seeded(0):
        many = make_head("dtfd", 4, 2, {"draws": 200})[0].eval()
    spread = {
        name: torch.stack([head(x, seeds=[s]).prob_BC[0, 1] for s in range(8)]).std()
        for name, head in (("one", one), ("many", many))
    }
    assert 0 < spread["many"] < spread["one"] / 4


def test_dsmil__probabilities_are_of_sigmoids_of_which_at_most_one_is_on() -> None:
    head, _ = make_head("dsmil", 4, 3)
    out = head(torch.randn(1, 5, 4))
    z1, z2 = out.logits_BC[0, 1:].tolist()
    s1, s2 = (1 / (1 + math.exp(-z)) for z in (z1, z2))
    joint = [(1 - s1) * (1 - s2), s1 * (1 - s2), (1 - s1) * s2]
    expected = torch.tensor([[p / sum(joint) for p in joint]])
    torch.testing.assert_close(out.prob_BC, expected)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 6.5), ("small", 25.7), ("base", 102.8)])
def test_less__published_sizes(size: str, millions: float) -> None:
    with torch.device("meta"):
        head, _ = make_head("less", 192, 2, {"size": size})
    count = sum(p.numel() for p in head.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("method", "millions"),
    [("abmil", 0.23), ("clam_sb", 0.36), ("transmil", 2.25), ("dtfd", 0.37), ("dsmil", 0.04)],
)
def test_head__default_has_the_published_number_of_weights(method: str, millions: float) -> None:
    head, _ = make_head(method, 192, 2)
    count = sum(p.numel() for p in head.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.008)


def test_vpu_loss__hand_worked() -> None:
    labelled, unlabelled = torch.log(torch.tensor([0.8, 0.5])), torch.log(torch.tensor([0.2, 0.6]))
    expected = math.log(0.4) - (math.log(0.8) + math.log(0.5)) / 2
    found = vpu.variational_loss(labelled, unlabelled)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    mixed = torch.log(torch.tensor([0.9]))
    target = math.log(0.25 * 0.2 + 0.75)
    found = vpu.mixup_regulariser(mixed, unlabelled[:1], 0.25)
    assert found.item() == pytest.approx((target - math.log(0.9)) ** 2, rel=1e-4)


def test_ordinal_loss__farther_class_costs_more() -> None:
    sure_of_first = torch.tensor([[30.0, 0.0, 0.0]])
    costs = [ordinal_loss(sure_of_first, torch.tensor([y])).item() for y in range(3)]
    assert costs == pytest.approx([0.0, 1.0, 2.0], abs=1e-5)


def test_lookahead__hand_worked_steps() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = Lookahead(torch.optim.SGD([weight], lr=1.0), every=2, rate=0.5)
    seen = []
    for _ in range(6):
        weight.grad = torch.full((1,), -1.0)
        optimizer.step()
        seen.append(weight.item())
    # Slow weights start at the first slow step (2); then fast 3, 4 → slow 3; fast 4, 5 → slow 4.
    assert seen == [1.0, 2.0, 3.0, 3.0, 4.0, 4.0]


def test_learning_rate__schedules() -> None:
    cosine = Recipe(lr=1.0, schedule="cosine", epochs=10, lr_end=0.2)
    assert learning_rate(cosine, 0) == 1.0
    assert learning_rate(cosine, 5) == pytest.approx(0.6)
    step = Recipe(lr=1.0, schedule="step", step_epoch=3, step_factor=0.2)
    assert [learning_rate(step, e) for e in (2, 3)] == [1.0, 0.2]
    assert learning_rate(Recipe(lr=1.0, warmup_epochs=1), 0) == 0.5


def official_clam(gate: int, classes: int = 2) -> dict[str, Tensor]:
    shapes = {
        "attention_net.0": (16, 6),
        f"attention_net.{gate}.attention_a.0": (8, 16),
        f"attention_net.{gate}.attention_b.0": (8, 16),
        f"attention_net.{gate}.attention_c": (1, 8),
        "classifiers": (classes, 16),
        **{f"instance_classifiers.{c}": (2, 16) for c in range(classes)},
    }
    state = {}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    return state


@pytest.mark.parametrize("gate", [2, 3])
@pytest.mark.parametrize("wrap", ["", "module."])
def test_read_official__clam_checkpoint_old_and_new(tmp_path: Path, gate: int, wrap: str) -> None:
    state = official_clam(gate, classes=3)
    torch.save({f"{wrap}{k}": v for k, v in state.items()}, tmp_path / "s_0_checkpoint.pt")
    head, settings = read_official(tmp_path / "s_0_checkpoint.pt", "clam_sb")
    assert settings == {"hidden": 16, "attention": 8, "overlap": True}
    x = torch.randn(5, 6)
    a = f"attention_net.{gate}.attention"
    h = F.relu(F.linear(x, state["attention_net.0.weight"], state["attention_net.0.bias"]))
    v, u = (F.linear(h, state[f"{a}_{s}.0.weight"], state[f"{a}_{s}.0.bias"]) for s in "ab")
    raw = F.linear(v.tanh() * u.sigmoid(), state[f"{a}_c.weight"], state[f"{a}_c.bias"])
    bag = raw.softmax(0).T @ h
    expected = F.linear(bag, state["classifiers.weight"], state["classifiers.bias"])
    torch.testing.assert_close(head(x[None]).logits_BC, expected, atol=1e-4, rtol=1e-4)


def test_read_official__transmil_lightning_checkpoint(tmp_path: Path) -> None:
    source, _ = make_head("transmil", 10, 3, {"width": 32})
    from cytofm_cli.mil.convert import pieces

    names = dict(source.named_parameters())
    state = {p.official: names[p.ours].detach().clone() for p in pieces("transmil", source, {})}
    state["cls_token"] = state["cls_token"][None]
    wrapped = {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "epoch=3.ckpt")
    head, settings = read_official(tmp_path / "epoch=3.ckpt", "transmil")
    assert settings == {"width": 32}
    x = torch.randn(1, 6, 10)
    assert torch.equal(head(x).logits_BC, source.eval()(x).logits_BC)


def test_read_official__other_head_missing_part_and_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(official_clam(3), path)
    with pytest.raises(WeightsError, match="not a checkpoint of transmil"):
        read_official(path, "transmil")
    state = official_clam(3)
    del state["attention_net.3.attention_c.bias"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"lacks attention_net\.3\.attention_c\.bias"):
        read_official(path, "clam_sb")
    torch.save({**official_clam(3), "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"extra\.weight"):
        read_official(path, "clam_sb")

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Trap()}, path)
    with pytest.raises(WeightsError, match="Python object"):
        read_official(path, "clam_sb")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("maps", [1, 3])
def test_attention_pool__written_out_gradient_equals_autograd(maps: int) -> None:
    layer = AttentionScores(7, 5, maps).double()
    inputs = [torch.randn(1, 9, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    weights = [torch.randn(1, maps, n, dtype=torch.float64) for n in (7, 9, 9)]
    gradients = []
    for x, mask in zip(inputs, (None, torch.ones(1, 9, dtype=torch.bool)), strict=True):
        layer.zero_grad()
        found = layer.pool(x, mask)  # a mask takes the way through autograd
        assert ("GatedPool" in type(found[0].grad_fn.next_functions[0][0]).__name__) is (
            mask is None
        )
        sum((w * y).sum() for w, y in zip(weights, found, strict=True)).backward()
        gradients.append([x.grad, *(p.grad.clone() for p in layer.parameters())])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.3])
def test_projection__written_out_gradient_equals_autograd(dropout: float) -> None:
    layer = Projection(6, 40, dropout).double()
    x = torch.randn(1, 9, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 9, 40, dtype=torch.float64)
    with seeded(2):
        found = layer(x)
    kept = found.detach() != 0
    assert (~kept).float().mean() > dropout
    plain = torch.relu(layer[0](x)) * kept / (1 - dropout)
    torch.testing.assert_close(found, plain)
    wanted = (x, *layer.parameters())
    ours, reference = (torch.autograd.grad((weight * y).sum(), wanted) for y in (found, plain))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other)
    layer.eval()
    torch.testing.assert_close(layer(x), torch.relu(layer[0](x)))
    torch.testing.assert_close(layer(torch.cat([x, x]))[1:], layer(x))


@pytest.mark.parametrize("p", [0.25, 0.3])  # drawn as bytes and as pairs of bytes
def test_fast_dropout__share_scale_and_independence(p: float) -> None:
    with seeded(0):
        drop = FastDropout(p)
        x = torch.ones(1001, 333, requires_grad=True)
        y = drop(x)
        y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=3e-3)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert torch.equal(x.grad, y.detach())
    pairs = (y[:, :-1] == 0).float() * (y[:, 1:] == 0).float()
    assert pairs.mean().item() == pytest.approx(p * p, abs=3e-3)
    assert drop.eval()(x) is x


def test_attention_pool__dropout_of_the_gate_has_the_right_mean_and_gradient() -> None:
    layer = AttentionScores(4, 50, dropout=0.25)
    h = torch.randn(1, 3, 4, requires_grad=True)
    with torch.no_grad():
        raw = torch.stack([layer.pool(h, None)[2] for _ in range(800)])
    sd = raw.std(0) / 800**0.5
    assert ((raw.mean(0) - layer.eval().pool(h, None)[2]).abs() < 5 * sd).all()
    layer.train()

    def value(x: Tensor) -> Tensor:
        with seeded(4):
            return layer.double().pool(x, None)[0].sum()

    assert torch.autograd.gradcheck(value, h.double().detach().requires_grad_())
