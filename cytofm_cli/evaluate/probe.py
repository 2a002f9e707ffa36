"""Simple classifiers on frozen features: k nearest neighbours, linear, few examples.

Each asks how much of a class is visible in the features alone. All are fitted on the training
part only, scaling and penalty included, and groups never stand on both sides.
Legend: N instances, M test instances, D features, C classes, R draws, B features and offset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.stats import metrics
from cytofm_cli.stats.balance import balanced_parts
from cytofm_cli.views import draws

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Features = NDArray[np.floating[Any]]
# (train_ND, y_N, groups_N, test_MD, classes) → named answers (M, classes)
Probe = Callable[[Features, Ints, Ints, Features, int], dict[str, Floats]]

# Penalties tried for the linear probe, weakest last: scikit-learn's C, on standardised features.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_ITERATIONS = 300
_COARSE = 1e-3  # slope that is good enough to choose a penalty by
_CHUNK = 1024  # test rows compared with all training rows at a time


def grouped_folds(y_N: Ints, groups_N: Ints, folds: int, seed: int = 0) -> Ints:
    """Give every instance the fold that tests it; a group is in one fold.

    As many folds as groups (or more): each group is held out by itself. Fewer: folds get like
    shares of every class (`mil.balance.balanced_parts`).

    Args:
        y_N: class indices.
        groups_N: any integers.
        folds: at least 2.
        seed: decides ties between like assignments.

    Returns:
        int64 (N,), from 0.
    """
    names, group_N = np.unique(groups_N, return_inverse=True)
    if folds >= len(names):
        return group_N.astype(np.int64)
    counts_GC = np.zeros((len(names), int(y_N.max()) + 1), dtype=np.int64)
    np.add.at(counts_GC, (group_N, y_N), 1)
    rng = np.random.default_rng(seed)
    return balanced_parts(counts_GC, np.full(folds, 1 / folds), rng)[group_N]


def out_of_fold(
    features_ND: Features, y_N: Ints, groups_N: Ints, fold_N: Ints, probe: Probe
) -> dict[str, Floats]:
    """Fit on all folds but one, answer for that one, for every fold.

    A class that a training part lacks gets probability 0 there: nothing could be learnt of it.
    Instances of a negative fold only train; their rows stay 0.

    Returns:
        float64 (N, C) by name, rows sum to 1.
    """
    n_classes = int(y_N.max()) + 1
    answers_of: dict[str, Floats] = {}
    for fold in np.unique(fold_N[fold_N >= 0]):
        train, test = fold_N != fold, fold_N == fold
        present, y = np.unique(y_N[train], return_inverse=True)
        answers = probe(
            features_ND[train], y.astype(np.int64), groups_N[train], features_ND[test], len(present)
        )
        for name, p_MC in answers.items():
            whole_NC = answers_of.setdefault(name, np.zeros((len(y_N), n_classes)))
            whole_NC[np.ix_(test, present)] = p_MC
    return answers_of


def standardise(train_ND: Features, test_MD: Features) -> tuple[Floats, Floats]:
    """Scale features to mean 0 and deviation 1 of the training part; constant ones become 0."""
    mean_D, scale_D = scaling(train_ND)
    x_ND, x_MD = train_ND.astype(np.float64), test_MD.astype(np.float64)
    return (x_ND - mean_D) * scale_D, (x_MD - mean_D) * scale_D


def scaling(train_ND: Features) -> tuple[Floats, Floats]:
    """Return the mean of each feature, and one by its deviation: 0 for a constant one."""
    x_ND = train_ND.astype(np.float64)
    mean_D, std_D = x_ND.mean(0), x_ND.std(0)
    constant = std_D <= 1e-6 * np.abs(mean_D) + 1e-12  # float32 features: rounding, no signal
    return mean_D, np.where(constant, 0.0, 1 / np.where(constant, 1.0, std_D))


def class_weights(y_N: Ints, n_classes: int, *, balanced: bool) -> Floats:
    """Return a weight a class: 1, or inverse to its frequency (scikit-learn's "balanced")."""
    if not balanced:
        return np.ones(n_classes)
    count_C = np.bincount(y_N, minlength=n_classes)
    return np.asarray(len(y_N) / (n_classes * np.maximum(count_C, 1)))


# --- nearest neighbours -----------------------------------------------------------------------


def knn(
    ks: Sequence[int] = (10, 20, 100, 200), *, temperature: float = 0.07, balanced: bool = True
) -> Probe:
    """Make the k-NN probe; its answers are named `knn10`, …

    Votes are weighted by exp(cosine / temperature) (Wu et al. 2018; DINO's `eval_knn.py`). A k
    above the number of training instances takes all of them.

    Args:
        ks: numbers of neighbours.
        temperature: small: near neighbours count more.
        balanced: a class's votes also weigh inversely to its frequency, so that the largest
            share of votes is the best answer for balanced accuracy; False is DINO's own.
    """

    def answer(
        train_ND: Features, y_N: Ints, groups_N: Ints, test_MD: Features, n_classes: int
    ) -> dict[str, Floats]:
        weight_C = class_weights(y_N, n_classes, balanced=balanced)
        near = knn_scores(train_ND, y_N, test_MD, n_classes, ks, temperature, weight_C)
        return {f"knn{k}": scores for k, scores in zip(ks, near, strict=True)}

    return answer


def knn_scores(
    train_ND: Features,
    y_N: Ints,
    test_MD: Features,
    n_classes: int,
    ks: Sequence[int],
    temperature: float,
    weight_C: Floats,
) -> list[Floats]:
    """Return each class's share of the weighted votes of the k nearest, for every k.

    Returns:
        float64 (M, C) for each of `ks`; rows sum to 1.
    """
    unit_ND, unit_MD = _unit(train_ND), _unit(test_MD)
    most = min(max(ks), len(unit_ND))
    shares: list[list[Floats]] = [[] for _ in ks]
    for start in range(0, len(unit_MD), _CHUNK):
        cosine = unit_MD[start : start + _CHUNK] @ unit_ND.T
        near = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
        by_rank = np.argsort(-np.take_along_axis(cosine, near, 1), axis=1, kind="stable")
        near = np.take_along_axis(near, by_rank, 1)
        vote = np.exp((np.take_along_axis(cosine, near, 1) - 1) / temperature)
        vote_KC = (vote * weight_C[y_N[near]])[:, :, None] * np.eye(n_classes)[y_N[near]]
        for share, k in zip(shares, ks, strict=True):
            total = vote_KC[:, : min(k, most)].sum(1)
            share.append(total / np.maximum(total.sum(1, keepdims=True), 1e-300))
    return [np.concatenate(share) for share in shares]


# --- linear -----------------------------------------------------------------------------------


def linear(
    penalties: Sequence[float] = PENALTIES,
    *,
    inner_folds: int = 3,
    balanced: bool = True,
    seed: int = 0,
) -> Probe:
    """Make the linear probe: logistic regression; its answer is named `linear`.

    Features are standardised. The penalty of highest AUC in a grouped cross-validation
    inside the training part is taken (of equals the strongest); with a single training group,
    the middle one.

    Args:
        penalties: scikit-learn's C, to choose from.
        inner_folds: folds of that choice.
        balanced: classes weigh alike, whatever their frequency.
        seed: of the inner folds.
    """
    path = sorted(penalties)

    def answer(
        train_ND: Features, y_N: Ints, groups_N: Ints, test_MD: Features, n_classes: int
    ) -> dict[str, Floats]:
        if n_classes == 1:
            return {"linear": np.ones((len(test_MD), 1))}
        weight_C = class_weights(y_N, n_classes, balanced=balanced)
        x_ND, x_MD = standardise(train_ND, test_MD)
        c = choose_penalty(x_ND, y_N, groups_N, weight_C, path, inner_folds, seed)
        return {"linear": logistic_probabilities(x_MD, fit_logistic(x_ND, y_N, c, weight_C))}

    return answer


def choose_penalty(
    x_ND: Floats,
    y_N: Ints,
    groups_N: Ints,
    weight_C: Floats,
    penalties: Sequence[float],
    inner_folds: int,
    seed: int,
    *,
    fit: Callable[..., Any] | None = None,
    answer: Callable[[Floats, Any], Floats] | None = None,
) -> float:
    """Choose C by the macro AUC of inner grouped folds; `penalties` ascend.

    `fit` and `answer` are other models' than logistic regression: with the arguments of
    `fit_logistic` and `logistic_probabilities`.
    """
    fit, answer = fit or fit_logistic, answer or logistic_probabilities
    if len(np.unique(groups_N)) < 2 or len(penalties) == 1:
        return penalties[len(penalties) // 2]
    n_classes = len(weight_C)
    fold_N = grouped_folds(y_N, groups_N, inner_folds, seed)
    p_PNC = np.zeros((len(penalties), len(y_N), n_classes))
    for fold in np.unique(fold_N):
        train, test = fold_N != fold, fold_N == fold
        present, y = np.unique(y_N[train], return_inverse=True)
        if len(present) == 1:
            p_PNC[:, test, present[0]] = 1.0
            continue
        start = None
        for i, c in enumerate(penalties):  # each starts from the stronger penalty's solution
            start = fit(x_ND[train], y.astype(np.int64), c, weight_C[present], start, gtol=_COARSE)
            rows = np.ix_(np.array([i]), np.flatnonzero(test), present)
            p_PNC[rows] = answer(x_ND[test], start)
    aucs = [float(metrics.macro_auc(y_N, p_NC)) for p_NC in p_PNC]
    return penalties[int(np.argmax(np.round(aucs, 6)))]


def fit_logistic(
    x_ND: Floats,
    y_N: Ints,
    c: float,
    weight_C: Floats,
    start: Floats | None = None,
    *,
    gtol: float = 1e-5,
) -> Floats:
    """Fit multinomial logistic regression by L-BFGS.

    Minimises C Σ_i w_i loss_i + ‖W‖²/2, offsets not penalised, as scikit-learn's
    `LogisticRegression(C=c, class_weight=…)`; two classes share one weight vector, as there.

    Args:
        x_ND: features, standardised.
        y_N: classes from 0, each at least once.
        c: inverse strength of the penalty.
        weight_C: weight of each class.
        start: weights to begin from.
        gtol: largest slope of the mean loss at which it stops.

    Returns:
        float64 (D + 1, C), or (D + 1, 1) for two classes; the offset is last.
    """
    from scipy.optimize import minimize

    n_classes = len(weight_C)
    columns = 1 if n_classes == 2 else n_classes
    weight_N = weight_C[y_N]
    scale = 1 / weight_N.sum()  # a mean: the tolerances then do not depend on N
    shape = (x_ND.shape[1] + 1, columns)
    rows = np.arange(len(y_N))

    def loss(flat: Floats) -> tuple[float, Floats]:
        w_BC = flat.reshape(shape)
        log_NC = _log_softmax(_logits(x_ND, w_BC))
        residual_NC = np.exp(log_NC)
        residual_NC[rows, y_N] -= 1
        residual_NC *= (weight_N * scale)[:, None]
        used_NC = residual_NC[:, -columns:]
        gradient = np.concatenate([x_ND.T @ used_NC, used_NC.sum(0, keepdims=True)])
        gradient[:-1] += w_BC[:-1] * (scale / c)
        value = -(weight_N * log_NC[rows, y_N]).sum() * scale
        value += (w_BC[:-1] ** 2).sum() * scale / (2 * c)
        return float(value), gradient.ravel()

    first = np.zeros(shape) if start is None else start
    options = {"maxiter": _ITERATIONS, "gtol": gtol, "ftol": 1e-10, "maxcor": 20}
    optimum = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(optimum.x, dtype=np.float64).reshape(shape)


def logistic_probabilities(x_MD: Floats, weights_BC: Floats) -> Floats:
    """Return class probabilities (M, C) of weights that `fit_logistic` found."""
    return np.asarray(np.exp(_log_softmax(_logits(x_MD, weights_BC))))


def _logits(x_ND: Floats, weights_BC: Floats) -> Floats:
    logits = x_ND @ weights_BC[:-1] + weights_BC[-1]
    if weights_BC.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    return np.asarray(logits)


def _log_softmax(logits_NC: Floats) -> Floats:
    shifted = logits_NC - logits_NC.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


# --- few examples -----------------------------------------------------------------------------


def few_shot(
    features_ND: Features,
    y_N: Ints,
    fold_N: Ints,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    draws_R: int = 20,
    seed: int = 0,
) -> dict[int, Floats]:
    """Classify by the nearest class mean of a few training examples of each class.

    SimpleShot (Wang et al. 2019, CL2N): features are centred on the training part and scaled to
    length 1. More shots of a draw contain its fewer ones, and every encoder sees the same draws.
    A class that has fewer examples gives all.

    Args:
        features_ND: frozen features.
        y_N: class indices.
        fold_N: the fold that tests each instance, negative for none; examples come from the
            others.
        shots: examples a class.
        draws_R: random choices of examples.
        seed: of the choices.

    Returns:
        by shots, float64 (R, N, C): softmax of the negative squared distances.
    """
    n_classes = int(y_N.max()) + 1
    answers = {n: np.zeros((draws_R, len(y_N), n_classes)) for n in shots}
    keys_RN = draws.fold(draws.sample_keys(seed, np.arange(draws_R))[:, None], np.arange(len(y_N)))
    order_RN = draws.uniform(keys_RN, 1)[..., 0]
    for fold in np.unique(fold_N[fold_N >= 0]):
        train, test = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        centre_D = features_ND[train].mean(0, dtype=np.float64)
        z_ND, z_MD = _unit(features_ND[train] - centre_D), _unit(features_ND[test] - centre_D)
        present = np.unique(y_N[train])
        for n in shots:
            means = []
            for c in present:
                rows = np.flatnonzero(y_N[train] == c)
                drawn = rows[np.argsort(order_RN[:, train[rows]], axis=1)[:, :n]]
                means.append(z_ND[drawn].mean(1))
            mean_RCD = np.stack(means, 1)
            far = ((mean_RCD**2).sum(-1)[:, None]) - 2 * np.einsum("md,rcd->rmc", z_MD, mean_RCD)
            near = np.exp(far.min(-1, keepdims=True) - far)
            answers[n][:, test[:, None], present] = near / near.sum(-1, keepdims=True)
    return answers


def _unit(x_ND: Features) -> Floats:
    x = x_ND.astype(np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
