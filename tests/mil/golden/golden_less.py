"""Golden values of LESS: the aggregator, its learning rates and the VPU loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from fill import bag, permutation
from official import less_crossvit, less_vpu
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from make_golden import Values

Bags = Iterator[tuple[Tensor, int]]
SMALL, LARGE, MIX = 48, 96, 0.375
UNUSED = ("patch_embed.", "pos_embed.", "fc1.", "fc2.")  # allocated, never reached
# What `main.py` reads from its command line, at the epochs of the paper.
ARGS = SimpleNamespace(
    **{"opt": "adam", "opt_eps": 1e-8, "opt_betas": None, "weight_decay": 0.1, "lr": 1e-6},
    **{"sched": "cosine", "epochs": 100, "min_lr": 0.0, "warmup_lr": 1e-6, "warmup_epochs": 1},
    **{"cooldown_epochs": 10, "momentum": 0.9, "lr_noise": None, "seed": 42},
)


def less(
    values: Values, root: Path, bags: Sequence[int], passes: Callable[[str, int, int, int], Bags]
) -> None:
    """Run the aggregator at widths 48 and 96, and the rest."""
    from timm.optim import create_optimizer
    from timm.scheduler import create_scheduler

    module = less_crossvit(root)
    for classes in (2, 3):
        name, model = f"less_{classes}", make(module.VisionTransformer, classes)
        values.fill(name, model)
        used = {k: p for k, p in model.named_parameters() if not k.startswith(UNUSED)}
        values.shapes[name] = {k: list(p.shape) for k, p in used.items()}
        aggregator(values, name, model, used, bags)
        optimizer, losses = create_optimizer(ARGS, model), []
        for x, y in passes(name, SMALL + LARGE, classes, 1):
            loss = F.cross_entropy(judge(model, x), torch.tensor([y]))
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        values.put(f"{name}.train.losses", torch.stack(losses))
        values.moved(f"{name}.moved", name, used)
    rates, optimizer = [], create_optimizer(ARGS, nn.Linear(2, 2))
    scheduler, _ = create_scheduler(ARGS, optimizer)
    for epoch in range(ARGS.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch - 1)
    values.put("less.rates", torch.tensor(rates))
    variational(values, less_vpu(root))


def make(kind: type[nn.Module], classes: int) -> nn.Module:
    """Make two multi-scale blocks with 1 and 2 self-attention layers."""
    return kind(
        img_size=[240, 224],
        patch_size=[12, 16],
        num_classes=classes,
        embed_dim=[SMALL, LARGE],
        depth=[[1, 2, 0]] * 2,
        num_heads=[4, 4],
        mlp_ratio=[4, 4, 1],
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def judge(model: nn.Module, x: Tensor) -> Tensor:
    """Give each branch its columns."""
    return model(x[None, :, :SMALL], x[None, :, SMALL:])


def aggregator(
    values: Values,
    name: str,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    bags: Sequence[int],
) -> None:
    """Keep outputs, losses and gradients."""
    seen: dict[str, Tensor] = {}
    for branch in (0, 1):
        model.norm[branch].register_forward_hook(
            lambda _m, _i, out, b=branch: seen.update({f"bag{b}": out[:, 0]})
        )
        model.head1[branch].register_forward_hook(
            lambda _m, _i, out, b=branch: seen.update({f"logits{b}": out})
        )
        # The dropout is handed the softmaxed scores: heads × 1 × (class token, instances).
        model.blocks[-1].fusion[branch].attn.attn_drop.register_forward_hook(
            lambda _m, i, _o, b=branch: seen.update({f"attention{b}": i[0][0, :, 0, 1:].mean(0)})
        )
    for n in bags:
        x = bag(name, n, SMALL + LARGE)
        values.put(f"{name}.out.n{n}.logits", judge(model, x))
        for key, value in seen.items():
            values.put(f"{name}.out.n{n}.{key}", value)
        for y in range(model.num_classes):
            loss = F.cross_entropy(judge(model, x), torch.tensor([y]))
            values.put(f"{name}.loss.n{n}.y{y}", loss)
            loss.backward()
            values.grad(f"{name}.grad.n{n}.y{y}", name, parameters)


class Phi(nn.Module):
    """A linear φ, in the form that the VPU training wants its network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and features."""
        return self.fc(x).log_softmax(1), x


def variational(values: Values, module: object) -> None:
    """Keep one update of the VPU training; λ and the pairs of its mix-up are given."""
    phi = Phi()
    values.fill("vpu", phi)
    config = SimpleNamespace(val_iterations=1, alpha=0.3, lam=0.03)
    labelled, unlabelled = (
        [(bag(f"vpu {side}", 20, 24), torch.zeros(20))] for side in ("labelled", "unlabelled")
    )
    beta = torch.distributions.beta.Beta
    with (
        patch.object(torch, "randperm", lambda n: permutation("vpu", n)),
        patch.object(beta, "sample", lambda _: torch.tensor(MIX)),
    ):
        still = torch.optim.SGD(phi.parameters(), lr=0.0)
        found = module.train(config, phi, still, labelled, unlabelled)
    for key, value in zip(("total", "variational", "mixup"), found[:3], strict=True):
        values.put(f"vpu.{key}", torch.tensor(value))
    for key, p in phi.named_parameters():
        values.put(f"vpu.grad.{key}", p.grad)
    values.put("vpu.validation", torch.tensor(module.cal_val_var(phi, labelled, unlabelled)))
