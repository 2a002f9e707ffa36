"""The teacher: a running mean of the student's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters: teacher ← momentum · teacher + (1 - momentum) · student.

    Parameters are matched by name; the student may have more, such as a mask token. One that both
    share (the resting weights beside updates of low rank) is the student's already. Buffers stay:
    the running statistics of a BatchNorm in the teacher are those of its own passes.

    Raises:
        KeyError: the teacher has a parameter that the student lacks.
    """
    theirs, own = _pairs(teacher, student)
    torch._foreach_lerp_(theirs, own, 1 - momentum)


@torch.no_grad()
def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Give the teacher the student's parameters and buffers."""
    theirs, own = _pairs(teacher, student)
    torch._foreach_copy_(theirs, own)
    buffers = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])


@torch.no_grad()
def follow_buffers(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's buffers too: numbers are averaged as parameters are, counts copied."""
    buffers = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        if buffer.is_floating_point():
            buffer.lerp_(buffers[name], 1 - momentum)
        else:
            buffer.copy_(buffers[name])


def own_parameters(teacher: nn.Module, student: nn.Module) -> list[nn.Parameter]:
    """Return the teacher's parameters that are not the student's very own ones."""
    by_name = dict(student.named_parameters())
    return [p for name, p in teacher.named_parameters() if p is not by_name[name]]


def _pairs(teacher: nn.Module, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    by_name = dict(student.named_parameters())
    named = [(name, p) for name, p in teacher.named_parameters() if p is not by_name[name]]
    return [p.detach() for _, p in named], [by_name[name].detach() for name, _ in named]
