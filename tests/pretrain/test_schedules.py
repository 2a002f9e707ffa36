"""Schedules at the points where their values are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cytofm_cli.pretrain.schedules import cosine, linear

GOLDEN = load_file(Path(__file__).parent / "golden" / "golden.safetensors")


def test_cosine__rises_then_falls_half_a_cosine() -> None:
    values = [cosine(step, 10, 1.0, 0.2, warmup=0.2) for step in (0, 1, 2, 6, 10, 99)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2, 0.2])


def test_cosine__momentum_goes_up_to_one() -> None:
    assert cosine(0, 100, 0.996, 1.0) == 0.996
    assert cosine(50, 100, 0.996, 1.0) == pytest.approx(0.998)
    assert cosine(100, 100, 0.996, 1.0) == 1.0


def test_cosine__equals_lightly() -> None:
    found = [cosine(step, 40, 0.3, 0.02, warmup=0.25) for step in range(40)]
    assert found == pytest.approx(GOLDEN["cosine"].tolist(), abs=1e-12)


@given(st.integers(1, 50), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_cosine__stays_between_its_ends_for_runs_of_any_length(
    n_steps: int, warmup: float, start: float, end: float
) -> None:
    for step in range(n_steps):
        value = cosine(step, n_steps, start, end, warmup=warmup)
        low = 0 if step < warmup * n_steps else min(start, end)
        assert low - 1e-12 <= value <= max(start, end) + 1e-12


def test_cosine__all_warm_up_never_falls() -> None:
    values = [cosine(step, 4, 1.0, 0.0, warmup=1.0) for step in range(4)]
    assert values == [0.25, 0.5, 0.75, 1.0]


def test_linear__reaches_its_end_after_the_share_and_stays() -> None:
    values = [linear(step, 10, 0.04, 0.07, share=0.3) for step in (0, 1, 2, 3, 9)]
    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07])


def test_linear__without_a_share_is_constant() -> None:
    assert linear(0, 10, 0.04, 0.07, share=0.0) == 0.07
