"""Penalised likelihood of classes: linear or with a hidden layer, nominal or on a scale.

On a scale the answer is hierarchical: a logistic unit says normal or not, and a cumulative link
(proportional odds; McCullagh, J R Stat Soc B 42:109, 1980) grades what is not normal:
P(grade ≤ j | abnormal) = σ(t_j − s), t ascending. The Bethesda system is read so: negative, or
one of five grades of abnormality.

Legend: N cells, D features, H hidden units, O outputs, C classes, T thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ITERATIONS = 300
_WIDEST_GAP = 6.0  # exp(±6): thresholds of a grade that nobody has stay finite


@dataclass(frozen=True)
class Layout:
    """What a network computes.

    Attributes:
        n_features: D.
        n_classes: C, at least 2; on a scale the normal one is first.
        hidden: units of the hidden layer (tanh); 0: none.
        ordinal: the classes are a scale.
    """

    n_features: int
    n_classes: int
    hidden: int = 0
    ordinal: bool = False

    @property
    def n_outputs(self) -> int:
        """Return O: two classes share one output, as in scikit-learn; a scale has two."""
        if self.n_classes == 2:
            return 1
        return 2 if self.ordinal else self.n_classes

    @property
    def n_gaps(self) -> int:
        """Return the thresholds besides the first, which the offset of the output stands for."""
        return max(0, self.n_classes - 3) if self.ordinal else 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of weights; the last row of a layer is its offset."""
        layers: dict[str, tuple[int, ...]] = {}
        if self.hidden:
            layers["hidden"] = (self.n_features + 1, self.hidden)
        layers["output"] = ((self.hidden or self.n_features) + 1, self.n_outputs)
        return layers | ({"log_gaps": (self.n_gaps,)} if self.n_gaps else {})


Weights = dict[str, Floats]


def fit(
    layout: Layout,
    x_ND: Floats,
    y_N: Ints,
    c: float,
    weight_C: Floats,
    start: Weights | None = None,
    *,
    gtol: float = 1e-5,
    seed: int = 0,
) -> Weights:
    """Fit the weights by L-BFGS.

    Minimises C Σ_i w_i loss_i + ‖W‖²/2, offsets and thresholds not penalised: without a hidden
    layer and a scale that is `evaluate.probe.fit_logistic`.

    Args:
        layout: what is fitted.
        x_ND: features, standardised.
        y_N: classes from 0, each at least once.
        c: inverse strength of the penalty.
        weight_C: weight of each class.
        start: weights to begin from; None: zeros, and of a hidden layer random ones.
        gtol: largest slope of the mean loss at which it stops.
        seed: of those.

    Returns:
        arrays of `Layout.shapes`, float64.
    """
    from scipy.optimize import minimize

    weight_N = weight_C[y_N]
    scale = 1 / weight_N.sum()  # a mean: the tolerances then do not depend on N

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = _unpacked(layout, flat)
        value, slopes = _likelihood(layout, weights, x_ND, y_N, weight_N * scale)
        for name in ("hidden", "output"):
            if name in weights:
                value += (weights[name][:-1] ** 2).sum() * scale / (2 * c)
                slopes[name][:-1] += weights[name][:-1] * (scale / c)
        return float(value), _packed(layout, slopes)

    first = _packed(layout, _begun(layout, seed) if start is None else start)
    bounds = [(None, None)] * (len(first) - layout.n_gaps)
    bounds += [(-_WIDEST_GAP, _WIDEST_GAP)] * layout.n_gaps  # type: ignore[list-item]
    options = {"maxiter": _ITERATIONS, "gtol": gtol, "ftol": 1e-10, "maxcor": 20}
    optimum = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return _unpacked(layout, np.asarray(optimum.x, dtype=np.float64))


def log_probabilities(layout: Layout, weights: Weights, x_MD: Floats) -> Floats:
    """Return the logarithms of the class probabilities, (M, C)."""
    _, z_MO = _forward(weights, x_MD)
    if layout.ordinal and layout.n_classes > 2:
        return _scale_logs(z_MO, thresholds(weights))
    return _log_softmax(z_MO)


def input_slopes(layout: Layout, weights: Weights, x_MD: Floats) -> tuple[Floats, Floats]:
    """Return log p of each class, (M, C), and how it changes with the input, (M, C, D)."""
    h_MH, z_MO = _forward(weights, x_MD)
    slopes = []
    for of_class in range(layout.n_classes):
        y_M = np.full(len(x_MD), of_class)
        _, slope_MO, _ = _output_slopes(layout, weights, z_MO, y_M, np.ones(len(x_MD)))
        back = -slope_MO @ weights["output"][:-1].T
        if layout.hidden:
            back = (back * (1 - h_MH**2)) @ weights["hidden"][:-1].T
        slopes.append(back)
    return log_probabilities(layout, weights, x_MD), np.stack(slopes, 1)


def thresholds(weights: Weights) -> Floats:
    """Return the thresholds between grades, ascending; the first is 0."""
    gaps = np.exp(weights["log_gaps"]) if "log_gaps" in weights else np.zeros(0)
    return np.concatenate([[0.0], np.cumsum(gaps)])


def _begun(layout: Layout, seed: int) -> Weights:
    weights = {name: np.zeros(shape) for name, shape in layout.shapes().items()}
    if layout.hidden:
        rng = np.random.default_rng(seed)
        for name in ("hidden", "output"):
            rows, columns = weights[name].shape
            weights[name][:-1] = rng.normal(0, (rows - 1) ** -0.5, (rows - 1, columns))
    return weights


def _forward(weights: Weights, x_ND: Floats) -> tuple[Floats, Floats]:
    """Return what the output layer sees, and the outputs."""
    h_NH = x_ND
    if "hidden" in weights:
        h_NH = np.tanh(x_ND @ weights["hidden"][:-1] + weights["hidden"][-1])
    return h_NH, h_NH @ weights["output"][:-1] + weights["output"][-1]


def _likelihood(
    layout: Layout, weights: Weights, x_ND: Floats, y_N: Ints, weight_N: Floats
) -> tuple[float, Weights]:
    """Return Σ w (−log p) and its slopes."""
    h_NH, z_NO = _forward(weights, x_ND)
    slopes: Weights = {}
    logs_NC, slope_NO, slope_T = _output_slopes(layout, weights, z_NO, y_N, weight_N)
    if layout.n_gaps:  # a gap moves all thresholds above it
        later = np.cumsum(slope_T[1:][::-1])[::-1]
        slopes["log_gaps"] = later * np.exp(weights["log_gaps"])
    slopes["output"] = _layer_slopes(h_NH, slope_NO)
    if layout.hidden:
        back_NH = (slope_NO @ weights["output"][:-1].T) * (1 - h_NH**2)
        slopes["hidden"] = _layer_slopes(x_ND, back_NH)
    return float(-(weight_N * logs_NC[np.arange(len(y_N)), y_N]).sum()), slopes


def _output_slopes(
    layout: Layout, weights: Weights, z_NO: Floats, y_N: Ints, weight_N: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return log p (N, C), and the slopes of Σ w (−log p) by outputs (N, O) and thresholds (T,)."""
    if layout.ordinal and layout.n_classes > 2:
        t_T = thresholds(weights)
        return _scale_logs(z_NO, t_T), *_scale_slopes(z_NO, t_T, y_N, weight_N)
    logs_NC = _log_softmax(z_NO)
    slope_NC = np.exp(logs_NC)
    slope_NC[np.arange(len(y_N)), y_N] -= 1
    return logs_NC, (slope_NC * weight_N[:, None])[:, -layout.n_outputs :], np.zeros(0)


def _layer_slopes(seen_NI: Floats, slope_NO: Floats) -> Floats:
    return np.concatenate([seen_NI.T @ slope_NO, slope_NO.sum(0, keepdims=True)])


def _scale_logs(z_N2: Floats, t_T: Floats) -> Floats:
    """Return log P of normal, then of the T + 1 grades.

    A grade between two thresholds: σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)).
    """
    abnormal_N, s_N = z_N2.T
    upper_NT, lower_NT = _log_sigmoid(t_T - s_N[:, None]), _log_sigmoid(s_N[:, None] - t_T)
    open_N1 = np.zeros((len(z_N2), 1))
    between = np.zeros(len(t_T) + 1)
    between[1:-1] = np.log(-np.expm1(-np.diff(t_T)))
    grades = np.concatenate([upper_NT, open_N1], 1) + np.concatenate([open_N1, lower_NT], 1)
    return np.concatenate(
        [_log_sigmoid(-abnormal_N)[:, None], _log_sigmoid(abnormal_N)[:, None] + grades + between],
        axis=1,
    )


def _scale_slopes(z_N2: Floats, t_T: Floats, y_N: Ints, weight_N: Floats) -> tuple[Floats, Floats]:
    """Return the slopes of Σ w (−log p) by the outputs (N, 2) and by the thresholds (T,)."""
    ill_N = y_N > 0
    slope_N2 = np.zeros_like(z_N2)
    slope_N2[:, 0] = weight_N * (np.exp(_log_sigmoid(z_N2[:, 0])) - ill_N)
    below_NT = np.exp(_log_sigmoid(t_T - z_N2[:, 1:]))  # σ(t − s)
    grade_N = np.where(ill_N, y_N - 1, 0)
    last = len(t_T)
    # 1 − σ at the upper threshold, σ at the lower one; 0 where the grade has none.
    upper_N = np.where(grade_N < last, 1 - _at(below_NT, np.minimum(grade_N, last - 1)), 0.0)
    lower_N = np.where(grade_N > 0, _at(below_NT, np.maximum(grade_N - 1, 0)), 0.0)
    w_N = weight_N * ill_N
    slope_N2[:, 1] = w_N * (upper_N - lower_N)
    gap = np.concatenate([[0.0], 1 / np.expm1(np.diff(t_T)), [0.0]])[grade_N]
    slope_T = np.zeros(last + 1)
    np.add.at(slope_T, grade_N, -w_N * (upper_N + gap))
    np.add.at(slope_T, grade_N - 1, w_N * (lower_N + gap))  # of grade 0 to the end, cut off
    return slope_N2, slope_T[:last]


def _at(values_NT: Floats, column_N: Ints) -> Floats:
    return np.asarray(np.take_along_axis(values_NT, column_N[:, None], 1)[:, 0])


def _log_sigmoid(x: Floats) -> Floats:
    return np.asarray(-np.logaddexp(0.0, -x))


def _log_softmax(z_NO: Floats) -> Floats:
    if z_NO.shape[1] == 1:
        z_NO = np.concatenate([np.zeros_like(z_NO), z_NO], 1)
    shifted = z_NO - z_NO.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _packed(layout: Layout, weights: Weights) -> Floats:
    return np.concatenate([weights[name].ravel() for name in layout.shapes()])


def _unpacked(layout: Layout, flat: Floats) -> Weights:
    weights: dict[str, Any] = {}
    start = 0
    for name, shape in layout.shapes().items():
        size = int(np.prod(shape))
        weights[name] = flat[start : start + size].reshape(shape)
        start += size
    return weights
