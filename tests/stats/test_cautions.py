"""What intervals are worth: few groups, no width, replicates without a class."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.describe import bags_text, describe, positive_line, result_line
from cytofm_cli.mil.labels import Cohort
from cytofm_cli.mil.origin import Origin
from cytofm_cli.mil.summary import Pooled, cohort_notes, interval_notes, judge, threshold
from cytofm_cli.stats import cautions as intervals
from cytofm_cli.stats import intervals as statistics
from cytofm_cli.stats import metrics
from cytofm_cli.stats.judge import Decision


def cohort(
    y: list[int], groups: list[str], classes: tuple[str, ...], column: str | None = "case_id"
) -> Cohort:
    bags = tuple(Bag(f"s{i:03}", np.zeros((1, 2), np.float32)) for i in range(len(y)))
    return Cohort(bags, np.array(y), tuple(groups), classes, group_column=column)


def test_class_groups__a_group_counts_once_in_each_of_its_classes() -> None:
    found = intervals.class_groups(np.array([0, 0, 1, 1, 0]), list("ppqrq"), ("neg", "pos"))
    assert found == {"neg": 2, "pos": 2}


def test_cautions__from_ten_groups_of_the_smaller_class_on_there_are_none() -> None:
    assert intervals.cautions({"neg": 200, "pos": 10}, 210) == []
    assert intervals.brief({"neg": 200, "pos": 10}) is None
    assert intervals.brief({"neg": 5, "pos": 59}) == "only 5 groups in the smaller class"


def test_cautions__few_positive_groups_are_counted() -> None:
    (few,) = intervals.cautions({"neg": 17, "pos": 3}, 20)
    assert few.startswith("3 of 20 groups are 'pos'")


def test_cautions__few_are_fewer_than_ten() -> None:
    (few,) = intervals.cautions({"neg": 40, "pos": 9}, 49, "slides")
    assert few.startswith("9 of 49 slides are 'pos': ")


def test_unusable__names_metrics_with_an_interval_without_width_alone() -> None:
    record = {
        "auc": {"value": 1.0, "low": 1.0, "high": 1.0},
        "recall": {"value": 0.5, "low": 0.4, "high": 0.6},
        "brier": {"value": None, "low": None, "high": None},
        "replicates_left_out": {"auc": 3},
        "slides": 20,
    }
    (said,) = intervals.unusable(record)
    assert said.startswith("no usable interval of auc: every replicate")
    assert intervals.unusable({"recall": record["recall"], "slides": 20}) == []


def test_left_out__counts_are_shares_of_the_replicates() -> None:
    assert intervals.left_out({"auc": 30, "recall": 30, "brier": 0, "kappa": 1}, 400) == [
        "30 of 400 replicates (7.5 %) lack what auc, recall needs of each class, and were left "
        "out of its interval",
        "1 of 400 replicates (0.2 %) lack what kappa needs of each class, and were left out of "
        "its interval",
    ]


def test_interval_text__no_width_is_no_interval() -> None:
    assert intervals.interval_text(0.25, 0.75) == "[0.250, 0.750]"
    assert intervals.interval_text(-0.1, 0.1, "+.2f") == "[-0.10, +0.10]"
    assert intervals.interval_text(1.0, 1.0) == "[no interval]"
    for low, high in ((None, None), (0.5, None), (None, 0.5)):
        assert intervals.interval_text(low, high) == "[–, –]"
    assert intervals.is_usable(0.5, None) and intervals.is_usable(None, 0.5)


def test_bootstrap__counts_the_replicates_that_lack_a_class() -> None:
    y, score = np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3])
    weight = np.array([[1, 1, 1], [2, 1, 0], [0, 0, 3], [0, 1, 2]], dtype=np.float64)
    found = statistics.bootstrap(partial(metrics.auc, y, score), weight)
    assert (found.value, found.low, found.high, found.dropped) == (1.0, 1.0, 1.0, 2)
    assert found.record() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_judge__rare_class_of_three_says_how_many_replicates_it_lacks() -> None:
    # The third class is in 2 of 20 groups: a replicate lacks it with probability 0.9^20 = 12 %.
    y = [i % 2 for i in range(18)] + [2, 2]
    three = cohort(y, [f"g{i}" for i in range(20)], ("a", "b", "c"))
    p_SC = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    pooled = Pooled(np.arange(20), p_SC, p_SC.argmax(1))
    config = MilConfig(bootstrap=2000)
    found = judge(pooled, pooled, three, config, ordinal=False, folds=5)
    dropped = found["replicates_left_out"]["average_precision"]
    assert 190 < dropped < 300
    said = [line for line in interval_notes(found, 2000) if "lack" in line]
    assert said[0].startswith(f"{dropped} of 2000 replicates")
    assert "average_precision" in said[0]


def test_judge__perfectly_separated_cohort_has_a_lower_bound() -> None:
    two = cohort([0, 1] * 10, [f"g{i}" for i in range(20)], ("neg", "pos"))
    p_SC = np.array([[0.9, 0.1], [0.2, 0.8]] * 10)
    pooled = Pooled(np.arange(20), p_SC, p_SC.argmax(1))
    found = judge(pooled, pooled, two, MilConfig(bootstrap=200), ordinal=False, folds=1)
    low = found["auc"]["low"]
    assert (found["auc"]["value"], found["auc"]["high"]) == (1.0, 1.0)
    # Newcombe's equation for 10 against 10 patients, t of 18 degrees 2.1009.
    bracket = 1 + 9 * ((1 - low) / (2 - low) + low / (1 + low))
    assert (1 - low) ** 2 == pytest.approx(2.1009**2 * low * (1 - low) / 100 * bracket, rel=1e-3)
    # Wilson: 20 / (20 + 2.093²), t of 19 degrees
    assert found["accuracy"]["low"] == pytest.approx(20 / (20 + 2.0930**2), abs=1e-4)
    pooled_folds = judge(pooled, pooled, two, MilConfig(bootstrap=200), ordinal=False, folds=5)
    assert pooled_folds["auc"]["low"] < found["auc"]["low"]
    (said,) = intervals.unusable(found)
    assert said.startswith("no usable interval of average_precision")
    assert said in interval_notes(found, 200)


def test_cohort_notes__without_patients_slides_are_taken_as_patients() -> None:
    groups = [f"s{i}" for i in range(8)]
    alone, *few = cohort_notes(cohort([0, 1] * 4, groups, ("neg", "pos"), column=None))
    assert few == [
        "4 of 8 groups are 'neg', 4 of 8 groups are 'pos': whatever is said of so few may change "
        "with one more",
    ]
    assert "every slide is taken as a patient" in alone
    named, *_ = cohort_notes(cohort([0, 1] * 4, groups, ("neg", "pos")))
    assert named == "every slide is its own group: column 'case_id' names no two"
    many = cohort([0, 1] * 60, [f"g{i // 2}" for i in range(120)], ("neg", "pos"))
    assert cohort_notes(many) == []
    assert cohort_notes(many, np.arange(6))[0].startswith("3 of 3 groups are 'neg'")


def test_describe__classes_positive_groups_encoder_unit_and_tiles() -> None:
    two = cohort([0, 1, 1, 0], list("ppqr"), ("normal", "abnormal"))
    assert describe(two, MilConfig()) == [
        "classes of column 'label': 'normal' 2 slides of 2 groups, 'abnormal' 2 slides of 2 groups",
        "positive class: 'abnormal' ('normal' says that nothing was found)",
        "4 slides of 3 groups (column 'case_id')",
    ]
    origin = Origin(encoder="uni", unit="tile", tile_px=256, mpp=0.5)
    assert bags_text(origin, "tile") == "encoder uni, unit tile, tiles of 256 px at 0.5 µm/px"
    cells = Origin(encoder="uni", unit="cell", tile_px=256, mpp=0.25, cell_um=32.0)
    assert bags_text(cells, "cell").endswith("tiles of 256 px at 0.25 µm/px, cells of 32 µm")
    assert bags_text(Origin(), "tile") == "encoder not stated, unit tile"
    assert positive_line(("a", "b", "c")) == (
        "3 classes, none is positive; in order: 'a', 'b', 'c'"
    )


def test_threshold__names_its_class_rule_and_folds() -> None:
    two = cohort([0, 1], ["a", "b"], ("neg", "pos"))
    decisions = [Decision(1.0, 0.25), Decision(1.0, 0.75)]
    assert threshold(decisions, two, MilConfig()) == {
        "of": "pos",
        "rule": "youden",
        "mean": 0.5,
        "by_fold": [0.25, 0.75],
    }
    three = cohort([0, 1, 2], ["a", "b", "c"], ("x", "y", "z"))
    assert threshold(decisions, three, MilConfig()) is None


def test_result_line__of_a_new_and_of_an_old_run() -> None:
    found = {
        "method": "abmil",
        "classes": ["neg", "pos"],
        "slides": 20,
        "groups": 20,
        "auc": {"value": 1.0, "low": 1.0, "high": 1.0},
        "accuracy": {"value": 0.9, "low": 0.8, "high": 0.95},
        "recall": {"value": 0.5, "low": 0.25, "high": 0.75},
    }
    old = "abmil: auc 1.000 [no interval], accuracy 0.900 [0.800, 0.950], recall of 'pos' 0.500 "
    assert result_line(found) == old + "[0.250, 0.750]  (20 slides, 20 groups)"
    new = found | {
        "class_groups": {"neg": 17, "pos": 3},
        "threshold": {"of": "pos", "rule": "youden", "mean": 0.4, "by_fold": [0.4]},
    }
    assert result_line(new) == (
        old + "[0.250, 0.750], threshold for 'pos' 0.400 (youden)  (20 slides, 20 groups; "
        "only 3 groups in the smaller class)"
    )
