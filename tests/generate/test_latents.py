"""The norm of the latents, and running means: closed forms."""

from __future__ import annotations

import copy

import torch

from cytofm_cli.generate.latents import EPS, MOMENTUM, LatentNorm
from cytofm_cli.pretrain import ema

Z = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1


def norm() -> LatentNorm:
    made = LatentNorm(3)
    made.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    made.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    return made


def test_by_batch__is_batch_norm_in_training() -> None:
    ours = norm()
    theirs = torch.nn.BatchNorm2d(3, eps=EPS, momentum=MOMENTUM, affine=False)
    theirs.load_state_dict(ours.state_dict())
    assert torch.allclose(ours.by_batch(Z), theirs(Z), atol=1e-6)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-6), name


def test_by_running__is_batch_norm_at_rest_and_changes_nothing() -> None:
    ours = norm()
    theirs = torch.nn.BatchNorm2d(3, eps=EPS, momentum=MOMENTUM, affine=False).eval()
    theirs.load_state_dict(ours.state_dict())
    before = copy.deepcopy(ours.state_dict())
    assert torch.allclose(ours.by_running(Z), theirs(Z), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_back__undoes_by_running_also_where_a_channel_collapsed() -> None:
    ours = norm()
    ours.running_var[1] = 0.0
    assert torch.allclose(ours.back(ours.by_running(Z)), Z, atol=1e-5)


def test_begin__takes_the_first_batch() -> None:
    ours = LatentNorm(3)
    ours.begin(Z)
    assert torch.allclose(ours.running_mean, Z.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(ours.running_var, Z.var((0, 2, 3), correction=0), atol=1e-5)
    assert int(ours.num_batches_tracked) == 0


def test_given_statistics__make_latents_of_scale_and_bias() -> None:
    ours = LatentNorm(3)
    scale, bias = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, -1.0])
    ours.running_mean.copy_(bias)
    ours.running_var.copy_(1 / scale**2)
    wanted = (Z - bias[:, None, None]) * scale[:, None, None]
    assert torch.allclose(ours.by_running(Z), wanted, rtol=2e-4, atol=1e-6)


def test_ema__closed_form_floats_averaged_counts_copied() -> None:
    teacher, student = norm(), norm()
    student.running_mean.fill_(4.5)
    student.num_batches_tracked.fill_(7)
    ema.follow_buffers(teacher, student, 0.5)
    assert torch.equal(teacher.running_mean, torch.tensor([2.5, 1.75, 3.25]))
    assert int(teacher.num_batches_tracked) == 7
    ema.follow_buffers(teacher, student, 0.0)
    assert torch.equal(teacher.running_mean, student.running_mean)
