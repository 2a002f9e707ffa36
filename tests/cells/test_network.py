"""Likelihoods of classes: worked by hand, against the linear probe, and by their slopes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from cytofm_cli.cells import network
from cytofm_cli.cells.network import Layout
from cytofm_cli.evaluate import probe


def cells(n: int = 60, d: int = 4, classes: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    y_N = np.arange(n) % classes
    return rng.normal(0, 1, (n, d)) + 0.7 * y_N[:, None] * np.eye(d)[0], y_N


def test_scale__is_what_the_cumulative_link_gives_by_hand() -> None:
    # Abnormal with logit 1; s = 0.5, thresholds 0 and e^0.3.
    layout = Layout(2, 4, ordinal=True)
    weights = {"output": np.array([[1.0, 0], [0, 1], [0, 0]]), "log_gaps": np.array([0.3])}
    p_C = np.exp(network.log_probabilities(layout, weights, np.array([[1.0, 0.5]])))[0]

    def sigmoid(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    ill, low, high = sigmoid(1.0), sigmoid(-0.5), sigmoid(np.exp(0.3) - 0.5)
    assert p_C == pytest.approx([1 - ill, ill * low, ill * (high - low), ill * (1 - high)])
    assert p_C.sum() == pytest.approx(1)
    assert network.thresholds(weights) == pytest.approx([0, np.exp(0.3)])


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("ordinal", [False, True])
def test_slopes__are_those_of_the_likelihood(classes: int, hidden: int, ordinal: bool) -> None:
    x_ND, y_N = cells(classes=classes)
    layout = Layout(4, classes, hidden, ordinal)
    rng = np.random.default_rng(1)
    weight_N = rng.uniform(0.5, 2, len(y_N))
    flat = rng.normal(0, 0.5, sum(int(np.prod(s)) for s in layout.shapes().values()))

    def value(flat):
        of = network._unpacked(layout, flat)
        logs_NC = network.log_probabilities(layout, of, x_ND)
        return -(weight_N * logs_NC[np.arange(len(y_N)), y_N]).sum()

    loss, slopes = network._likelihood(layout, network._unpacked(layout, flat), x_ND, y_N, weight_N)
    assert loss == pytest.approx(value(flat))
    numeric = approx_fprime(flat, value, 1e-6)
    assert network._packed(layout, slopes) == pytest.approx(numeric, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_fit__without_a_hidden_layer_is_the_linear_probe(classes: int) -> None:
    x_ND, y_N = cells(classes=classes)
    weight_C = probe.class_weights(y_N, classes, balanced=True) * np.arange(1, classes + 1)
    mine = network.fit(Layout(4, classes), x_ND, y_N, 0.1, weight_C, gtol=1e-8)
    theirs = probe.fit_logistic(x_ND, y_N, 0.1, weight_C, gtol=1e-8)
    assert mine["output"] == pytest.approx(theirs, abs=1e-5)


def test_fit__on_a_scale_finds_the_thresholds_that_made_the_grades() -> None:
    rng = np.random.default_rng(3)
    s_N = rng.uniform(-4, 4, 6000)
    latent_N = s_N + rng.logistic(0, 1, len(s_N))
    grade_N = np.digitize(latent_N, [-1.0, 1.0])
    normal_N = rng.random(len(s_N)) < 0.3
    y_N = np.where(normal_N, 0, grade_N + 1)
    found = network.fit(Layout(1, 4, ordinal=True), s_N[:, None], y_N, 1e6, np.ones(4))
    # t − (w s + b): w is 1, the thresholds lie 2 apart, and b is where the first one is.
    assert found["output"][0, 1] == pytest.approx(1, abs=0.07)
    assert network.thresholds(found)[1] == pytest.approx(2, abs=0.15)
    assert found["output"][1, 1] == pytest.approx(1, abs=0.12)


def test_hidden_layer__learns_what_no_line_parts_and_repeats_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    x_ND = rng.uniform(-1, 1, (300, 2))
    y_N = (x_ND[:, 0] * x_ND[:, 1] > 0).astype(np.int64)
    right = {}
    for hidden in (0, 8):
        layout = Layout(2, 2, hidden)
        weights = network.fit(layout, x_ND, y_N, 10.0, np.ones(2), seed=4)
        again = network.fit(layout, x_ND, y_N, 10.0, np.ones(2), seed=4)
        assert all(np.array_equal(weights[name], again[name]) for name in weights)
        said_N = network.log_probabilities(layout, weights, x_ND).argmax(1)
        right[hidden] = (said_N == y_N).mean()
    assert right[0] < 0.7
    assert right[8] > 0.95
