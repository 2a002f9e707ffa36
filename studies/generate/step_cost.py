"""CPU seconds an image and update of tiny's losses and gradients take, on one thread.

python step_cost.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from cytofm_cli.generate.conditions import ConditionShape
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.repa_e import RepaE, Weights
from cytofm_cli.generate.sit import SitShape
from cytofm_cli.generate.vae import VaeShape
from cytofm_cli.pretrain.base import Batch, MethodConfig
from cytofm_cli.views.draws import sample_keys

IMAGES, REPEATS = 8, 2


def tiny() -> RepaE:
    eyes = FrozenEncoder("cytofm-tiny", 4)
    sit = SitShape(
        side=8, depth=4, width=128, heads=4, patch=2, aligned_depth=2, projector=256,
        aligned=eyes.token_dim, condition=ConditionShape(kind="encoder", dim=eyes.dim),
    )  # fmt: skip
    vae, rates = VaeShape(base=32, blocks=1), MethodConfig(lr=3e-4)
    return RepaE(vae, sit, Weights(gan=0.0), rates, told=eyes, aligned=eyes).train()


def cost(model: RepaE, batch: Batch, *, bf16: bool) -> float:
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(batch, 0).loss
    torch.autograd.backward(loss)
    model.zero_grad()
    return (time.process_time() - start) / IMAGES


def main() -> None:
    torch.set_num_threads(1)
    model, tiles = tiny(), np.arange(IMAGES)
    views = [torch.rand(IMAGES, 3, 64, 64)]
    batch = Batch(views=views, n_global=1, keys_B=sample_keys(0, tiles), tiles_B=tiles)
    cost(model, batch, bf16=False)
    pairs = [[cost(model, batch, bf16=bf16) for bf16 in (False, True)] for _ in range(REPEATS)]
    for name, seconds in zip(("float32", "bf16"), zip(*pairs, strict=True), strict=True):
        print(f"{name}: {statistics.median(seconds):.3f}")
    model.vae.to(memory_format=torch.channels_last)
    last = statistics.median(cost(model, batch, bf16=False) for _ in range(REPEATS))
    print(f"float32, channels_last: {last:.3f}")


if __name__ == "__main__":
    main()
