"""The straight path from data to noise, and what a network learns of it.

n_t = (1 - t) n + t ε for t from 0 (data) to 1 (noise); the velocity is ε - n (SiT, linear path).

Letters: B images, C channels, h w places, T tokens, E their width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def on_path(n_BChw: Tensor, noise_BChw: Tensor, t_B: Tensor) -> Tensor:
    """Return n_t = (1 - t) n + t ε."""
    t = t_B.view(-1, *[1] * (n_BChw.ndim - 1)).to(n_BChw.dtype)
    return (1 - t) * n_BChw + t * noise_BChw


def draw_times(n: int, how: str, device: torch.device) -> Tensor:
    """Draw times in (0, 1), float32 (n,), from torch's generator.

    Args:
        n: how many.
        how: "uniform", or "lognormal": σ = e^N(0, 1), t = σ / (1 + σ).
        device: where.
    """
    if how == "uniform":
        return torch.rand(n, device=device)
    return torch.sigmoid(torch.randn(n, device=device))


def velocity_loss(velocity_BChw: Tensor, n_BChw: Tensor, noise_BChw: Tensor) -> Tensor:
    """Return the mean square of velocity - (ε - n), a scalar; 2 for a network that says 0."""
    return (velocity_BChw.float() - (noise_BChw - n_BChw).float()).square().mean()


def alignment_loss(said_BTE: Tensor, target_BTE: Tensor) -> Tensor:
    """Return minus the mean cosine of tokens, a scalar: -1 where they agree."""
    return -functional.cosine_similarity(said_BTE.float(), target_BTE.float(), dim=-1).mean()


def score_of(n_t: Tensor, velocity: Tensor, t: float) -> Tensor:
    """Return the score, the gradient of the log density at time t: -(n_t + (1 - t) v) / t."""
    return -(n_t + (1 - t) * velocity) / t
