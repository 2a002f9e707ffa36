"""Cross-fitting, calibration, and what is said of held-out answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from cytofm_cli.cells import judging
from cytofm_cli.cells.classifier import Answer, NetworkClassifier, classifier_of
from cytofm_cli.cells.config import ApplyConfig, CellsConfig
from cytofm_cli.cells.fit import cross_fit, fit_penalised, penalty_of, temperature_of
from cytofm_cli.cells.run import answers_of
from cytofm_cli.cells.run_folder import load_run
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.evaluate import probe
from cytofm_cli.stats import metrics


def cohort(n_groups: int = 6, each: int = 12, classes: int = 3, shift: float = 1.5):
    rng = np.random.default_rng(0)
    group_N = np.repeat(np.arange(n_groups), each)
    y_N = np.tile(np.arange(each) % classes, n_groups)
    x_ND = rng.normal(0, 1, (len(y_N), 5)) + shift * np.eye(5)[y_N]
    return x_ND.astype(np.float32), y_N, group_N


def test_linear__held_out_answers_are_those_of_the_probe() -> None:
    x_ND, y_N, group_N = cohort()
    crossed = cross_fit(CellsConfig(), x_ND, y_N, group_N, group_N, 3)
    theirs = probe.out_of_fold(x_ND, y_N, group_N, group_N, probe.linear())["linear"]
    assert crossed.answer.probabilities() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("linear", {"penalty": 0.1}),
        ("mlp", {"penalty": 0.1}),
        ("one-class", {}),
        ("one-class", {"distance": "knn"}),
    ],
)
def test_classifier__comes_back_from_its_arrays_and_says_the_same_in_any_block(
    model: Any, settings: dict[str, Any]
) -> None:
    x_ND, y_N, group_N = cohort()
    config = CellsConfig(model=model, **settings)
    crossed = cross_fit(config, x_ND, y_N, group_N, group_N, 3)
    again = classifier_of(crossed.whole.arrays())
    first, second = crossed.whole.answer(x_ND), again.answer(x_ND)
    assert np.array_equal(first.log_MC, second.log_MC)
    assert first.probabilities().sum(1) == pytest.approx(np.ones(len(x_ND)))
    # The classifier of a fold is what comes of the other folds alone.
    held = group_N == 2
    without = cross_fit(
        config, x_ND[~held], y_N[~held], group_N[~held], np.minimum(group_N, 4)[~held], 3
    ).whole
    name = "whiten" if model == "one-class" else "output"
    expected = without.arrays()[name]
    assert crossed.folds[2].arrays()[name] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("each", "least"), [(12, 0.9), (90, 0.98)])
@pytest.mark.parametrize("ordinal", [False, True])
def test_mlp__learns_what_a_line_learns_with_the_penalty_it_chooses(
    each: int, least: float, ordinal: bool
) -> None:
    x_ND, y_N, group_N = cohort(each=each, shift=4)
    config = CellsConfig(model="mlp", hidden=8, ordinal=ordinal)
    crossed = cross_fit(config, x_ND, y_N, group_N, group_N % 3, 3)
    p_NC = crossed.probabilities()
    assert (p_NC.argmax(1) == y_N).mean() > least
    assert p_NC[np.arange(len(y_N)), y_N].mean() > least - 0.1


def test_penalty_of_mlp__is_none_at_which_its_weights_vanish() -> None:
    # Nothing but noise: the noise of weights that have vanished must not win by its order.
    rng = np.random.default_rng(3)
    y_N, group_N = np.arange(360) % 3, np.repeat(np.arange(6), 60)
    x_ND = (rng.normal(0, 1, (360, 40)) + 0.7 * np.eye(40)[y_N]).astype(np.float32)
    config = CellsConfig(model="mlp", hidden=8)
    c = penalty_of(config, x_ND, y_N, group_N)
    fitted = fit_penalised(config, x_ND, y_N, 3, c)
    assert np.ptp(fitted.answer(x_ND).probabilities(), 0).min() > 0.1


def test_class_that_a_fold_lacks__gets_no_probability_there() -> None:
    x_ND, y_N, group_N = cohort()
    y_N = np.where((y_N == 2) & (group_N > 0), 0, y_N)  # class 2 is in group 0 alone
    crossed = cross_fit(CellsConfig(penalty=0.1), x_ND, y_N, group_N, group_N, 3)
    of = crossed.folds[0]
    assert isinstance(of, NetworkClassifier)
    assert of.present.tolist() == [0, 1]
    assert crossed.probabilities()[group_N == 0, 2].max() < 1e-3
    assert np.isfinite(crossed.answer.log_MC).all()
    known = (y_N < 2) | (group_N > 0)  # the others are no matter of sureness
    weight_N = probe.class_weights(y_N, 3, balanced=True)[y_N]
    alone = Answer(crossed.answer.log_MC[known])
    assert crossed.temperature == temperature_of(alone, y_N[known], weight_N[known])


def test_folds_that_have_no_class_in_common__leave_probabilities_as_they_are() -> None:
    x_ND, y_N, group_N = cohort(n_groups=4, classes=2)
    y_N = y_N + 2 * (group_N % 2)
    crossed = cross_fit(CellsConfig(penalty=0.1), x_ND, y_N, group_N, group_N % 2, 4)
    assert (crossed.temperature, crossed.temperature_F) == (1.0, (1.0, 1.0))
    assert np.isfinite(crossed.probabilities()).all()


# Normal cells are one Gaussian here, of which the distance from the mean says all there is.
@pytest.mark.parametrize(
    ("distance", "least", "share"), [("mahalanobis", 0.99, 1.0), ("knn", 0.98, 0.95)]
)
def test_one_class__knows_only_normal_cells_and_ranks_the_others_beyond(
    distance: Literal["mahalanobis", "knn"], least: float, share: float
) -> None:
    x_ND, y_N, group_N = cohort(classes=2, shift=6)
    x_ND[y_N == 0] -= 6 * np.eye(5)[0]  # normal cells lie around the origin
    config = CellsConfig(model="one-class", distance=distance)
    crossed = cross_fit(config, x_ND, y_N, group_N, group_N, 2)
    others = x_ND.copy()
    others[y_N == 1] += 100
    same = cross_fit(config, others, y_N, group_N, group_N, 2)
    assert np.array_equal(crossed.whole.arrays()["whiten"], same.whole.arrays()["whiten"])
    assert crossed.answer.score_M is not None
    assert metrics.auc(y_N, crossed.answer.score_M) > least
    # Against normal cells of the other folds: about half of the normal ones lie beyond the half.
    nearer_N = crossed.probabilities()[:, 1]
    assert 0.3 < (nearer_N[y_N == 0] > 0.5).mean() < 0.7
    said_N, kept_N = answers_of(0.9, nearer_N[:, None] * [0, 1], 0.0)
    assert said_N[y_N == 1].mean() >= share
    assert kept_N.all()


def test_temperature__is_found_where_the_answers_were_made_too_sure() -> None:
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(0, 2, (20_000, 3))
    p_NC = metrics.softmax(logits_NC)
    y_N = (rng.random((len(p_NC), 1)) > p_NC.cumsum(1)).sum(1)
    too_sure = Answer(logits_NC * 2.5)
    assert temperature_of(too_sure, y_N, np.ones(len(y_N))) == pytest.approx(2.5, rel=0.05)
    # Three cells of weight 1 count like one of weight 3.
    few, weight = slice(0, 50), np.where(np.arange(50) < 10, 3.0, 1.0)
    thrice = np.r_[np.arange(50), np.arange(10), np.arange(10)]
    weighted = metrics.fit_temperature(logits_NC[few], y_N[few], weight_N=weight)
    assert weighted == pytest.approx(metrics.fit_temperature(logits_NC[thrice], y_N[thrice]))


@pytest.mark.parametrize("strength", [0.1, 1e-3, 10.0])
def test_temperature__of_answers_that_are_right_and_unsure_says_what_so_many_cells_can(
    strength: float,
) -> None:
    # Each class is told by one logit: all answers are right, and no temperature is sure enough.
    y_N = np.repeat([0, 1, 2], [6, 6, 18])
    answer = Answer(np.log(metrics.softmax(strength * np.eye(3)[y_N])))
    weight_N = probe.class_weights(y_N, 3, balanced=True)[y_N]
    p_NC = answer.probabilities(temperature_of(answer, y_N, weight_N))
    # One probability for all: the mean of Platt's targets, of classes that weigh alike.
    wanted = np.mean([7 / 9, 7 / 9, 19 / 21])
    assert p_NC[np.arange(30), y_N] == pytest.approx(wanted, abs=1e-4)


def test_temperature_of_a_fold__owes_nothing_to_its_own_answers() -> None:
    x_ND, y_N, group_N = cohort()
    crossed = cross_fit(CellsConfig(class_weights="none"), x_ND, y_N, group_N, group_N, 3)
    rest = group_N != 3
    alone = metrics.fit_temperature(crossed.answer.log_MC[rest], y_N[rest])
    assert crossed.temperature_F[3] == pytest.approx(alone)
    raw = cross_fit(CellsConfig(calibrate=False), x_ND, y_N, group_N, group_N, 3)
    assert raw.temperature_F == (1.0,) * 6


def test_coverage__is_counted_by_hand() -> None:
    p_NC = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.55, 0.45]])
    y_N, said_N = np.array([0, 0, 1, 1]), p_NC.argmax(1)
    rows = judging.coverage(y_N, said_N, p_NC, (0.0, 0.7, 0.95))
    assert rows == [
        {"threshold": 0.0, "coverage": 1.0, "accuracy": 0.5, "balanced_accuracy": 0.5},
        {"threshold": 0.7, "coverage": 0.5, "accuracy": 1.0, "balanced_accuracy": 1.0},
        {"threshold": 0.95, "coverage": 0.0, "accuracy": None, "balanced_accuracy": None},
    ]


def test_judge__counts_by_hand_and_orders_by_the_rank() -> None:
    y_N, said_N = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    p_NC = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7], [0.9, 0.1]])
    of = judging.Judged(y_N, said_N, p_NC, p_NC, tuple("abcde"), np.ones(5), 0.0)
    found = judging.judge(of, ("NILM", "HSIL"), ordinal=True)
    assert found["confusion"] == [[1, 1], [1, 2]]
    assert found["accuracy"]["value"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"]["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["classes"]["HSIL"]["precision"] == pytest.approx(2 / 3)
    assert found["auc"]["value"] == pytest.approx(4 / 6)
    assert found["quadratic_kappa"] == pytest.approx(1 / 6)
    turned = dataclasses.replace(of, rank_NC=1 - p_NC)
    assert judging.judge(turned, ("a", "b"), ordinal=False)["auc"]["value"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "one-class", "ordinal": True}, "ordinal"),
        ({"model": "one-class", "abstain": 0.5}, "abstain"),
        ({"model": "one-class", "task": "abnormal"}, "task"),
        ({"model": "mlp", "distance": "knn"}, "distance"),
        ({"normal": ("NILM",)}, "normal"),
        ({"order": ("a", "b"), "task": "abnormal"}, "order"),
        ({"model": "forest"}, "model"),
    ],
)
def test_settings__that_mean_nothing_together_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CellsConfig(**settings)
    assert ApplyConfig().abstain is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_um": {}},
        {"facts": []},
        {"facts": {"mean": ["x"]}},
        {"adapters": []},
        {"classes": ["a", 1]},
        {"fold_of_group": {"p1": "0"}},
        {"groups_of_slide": {"s1": "p1"}},  # a name, whose letters are no groups
        {"groups_of_slide": {"s1": [1]}},
        {"facts": {"mean": [0.5], "std": [0.5]}},
        {"encoder": {"name": "handcrafted"}},
        {"temperatures": [0.0]},
        {"temperature": float("nan")},
        {"temperatures": [float("nan")]},
        {"crop_um": -1.0},
        {"fold_of_group": {"p1": 1}},
    ],
)
def test_card__what_nothing_can_compute_with_is_refused_with_the_run(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    names = ("dim", "input_px", "resize_px", "mean", "std", "interpolation", "pooling")
    facts = dict.fromkeys(names)
    encoder = {
        "label": "h", "word": "handcrafted", "name": "handcrafted",
        "weights": None, "random": False, "weights_sha256": None,
    }  # fmt: skip
    whole = {
        "model": "linear", "classes": ["a", "b"], "ordinal": False, "normal": [],
        "encoder": encoder, "seed": 0, "pooling": None, "crop_um": 32.0, "facts": facts,
        "temperature": 1.0, "temperatures": [1.0],
        "abstain": 0.0, "outlier": 0.99, "fold_of_group": {},
        "groups_of_slide": {}, "sha256": "0", "cytofm": "0",
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match="not a finished RUN"):
        load_run(tmp_path)  # the card is whole
    (tmp_path / "model.json").write_text(json.dumps({**whole, **wrong}))
    with pytest.raises(InputError, match=r"model\.json is damaged"):
        load_run(tmp_path)
