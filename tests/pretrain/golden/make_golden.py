"""Write golden.safetensors: what lightly 1.6.0 says about small random inputs.

Run with an interpreter that has lightly and torch; the tests need neither it nor a network:

    uv venv /tmp/golden && uv pip install --python /tmp/golden/bin/python lightly==1.6.0
    /tmp/golden/bin/python tests/pretrain/golden/make_golden.py
"""

from __future__ import annotations

from pathlib import Path

import lightly
import torch
from lightly.loss import (
    DINOLoss,
    IBOTPatchLoss,
    KoLeoLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
)
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_warmup_schedule
from safetensors.torch import save_file

K, B = 24, 5
found: dict[str, torch.Tensor] = {}


def draw(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def dino() -> None:
    teacher, student = draw(2, 2, B, K), draw(6, B, K, grad=True)
    loss = DINOLoss(K, warmup_teacher_temp=0.04, teacher_temp=0.07).double()
    first = loss(list(teacher[0]), list(student), teacher_temp=0.05)
    found["dino.centre"] = loss.center.flatten()
    second = loss(list(teacher[1]), list(student), teacher_temp=0.06)
    (first + second).backward()
    found.update(
        {
            "dino.teacher": teacher,
            "dino.student": student,
            "dino.loss": torch.stack([first, second]),
            "dino.grad": student.grad,
        }
    )


def ibot() -> None:
    mask = torch.zeros(4, 3, 3, dtype=torch.bool)
    mask[0, :2, :2] = mask[1, 2, :] = mask[3, 0, 0] = True  # the third image has none
    n = int(mask.sum())
    teacher, student = draw(2, n, K), draw(n, K, grad=True)
    loss = IBOTPatchLoss(K).double()
    values = [loss(rows, student, mask, teacher_temp=0.06) for rows in teacher]
    sum(values).backward()
    found.update(
        {
            "ibot.mask": mask,
            "ibot.teacher": teacher,
            "ibot.student": student,
            "ibot.loss": torch.stack(values),
            "ibot.grad": student.grad,
        }
    )


def pairs() -> None:
    x, y = draw(B, 7, grad=True), draw(B, 7, grad=True)
    losses = {
        "koleo": KoLeoLoss()(x),
        "nt_xent": NTXentLoss(temperature=0.3)(x, y),
        "cosine": NegativeCosineSimilarity()(x, y),
    }
    found.update({"pairs.x": x, "pairs.y": y})
    for name, loss in losses.items():
        found[f"pairs.{name}"] = loss
        found[f"pairs.{name}.grad"] = torch.autograd.grad(loss, x)[0]


def schedules() -> None:
    # lightly reaches the end at step max_steps - 1, we (as DINO's code) behind the last step.
    values = [cosine_warmup_schedule(step, 41, 0.3, 0.02, 10, 0.0) for step in range(40)]
    found["cosine"] = torch.tensor(values, dtype=torch.float64)


def ema() -> None:
    student, teacher = torch.nn.Linear(3, 2).double(), torch.nn.Linear(3, 2).double()
    found["ema.student"], found["ema.before"] = student.weight, teacher.weight.detach().clone()
    update_momentum(student, teacher, 0.9)
    found["ema.after"] = teacher.weight


if __name__ == "__main__":
    torch.manual_seed(0)
    for make in (dino, ibot, pairs, schedules, ema):
        make()
    save_file(
        {name: value.detach().contiguous() for name, value in found.items()},
        Path(__file__).with_name("golden.safetensors"),
        metadata={"lightly": lightly.__version__, "torch": torch.__version__},
    )
