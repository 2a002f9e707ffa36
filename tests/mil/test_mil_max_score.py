"""The highest instance scores: hand-worked pooling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cytofm_cli.mil.base import MilHead, make_head


def head_that_scores_the_feature(k: int) -> MilHead:
    head = make_head("max_score", 1, 2, {"k": k})[0].double().eval()
    with torch.no_grad():
        head.score.weight.fill_(2.0)
        head.score.bias.fill_(-1.0)
    return head


def bag_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)


@pytest.mark.parametrize(("k", "expected"), [(1, 5.0), (2, 4.0), (3, 8 / 3), (9, 7 / 4)])
def test_max_score__mean_of_the_k_highest_scores(k: int, expected: float) -> None:
    out = head_that_scores_the_feature(k)(bag_of(0.0, 3.0, 0.5, 2.0))  # scores -1, 5, 0, 3
    assert out.logits_BC[0].tolist() == pytest.approx([0.0, expected])
    part = 1 / min(k, 4)
    highest = {1: [1], 2: [1, 3], 3: [1, 3, 2], 9: [0, 1, 2, 3]}[k]
    assert out.attention_BKN[0, 0].tolist() == [part if i in highest else 0.0 for i in range(4)]
    assert out.score_BCN[0].tolist() == [[0.0] * 4, [-1.0, 5.0, 0.0, 3.0]]


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.integers(1, 20))
def test_max_score__more_instances_never_raise_the_mean_of_the_highest(
    values: list[float], k: int
) -> None:
    z, wider = (
        head_that_scores_the_feature(i)(bag_of(*values)).logits_BC[0, 1] for i in (k, k + 1)
    )
    assert 2 * min(values) - 1 - 1e-9 <= wider <= z + 1e-9
    assert z <= 2 * max(values) - 1 + 1e-9


def test_max_score__map_is_the_gradient_of_the_bags_score() -> None:
    for k in (1, 2):
        head = make_head("max_score", 3, 3, {"k": k})[0].double()
        torch.nn.init.normal_(head.score.weight)
        scores = head.score(torch.randn(1, 7, 3, dtype=torch.float64)).detach().requires_grad_()
        head.project, head.score = torch.nn.Identity(), torch.nn.Identity()
        out = head(scores)
        (gradient,) = torch.autograd.grad(out.logits_BC[0, 2], scores)
        torch.testing.assert_close(out.attention_BKN[0, 1], gradient[0, :, 1])


def test_max_score__prefers_no_instance_at_the_start() -> None:
    out = make_head("max_score", 4, 3)[0](torch.randn(2, 9, 4))
    assert out.score_BCN.abs().max() == 0
    assert out.prob_BC.tolist() == [pytest.approx([1 / 3] * 3)] * 2
