"""Paired comparison of answers: what is compared, corrected, refused and cautioned."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.stats import intervals, metrics
from cytofm_cli.stats.compare import Answers, cautions, compare_runs, share_splits


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
    assert clear.bootstrap.value == pytest.approx(clear.auc[1] - clear.auc[0])
    assert clear.bootstrap.low > 0.2
    assert clear.p_adjusted == pytest.approx(3 * clear.bootstrap.p)
    assert clear.delong is not None
    assert clear.delong_p_adjusted == pytest.approx(3 * clear.delong.p)
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


def test_compare_runs__numbers_are_those_of_the_two_tests() -> None:
    rng = np.random.default_rng(4)
    y = (np.arange(40) % 2).astype(np.int64)
    first, second = (1 / (1 + np.exp(-(rng.normal(size=40) + y))) for _ in range(2))
    runs = [answers("a", first, y, 20), answers("b", second, y, 20)]
    (pair,) = compare_runs(runs, replicates=300, seed=5)
    weight = intervals.group_weights(runs[0].groups, 300, 5)
    wanted = intervals.paired_bootstrap(
        lambda w: metrics.auc(y, first, w), lambda w: metrics.auc(y, second, w), weight
    )
    assert pair.bootstrap == wanted
    assert pair.auc == (metrics.auc(y, first), metrics.auc(y, second))
    assert pair.delong == intervals.delong_test(y, first, second, runs[0].groups)
    record = pair.record()
    assert record["difference"] == dataclasses.asdict(wanted)
    assert record["delong"] == dataclasses.asdict(pair.delong)
    assert (record["p_adjusted"], record["delong_p_adjusted"]) == (wanted.p, pair.delong.p)
    assert compare_runs(runs) == compare_runs(runs, replicates=2000, seed=0) != [pair]


def test_compare_runs__more_classes_than_two_have_no_delong() -> None:
    y = np.array([0, 1, 2] * 8)
    p_SC = np.random.default_rng(0).dirichlet(np.ones(3), 24)
    one = dataclasses.replace(answers("a", np.zeros(24), y), p_SC=p_SC, classes=("x", "y", "z"))
    other = dataclasses.replace(one, name="b", p_SC=p_SC[::-1].copy())
    (pair,) = compare_runs([one, other], replicates=50)
    assert pair.delong is None and pair.delong_p_adjusted is None
    assert pair.record()["delong"] is None
    assert pair.auc[0] == one.auc == float(metrics.macro_auc(y, p_SC))


def test_compare_runs__undefined_numbers_are_null() -> None:
    y = np.array([0, 0, 1, 1])
    one = dataclasses.replace(answers("a", np.array([0.1, 0.6, 0.4, 0.9]), y), groups=tuple("ppqq"))
    other = dataclasses.replace(one, name="b", p_SC=one.p_SC[::-1].copy())
    record = compare_runs([one, other], replicates=50)[0].record()
    assert record["delong"] == {"value": -0.5, "low": None, "high": None, "p": 1.0}


def test_cautions__few_groups_are_said() -> None:
    y = (np.arange(120) % 2).astype(np.int64)
    few = answers("a", np.linspace(0, 1, 120), y, n_groups=59)
    *_, said = cautions(few)
    assert said.startswith("paired tests on 59 groups")
    enough = answers("a", np.linspace(0, 1, 120), y, n_groups=60)
    assert not any("paired tests" in line for line in cautions(enough))


def test_share_splits__the_same_slides_are_tested_together() -> None:
    y = (np.arange(20) % 2).astype(np.int64)
    one = answers("a", np.linspace(0, 1, 20), y)
    other = dataclasses.replace(one, parts=("x",) * 19 + ("y",))
    assert share_splits([one, one])
    assert not share_splits([one, one, other])
