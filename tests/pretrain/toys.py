"""Small trunks, batches and methods for the tests of pretraining.

Import as `from .toys import …` (tests of this folder only).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from cytofm_cli.pretrain.base import Batch, Length, Method
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.testing.samples.trunks import Backbones
from cytofm_cli.views.draws import sample_keys

# Small enough to differentiate in float64 within milliseconds.
SMALL = {"prototypes": 32, "hidden": 24, "bottleneck": 8, "out": 8, "mask_min_patches": 1}


def length(n_steps: int = 100, batch: int = 8) -> Length:
    return Length(n_steps=n_steps, steps_per_epoch=10, batch=batch)


def make_method(
    name: str, kind: str = "vit", *, n_steps: int = 100, seed: int = 0, **settings: Any
) -> Method:
    """Build a method with a small head; settings that it lacks are left out."""
    plugin = pretrain_methods.load(name)
    known = {field.name for field in dataclasses.fields(plugin.config)}
    wanted = {k: v for k, v in {**SMALL, **settings}.items() if k in known}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = plugin.make(Backbones(kind, seed), plugin.config(**wanted), length(n_steps))
    return method.train()


def make_batch(
    method: str = "dino", n: int = 8, seed: int = 0, n_local: int | None = None
) -> Batch:
    """Draw images that differ between tiles more than between the views of a tile."""
    if n_local is None:
        n_local = 2 if method in ("dino", "ibot", "dinov2") else 0
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(n, 3, 1, 1, generator=generator)
    views = [
        tile + 0.5 * torch.randn(n, 3, size, size, generator=generator)
        for size in [16, 16, *[8] * n_local]
    ]
    if method == "distill":  # the teacher's
        views.append(tile + 0.5 * torch.randn(n, 3, 16, 16, generator=generator))
    return Batch(views=views, n_global=2, keys_B=sample_keys(seed, np.arange(n)))


def rows(batch: Batch, index: Any) -> Batch:
    """Return some tiles of a batch."""
    return Batch(
        views=[view[index] for view in batch.views],
        n_global=batch.n_global,
        keys_B=batch.keys_B[np.asarray(index)],
    )
