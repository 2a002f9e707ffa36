"""Parameter groups, rates and clipping."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cytofm_cli.pretrain import ema
from cytofm_cli.pretrain.base import Length, MethodConfig
from cytofm_cli.pretrain.optim import (
    build_optimizer,
    clip_gradients,
    learning_rate,
    parameter_groups,
    peak_lr,
    weight_decay,
)

from .toys import make_method

LENGTH = Length(n_steps=100, steps_per_epoch=10, batch=64)


def by_name(method) -> dict[str, dict]:
    return {name: group for group in parameter_groups(method) for name in group["names"]}


def test_groups__every_trained_parameter_once_and_no_teacher() -> None:
    method = make_method("ibot")
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    grouped = [name for group in parameter_groups(method) for name in group["names"]]
    assert sorted(grouped) == sorted(trained)
    assert not any("teacher" in name for name in grouped)
    for group in parameter_groups(method):
        own = [dict(method.named_parameters())[name] for name in group["names"]]
        assert all(a is b for a, b in zip(group["params"], own, strict=True))


TOKENS = ("pos_embed", "cls_token", "mask_token")


def decay_of(method) -> dict[str, float]:
    """Return what the weight decay of each parameter of the student's trunk is multiplied by."""
    # A table of relative positions is a matrix inside a block.
    method.student().blocks[0].rpe_q = nn.Parameter(torch.zeros(2, 5))
    prefix = next(n for n, m in method.named_modules() if m is method.student())
    return {
        name.removeprefix(f"{prefix}."): group["wd_scale"]
        for name, group in by_name(method).items()
    }


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2"])
def test_groups__as_published_all_but_biases_and_norms_decays(name: str) -> None:
    scale = decay_of(make_method(name))
    tokens = TOKENS if name != "dino" else TOKENS[:2]
    decayed = ("blocks.0.linear1.weight", "blocks.0.rpe_q", "patch_embed.0.weight", *tokens)
    assert [scale[key] for key in decayed] == [1] * len(decayed)
    assert [scale[key] for key in ("norm.weight", "norm.bias", "blocks.0.linear1.bias")] == [0] * 3
    assert scale["student_net.heads.cls.prototypes"] == 1
    assert scale["student_net.heads.cls.mlp.0.bias"] == 0


def test_groups__all_parameters_of_moco_decay_as_published() -> None:
    assert set(decay_of(make_method("moco")).values()) == {1.0}


def test_groups__decay_matrices_only() -> None:
    scale = decay_of(make_method("ibot", decayed="matrices"))
    for name in ("blocks.0.linear1.weight", "blocks.0.rpe_q", "patch_embed.0.weight"):
        assert scale[name] == 1
    for name in (*TOKENS, "norm.weight", "blocks.0.linear1.bias"):
        assert scale[name] == 0
    assert scale["student_net.heads.cls.prototypes"] == 1


def test_groups__a_decayed_token_shrinks_by_rate_times_decay() -> None:
    method = make_method("dino")
    optimizer = build_optimizer(method)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.5, 0.1 * group["wd_scale"]
    named = dict(method.student().named_parameters())
    before = {name: x.detach().clone() for name, x in named.items()}
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, factor in (("cls_token", 0.95), ("pos_embed", 0.95), ("norm.weight", 1.0)):
        torch.testing.assert_close(named[name].detach(), factor * before[name])


def test_groups__names_of_no_weight_decay_are_relative_to_their_module() -> None:
    method = make_method("dino", decayed="matrices")
    method.student().no_weight_decay = lambda: {"norm.weight", "blocks.0.linear1.weight"}
    scale = {name: group["wd_scale"] for name, group in by_name(method).items()}
    assert scale["student_net.trunk.blocks.0.linear1.weight"] == 0
    assert scale["student_net.trunk.blocks.0.linear2.weight"] == 1


def test_groups__layers_of_dinov2_slow_down_towards_the_input() -> None:
    method = make_method("dinov2", layer_decay=0.5, patch_lr=0.2)
    scale = {name: group["lr_scale"] for name, group in by_name(method).items()}
    trunk = "student_net.trunk."
    # One block: tokens two levels below the last norm.
    assert scale[trunk + "norm.weight"] == 1
    assert scale[trunk + "blocks.0.linear1.weight"] == 0.5
    assert scale[trunk + "pos_embed"] == scale[trunk + "mask_token"] == 0.25
    assert scale[trunk + "patch_embed.0.weight"] == pytest.approx(0.05)
    assert scale["student_net.heads.cls.prototypes"] == 1


def test_groups__other_methods_have_one_rate() -> None:
    assert {group["lr_scale"] for group in parameter_groups(make_method("dino"))} == {1.0}
    assert len(parameter_groups(make_method("dino"))) == 2


def test_groups__lr_scale_of_a_trunk_without_blocks_is_one() -> None:
    method = make_method("dino", "conv")
    method.config = dataclasses.replace(method.config, layer_decay=0.5)
    assert {group["lr_scale"] for group in parameter_groups(method)} == {1.0}


def test_build_optimizer__is_adamw_over_the_groups() -> None:
    optimizer = build_optimizer(make_method("dino"))
    assert type(optimizer) is torch.optim.AdamW
    assert sorted(group["wd_scale"] for group in optimizer.param_groups) == [0.0, 1.0]


@pytest.mark.parametrize(("scaling", "batch", "lr"), [("linear", 64, 0.25), ("sqrt", 64, 0.5)])
def test_peak_lr__follows_the_batch(scaling: str, batch: int, lr: float) -> None:
    config = MethodConfig(lr=1.0, lr_scaling=scaling)
    assert peak_lr(config, batch) == lr
    assert peak_lr(config, 256) == 1.0


def test_rates__warm_up_then_cosine_and_decay_on_a_cosine_of_its_own() -> None:
    config = MethodConfig(lr=4e-3, min_lr=1e-4, warmup=0.2, weight_decay=0.04, weight_decay_end=0.4)
    found = [learning_rate(config, LENGTH, step) for step in (0, 19, 20, 60)]
    assert found == pytest.approx([1e-3 / 20, 1e-3, 1e-3, (1e-3 + 1e-4) / 2])
    found = [weight_decay(config, LENGTH, step) for step in (0, 50)]
    assert found == pytest.approx([0.04, 0.22])


def test_learning_rate__lower_than_its_end_does_not_rise() -> None:
    config = MethodConfig(lr=1e-7, min_lr=1e-6, warmup=0.0)
    assert learning_rate(config, LENGTH, 0) == learning_rate(config, LENGTH, 99)


def test_clip_gradients__joint_norm() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 0.0).item() == 5
    assert (a.grad.item(), b.grad.item()) == (3, 4)  # 0: measured only
    assert clip_gradients([a, b], 1.0).item() == 5
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), abs=1e-5)
    a.grad.fill_(math.inf)
    assert not clip_gradients([a, b], 0.0).isfinite()


# ---------------------------------------------------------------- the teacher


def test_follow__is_the_running_mean_of_parameters_and_leaves_buffers() -> None:
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    student.extra = nn.Parameter(torch.ones(1))  # as a mask token
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([1.0, 2.0]))
        student.weight.copy_(torch.tensor([3.0, -2.0]))
        student.running_mean.fill_(9)
    ema.follow(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight.detach(), torch.tensor([1.5, 1.0]))
    assert teacher.running_mean.tolist() == [0, 0]
    assert teacher.weight.grad is None


@pytest.mark.parametrize(("momentum", "source"), [(1.0, 0), (0.0, 1)])
def test_follow__ends_of_the_scale_are_exact(momentum: float, source: int) -> None:
    teacher, student = nn.Linear(7, 7), nn.Linear(7, 7)
    expected = [teacher.weight.clone(), student.weight.clone()][source]
    ema.follow(teacher, student, momentum)
    assert torch.equal(teacher.weight, expected)


def test_follow__parameter_that_the_student_lacks_is_an_error() -> None:
    with pytest.raises(KeyError):
        ema.follow(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)


def test_copy_weights__takes_parameters_and_buffers() -> None:
    teacher, student = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    student(torch.randn(8, 3))
    ema.copy_weights(teacher, student)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)


def test_follow__equals_lightly() -> None:
    golden = load_file(Path(__file__).parent / "golden" / "golden.safetensors")
    student, teacher = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    student.weight.data, teacher.weight.data = golden["ema.student"], golden["ema.before"].clone()
    ema.follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), golden["ema.after"], atol=1e-15, rtol=0)
