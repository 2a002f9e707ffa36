"""Samplers on a case that is solved exactly, guidance, and how often the network is asked."""

from __future__ import annotations

import pytest
import torch

from cytofm_cli.generate.interpolant import score_of
from cytofm_cli.generate.samplers import Guidance, guided, sample

MEAN, SPREAD = 0.7, 0.3
# Standard deviations of samples of N(0.7, 0.3²) with the exact velocity: recursion, no draws.
TABLE = {
    5: (0.199881, 0.241210, 0.368607),
    10: (0.246865, 0.285501, 0.297575),
    20: (0.272371, 0.296573, 0.292080),
    50: (0.288654, 0.299478, 0.291362),
    250: (0.297697, 0.299980, 0.291545),
}


def exact(x: torch.Tensor, t: float) -> torch.Tensor:
    """Return the velocity of N(MEAN, SPREAD²) data, which is affine in x."""
    slope = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
    return slope * (x - (1 - t) * MEAN) - MEAN


def silent(step: int, n: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(n)


def moments(sampler: str, steps: int, velocity=exact) -> tuple[float, float]:
    """Return mean and spread: the sampler is affine in its noises, so each is followed alone."""
    columns = torch.zeros(steps + 2, dtype=torch.float64)  # no noise; the start's; each step's
    columns[1] = 1

    def noise(step: int, n: torch.Tensor) -> torch.Tensor:
        drawn = torch.zeros_like(n)
        drawn[2 + step] = 1
        return drawn

    ended = sample(velocity, columns, sampler=sampler, steps=steps, noise=noise)
    return float(ended[0]), float((ended[1:] - ended[0]).norm())


@pytest.mark.parametrize("steps", TABLE)
@pytest.mark.parametrize(("sampler", "column"), [("euler", 0), ("heun", 1), ("sde", 2)])
def test_samplers__reach_the_exact_mean_and_spread(sampler: str, column: int, steps: int) -> None:
    mean, spread = moments(sampler, steps)
    assert mean == pytest.approx(MEAN, abs=1e-9)
    assert spread == pytest.approx(TABLE[steps][column], abs=1e-6)


def test_samplers__a_wrong_sign_of_the_velocity_goes_astray() -> None:
    mean, _ = moments("euler", 50, lambda x, t: -exact(x, t))
    assert abs(mean - MEAN) > 0.5


def test_sde__is_its_drift_and_its_noise() -> None:
    """One step by hand, from the score: drift v - ½ · 2t · s, noise √(2 t |dt|)."""
    start = torch.tensor([0.4], dtype=torch.float64)
    quiet = sample(exact, start, sampler="sde", steps=2, noise=silent)
    drift = exact(start, 1.0) - score_of(start, exact(start, 1.0), 1.0)
    first = start + (0.04 - 1) * drift
    drift = exact(first, 0.04) - 0.04 * score_of(first, exact(first, 0.04), 0.04)
    assert torch.allclose(quiet, first - 0.04 * drift, atol=1e-12)
    recorded = torch.tensor([1.5], dtype=torch.float64)
    loud = sample(exact, start, sampler="sde", steps=2, noise=lambda step, n: recorded)
    first = first + (2 * 0.96) ** 0.5 * recorded
    drift = exact(first, 0.04) - 0.04 * score_of(first, exact(first, 0.04), 0.04)
    assert torch.allclose(loud, first - 0.04 * drift, atol=1e-12)


def test_sde__draws_no_noise_in_its_last_step() -> None:
    asked: list[int] = []

    def noise(step: int, n: torch.Tensor) -> torch.Tensor:
        asked.append(step)
        return torch.zeros_like(n)

    sample(exact, torch.zeros(1), sampler="sde", steps=5, noise=noise)
    assert asked == [0, 1, 2, 3]


def asks(guidance: Guidance, sampler: str, steps: int) -> tuple[list[float], list[float], float]:
    told: list[float] = []
    free: list[float] = []

    def with_condition(x: torch.Tensor, t: float) -> torch.Tensor:
        told.append(t)
        return exact(x, t)

    def without(x: torch.Tensor, t: float) -> torch.Tensor:
        free.append(t)
        return 0.5 * x

    ended = sample(
        guided(with_condition, without, guidance),
        torch.tensor([0.3]),
        sampler=sampler,
        steps=steps,
        noise=silent,
    )
    return told, free, float(ended)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 8), ("heun", 15), ("sde", 8)])
def test_guidance__of_one_is_no_guidance_bit_for_bit(sampler: str, calls: int) -> None:
    told, free, ended = asks(Guidance(scale=1.0), sampler, 8)
    plain = sample(exact, torch.tensor([0.3]), sampler=sampler, steps=8, noise=silent)
    assert (len(told), free, ended) == (calls, [], float(plain))


def test_guidance__asks_twice_inside_its_interval_only() -> None:
    told, free, _ = asks(Guidance(scale=2.5, low=0.25, high=0.75), "euler", 8)
    assert told == [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert free == [0.75, 0.625, 0.5, 0.375, 0.25]


def test_guidance__leads_away_from_the_null() -> None:
    led = guided(lambda x, t: x * 3, lambda x, t: x, Guidance(scale=2.5))
    assert float(led(torch.tensor(1.0), 0.5)) == 1 + 2.5 * 2
