"""Fitting classifiers: on some cells, and across folds of whole groups.

Legend: N cells, D features, C classes, M held-out cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells import network, outliers
from cytofm_cli.cells.classifier import (
    NOT_LEARNT,
    Answer,
    Classifier,
    MahalanobisClassifier,
    NeighbourClassifier,
    NetworkClassifier,
    OutlierClassifier,
)
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.cells.network import Layout, Weights
from cytofm_cli.evaluate import probe
from cytofm_cli.stats import metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Features = NDArray[np.floating]

# scikit-learn's C, on standardised features, weakest last. A strong one takes a hidden layer to
# 0, where nothing is told apart: the fewer the cells the sooner.
PENALTIES = {
    "linear": probe.PENALTIES,
    "lora": probe.PENALTIES,
    "mlp": (1e-3, 1e-2, 1e-1),
}
NORMAL = 0  # of one-class: the class that is learnt
NEIGHBOUR = 5  # of k-NN distance: which one counts
BANK = 2000  # normal cells that are kept
_LOW = 0.25  # temperature of answers of the usual sureness
_LOWEST = 2.0**-16


@dataclass(frozen=True, eq=False)
class Crossed:
    """Classifiers of all folds, what they say of the cells they did not see, and one of all.

    Attributes:
        folds: classifier of each fold, fitted on the others.
        whole: fitted on all cells.
        answer: held-out answers, N rows.
        temperature: fitted on all held-out answers; for cells that are new.
        temperature_F: of each fold, fitted on the answers of the others.
        fold_N: which fold held out each cell.
    """

    folds: tuple[Classifier, ...]
    whole: Classifier
    answer: Answer
    temperature: float
    temperature_F: tuple[float, ...]
    fold_N: Ints

    def probabilities(self) -> Floats:
        """Return held-out probabilities (N, C), calibrated on other folds."""
        p_NC = np.empty_like(self.answer.log_MC)
        for fold, temperature in enumerate(self.temperature_F):
            rows = self.fold_N == fold
            p_NC[rows] = Answer(self.answer.log_MC[rows]).probabilities(temperature)
        return p_NC


def cross_fit(
    config: CellsConfig,
    x_ND: Features,
    y_N: Ints,
    group_N: Ints,
    fold_N: Ints,
    n_classes: int,
    *,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Crossed:
    """Fit a classifier on all folds but one, for every fold, and one on all cells.

    Args:
        config: settings; of lora see `lora_folds`.
        x_ND: features.
        y_N: classes from 0.
        group_N: what never stands on both sides.
        fold_N: from 0; a group is in one fold.
        n_classes: C.
        tell: called with (classifiers fitted, of how many).
    """
    n_folds = int(fold_N.max()) + 1
    fit = fit_outliers if config.model == "one-class" else fit_network
    folds: list[Classifier] = []
    for fold in range(n_folds):
        tell(fold, n_folds + 1)
        train = fold_N != fold
        folds.append(fit(config, x_ND[train], y_N[train], group_N[train], n_classes))
    tell(n_folds, n_folds + 1)
    whole = fit(config, x_ND, y_N, group_N, n_classes)
    if config.model == "one-class":
        folds, whole = _with_references(folds, whole, x_ND, y_N, fold_N)
    tell(n_folds + 1, n_folds + 1)
    return crossed(config, folds, whole, x_ND, y_N, fold_N, n_classes)


def crossed(
    config: CellsConfig,
    folds: list[Classifier],
    whole: Classifier,
    x_ND: Features,
    y_N: Ints,
    fold_N: Ints,
    n_classes: int,
) -> Crossed:
    """Ask each fold's classifier of the cells that it has not seen, and fit temperatures.

    Args:
        config: settings.
        folds: classifier of each fold.
        whole: of all cells.
        x_ND: features of each cell, as the classifier of its fold takes them.
        y_N: classes.
        fold_N: the fold that holds out each cell.
        n_classes: C.
    """
    answer = _held_out(folds, x_ND, fold_N)
    weight_N = probe.class_weights(y_N, n_classes, balanced=config.class_weights == "balanced")[y_N]
    temperature, of_folds = _temperatures(config, answer, y_N, fold_N, weight_N)
    return Crossed(tuple(folds), whole, answer, temperature, of_folds, fold_N)


def fit_network(
    config: CellsConfig, x_ND: Features, y_N: Ints, group_N: Ints, n_classes: int
) -> NetworkClassifier:
    """Fit a linear or hidden-layer classifier on these cells, with the penalty chosen."""
    c = penalty_of(config, x_ND, y_N, group_N)
    return fit_penalised(config, x_ND, y_N, n_classes, c)


def penalty_of(config: CellsConfig, x_ND: Features, y_N: Ints, group_N: Ints) -> float:
    """Return the penalty of highest AUC in inner folds of whole groups, of equals the strongest."""
    if config.penalty:
        return config.penalty
    _, y = np.unique(y_N, return_inverse=True)
    y = y.astype(np.int64)
    mean_D, scale_D = probe.scaling(x_ND)

    def fit(
        x_ND: Floats,
        y_N: Ints,
        c: float,
        weight_C: Floats,
        start: tuple[Layout, Weights] | None = None,
        *,
        gtol: float,
    ) -> tuple[Layout, Weights]:
        layout = _layout(config, x_ND, weight_C)
        if layout.hidden:  # a solution at 0 holds the next one there, and is known at the end alone
            return layout, network.fit(layout, x_ND, y_N, c, weight_C, seed=config.seed)
        begun = None if start is None else start[1]
        return layout, network.fit(layout, x_ND, y_N, c, weight_C, begun, gtol=gtol)

    def answer(x_MD: Floats, of: tuple[Layout, Weights]) -> Floats:
        p_MC = np.exp(network.log_probabilities(*of, x_MD))
        return p_MC.round(6) if of[0].hidden else p_MC  # what is left of weights is no order

    return probe.choose_penalty(
        (x_ND.astype(np.float64) - mean_D) * scale_D,
        y,
        group_N,
        _weights(config, y),
        sorted(PENALTIES[config.model]),
        config.inner_folds,
        config.seed,
        fit=fit,
        answer=answer,
    )


def fit_penalised(
    config: CellsConfig, x_ND: Features, y_N: Ints, n_classes: int, c: float
) -> NetworkClassifier:
    """Fit a linear or hidden-layer classifier on these cells with a given penalty."""
    present, y = np.unique(y_N, return_inverse=True)
    mean_D, scale_D = probe.scaling(x_ND)
    x = (x_ND.astype(np.float64) - mean_D) * scale_D
    weight_C = _weights(config, y.astype(np.int64))
    layout = _layout(config, x, weight_C)
    weights = network.fit(layout, x, y.astype(np.int64), c, weight_C, seed=config.seed)
    return NetworkClassifier(layout, mean_D, scale_D, weights, present.astype(np.int64), n_classes)


def _weights(config: CellsConfig, y_N: Ints) -> Floats:
    balanced = config.class_weights == "balanced"
    return probe.class_weights(y_N, int(y_N.max()) + 1, balanced=balanced)


def _layout(config: CellsConfig, x_ND: Floats, weight_C: Floats) -> Layout:
    hidden = config.hidden if config.model == "mlp" else 0
    return Layout(x_ND.shape[1], len(weight_C), hidden, config.ordinal)


def fit_outliers(
    config: CellsConfig, x_ND: Features, y_N: Ints, group_N: Ints, n_classes: int
) -> Classifier:
    """Fit the distance from the normal ones of these cells; it has no reference yet."""
    normal_ND = x_ND[y_N == NORMAL]
    mean_D, scale_D = probe.scaling(normal_ND)
    x = (normal_ND.astype(np.float64) - mean_D) * scale_D
    of = (mean_D, scale_D, np.zeros(0), outliers.whitening(x))
    if config.distance != "knn":
        return MahalanobisClassifier(*of)
    kept = np.sort(np.random.default_rng(config.seed).permutation(len(x))[:BANK])
    return NeighbourClassifier(*of, (x[kept] @ of[-1]).astype(np.float32), NEIGHBOUR)


def temperature_of(answer: Answer, y_N: Ints, weight_N: Floats) -> float:
    """Fit the temperature of least log loss; answers keep their order.

    A penalty that is chosen for the order of cells may leave all answers near 1/C, beyond the usual
    bound; answers that are all right know no temperature that is low enough. There, how sure n
    cells of a class can make is said by Platt's targets (1999): (n + 1) / (n + C), the rest for
    the other classes.
    """
    temperature = metrics.fit_temperature(answer.log_MC, y_N, low=_LOW, weight_N=weight_N)
    all_right = bool((answer.log_MC.argmax(1) == y_N).all())
    if temperature > 1.01 * _LOW and not all_right:
        return temperature
    learnt_NC = answer.log_MC > NOT_LEARNT
    n_N, c_N = np.bincount(y_N)[y_N], learnt_NC.sum(1)
    target_NC = learnt_NC / (n_N + c_N)[:, None]
    target_NC[np.arange(len(y_N)), y_N] += n_N / (n_N + c_N)
    how: dict[str, Any] = {"low": _LOWEST, "weight_N": weight_N, "target_NC": target_NC}
    return metrics.fit_temperature(answer.log_MC, y_N, **how)


def _held_out(folds: list[Classifier], x_ND: Features, fold_N: Ints) -> Answer:
    answers = [of.answer(x_ND[fold_N == fold]) for fold, of in enumerate(folds)]
    log_NC = np.empty((len(x_ND), answers[0].log_MC.shape[1]))
    score_N = np.empty(len(x_ND)) if answers[0].score_M is not None else None
    for fold, answer in enumerate(answers):
        log_NC[fold_N == fold] = answer.log_MC
        if score_N is not None and answer.score_M is not None:
            score_N[fold_N == fold] = answer.score_M
    return Answer(log_NC, score_N)


def _with_references(
    folds: list[Classifier], whole: Classifier, x_ND: Features, y_N: Ints, fold_N: Ints
) -> tuple[list[Classifier], Classifier]:
    """Give classifiers the distances of normal cells that their fit had not seen.

    That of a fold has those of the other folds, so that the fold itself is judged by nothing of
    its own; the one of all has all.
    """
    distances = {}
    for fold, of in enumerate(folds):
        assert isinstance(of, OutlierClassifier)
        distances[fold] = of.distance(x_ND[(fold_N == fold) & (y_N == NORMAL)])

    def referred(of: Classifier, without: int | None) -> Classifier:
        assert isinstance(of, OutlierClassifier)
        parts = [values for fold, values in distances.items() if fold != without]
        return replace(of, held_out_N=np.sort(np.concatenate(parts)))

    return [referred(of, fold) for fold, of in enumerate(folds)], referred(whole, None)


def _temperatures(
    config: CellsConfig, answer: Answer, y_N: Ints, fold_N: Ints, weight_N: Floats
) -> tuple[float, tuple[float, ...]]:
    """Return the temperature of all held-out answers, and of all but those of each fold."""
    n_folds = int(fold_N.max()) + 1
    if config.model == "one-class" or not config.calibrate:
        return 1.0, (1.0,) * n_folds
    # What a training part lacked is no matter of sureness: no temperature mends it.
    learnt_N = answer.log_MC[np.arange(len(y_N)), y_N] > NOT_LEARNT

    def without(fold: int) -> float:
        rows = learnt_N & (fold_N != fold)
        if not rows.any():
            return 1.0
        return temperature_of(Answer(answer.log_MC[rows]), y_N[rows], weight_N[rows])

    return without(-1), tuple(without(fold) for fold in range(n_folds))
