"""Paired comparison of answers: what is compared, corrected, refused and cautioned."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.stats import metrics
from cytofm_cli.stats.compare import Answers, cautions, compare_runs, share_splits
from cytofm_cli.stats.paired import auc_difference


def answers(name: str, p: np.ndarray, y: np.ndarray, n_groups: int = 60) -> Answers:
    ids = tuple(f"s{i:03d}" for i in range(len(y)))
    groups = tuple(f"p{i % n_groups}" for i in range(len(y)))
    return Answers(name, ids, y, np.stack([1 - p, p], 1), groups, ("0", "1"), ("x",) * len(y))


def test_compare_runs__three_runs_give_three_corrected_pairs() -> None:
    rng = np.random.default_rng(0)
    y = (np.arange(120) % 2).astype(np.int64)
    good, noise = (1 / (1 + np.exp(-(rng.normal(size=120) + k * (y - 0.5)))) for k in (3, 0))
    found = compare_runs([answers("a", noise, y), answers("b", good, y), answers("c", good, y)])
    assert [(p.first, p.second) for p in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    clear, _, same = found
    assert clear.difference.value == pytest.approx(clear.auc[1] - clear.auc[0])
    assert clear.difference.low > 0.2
    assert clear.p_adjusted == pytest.approx(3 * clear.difference.p)
    assert same.p_adjusted == 1.0
    assert json.loads(json.dumps(clear.record()))["auc"] == list(clear.auc)


def test_compare_runs__other_slides_labels_or_names_are_refused() -> None:
    y = (np.arange(20) % 2).astype(np.int64)
    one = answers("a", np.linspace(0, 1, 20), y)
    with pytest.raises(UsageError, match="two runs or more, here 1"):
        compare_runs([one])
    with pytest.raises(UsageError, match="two runs are called a"):
        compare_runs([one, one])
    with pytest.raises(InputError, match=r"different slides \(1: s019"):
        compare_runs([one, answers("b", np.linspace(0, 1, 19), y[:19])])
    with pytest.raises(InputError, match="a and b learnt different labels, s000: 0 and 1"):
        compare_runs([one, answers("b", np.linspace(0, 1, 20), 1 - y)])
    other = dataclasses.replace(one, name="b", classes=("1", "0"))
    said = r"different classes \(the positive or worst last\): 0, 1 and 1, 0"
    with pytest.raises(InputError, match=said):
        compare_runs([one, other])
    other = dataclasses.replace(one, name="b", classes=("0", "2"))
    with pytest.raises(InputError, match=r"worst last\): 0, 1 and 0, 2"):
        compare_runs([one, other])
    with pytest.raises(InputError, match="different groups, s003: p3 and p0"):
        compare_runs([one, answers("b", np.linspace(0, 1, 20), y, n_groups=3)])


def test_share_splits__the_same_slides_are_tested_together() -> None:
    y = (np.arange(20) % 2).astype(np.int64)
    one = answers("a", np.linspace(0, 1, 20), y)
    other = dataclasses.replace(one, parts=("x",) * 19 + ("y",))
    assert share_splits([one, one])
    assert not share_splits([one, one, other])


@pytest.mark.parametrize("classes", [2, 3])
def test_compare_runs__numbers_are_those_of_the_paired_test(classes: int) -> None:
    rng = np.random.default_rng(4)
    y = (np.arange(42) % classes).astype(np.int64)
    names = tuple("xyz"[:classes])
    first, second = (
        dataclasses.replace(
            answers(name, np.zeros(42), y, 21),
            p_SC=rng.dirichlet(np.ones(classes), 42),
            classes=names,
            parts=tuple(f"fold{i % 21 % 3}" for i in range(42)),
        )
        for name in "ab"
    )
    (pair,) = compare_runs([first, second], swaps=300, seed=5)
    assert pair.difference == auc_difference(
        y, first.p_SC, second.p_SC, first.groups, retrained=1.5, swaps=300, seed=5
    )
    assert (
        pair.auc
        == (first.auc, second.auc)
        == (
            float(metrics.macro_auc(y, first.p_SC)),
            float(metrics.macro_auc(y, second.p_SC)),
        )
    )
    record = pair.record()
    assert record["difference"] == dataclasses.asdict(pair.difference)
    assert record["p_adjusted"] == pair.difference.p


def test_compare_runs__undefined_numbers_are_null() -> None:
    y = np.zeros(4, np.int64)
    one = answers("a", np.array([0.1, 0.6, 0.4, 0.9]), y)
    record = compare_runs([one, dataclasses.replace(one, name="b")])[0].record()
    assert record["difference"] == {"value": None, "low": None, "high": None, "p": 1.0}


def test_cautions__few_groups_are_said() -> None:
    y = (np.arange(120) % 2).astype(np.int64)
    (said,) = cautions(answers("a", np.linspace(0, 1, 120), y, n_groups=18))
    assert said.startswith("9 of 18 groups are '0', 9 of 18 groups are '1'")
    assert cautions(answers("a", np.linspace(0, 1, 120), y, n_groups=20)) == []
