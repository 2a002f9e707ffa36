"""From noise to data: along the flow (ODE: Euler, Heun), or with noise on the way (SDE).

SiT's samplers (arXiv:2401.08740) as REPA runs them. State in float64, the network in its own type.

ODE: t = linspace(1, 0, N + 1), n ← n + (t' - t) v; Heun has a second evaluation at t' in all steps
but the last. SDE (Euler–Maruyama, diffusion w = 2t): t = linspace(1, .04, N), then one step to 0
without noise; its drift v - ½ w s, with the score s, is n + (2 - t) v.
A way that begins at a noised image (SDEdit, arXiv:2108.01073) starts at its t instead of 1, in the
share of the steps that is left of the way.

Guidance is v_null + s (v - v_null), in an interval of t and for s > 1 only: elsewhere the network
is asked once. As the drift is affine in v, guiding v guides it.

Decided, where upstream has a trap: the null condition is the caller's second function, not a
number of a class; a step that needs no guidance makes no second evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import torch
from torch import Tensor

SamplerName = Literal["euler", "heun", "sde"]
LAST_T: Final = 0.04  # where the SDE takes its last step
# (n_t, t) → velocity, of n_t's shape; t is the same for all.
Velocity = Callable[[Tensor, float], Tensor]
# Standard noise of a shape like the state's: of the SDE's step so and so.
Noise = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far the condition leads.

    Attributes:
        scale: s; 1: not at all beyond the condition itself.
        low, high: of t, ends included.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def acts(self, t: float) -> bool:
        """Tell whether the null condition is asked for at t."""
        return self.scale > 1 and self.low <= t <= self.high


def guided(velocity: Velocity, null: Velocity, guidance: Guidance) -> Velocity:
    """Return the guided velocity."""

    def lead(n_t: Tensor, t: float) -> Tensor:
        said = velocity(n_t, t)
        if not guidance.acts(t):
            return said
        free = null(n_t, t)
        return free + guidance.scale * (said - free)

    return lead


def sample(
    velocity: Velocity,
    start: Tensor,
    *,
    sampler: SamplerName,
    steps: int,
    noise: Noise,
    from_t: float = 1.0,
) -> Tensor:
    """Return data, float64 of the start's shape.

    Args:
        velocity: of the network; given the state in float64.
        start: the state at `from_t`; at 1 standard noise.
        sampler: "euler" or "heun" along the flow; "sde" with noise.
        steps: N of the whole way; steps of the SDE with the last one.
        noise: of the SDE's steps, counted from 0; the others draw none.
        from_t: where on the way it starts; at 0 the start is the data.
    """
    n = start.double()
    if from_t == 0:
        return n
    steps = max(1, round(steps * from_t))
    if sampler == "sde":
        return _stochastic(velocity, n, steps, noise, from_t)
    times = torch.linspace(from_t, 0, steps + 1, dtype=torch.float64).tolist()
    for at, (t, then) in enumerate(pairwise(times)):
        said = velocity(n, t).double()
        if sampler == "heun" and at < steps - 1:
            ahead = n + (then - t) * said
            said = (said + velocity(ahead, then).double()) / 2
        n = n + (then - t) * said
    return n


def _stochastic(velocity: Velocity, n: Tensor, steps: int, noise: Noise, from_t: float) -> Tensor:
    for at, (t, then) in enumerate(_sde_steps(steps, from_t)):
        drift = n + (2 - t) * velocity(n, t).double()
        n = n + drift * (then - t)
        if then > 0:
            n = n + (2 * t * (t - then)) ** 0.5 * noise(at, n).double()
    return n


def _sde_steps(steps: int, from_t: float) -> Iterator[tuple[float, float]]:
    """Return t and the next t of each step; of a single one: from the start to 0."""
    if steps == 1 or from_t <= LAST_T:
        return pairwise([from_t, 0.0])
    first = torch.linspace(from_t, LAST_T, steps, dtype=torch.float64).tolist()
    return pairwise([*first, 0.0])
