"""How sure a classifier is of a class, and how that changes with the features: log-odds and slope.

Legend: M cells, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells import network
from cytofm_cli.cells.classifier import Classifier, Floats, NetworkClassifier
from cytofm_cli.cells.run_folder import Trained, fold_name
from cytofm_cli.errors import UsageError
from cytofm_cli.words import named


@dataclass(frozen=True, eq=False)
class ClassOdds:
    """Log-odds of a class, calibrated as the classifier's probabilities are.

    Attributes:
        classifier: linear or with a hidden layer.
        column: the class among those that it has learnt.
        temperature: of its probabilities.
    """

    classifier: NetworkClassifier
    column: int
    temperature: float

    def __call__(self, x_MD: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
        """Return log p / (1 - p), float64 (M,), and its slope by the features (M, D)."""
        of = self.classifier
        x = (x_MD.astype(np.float64) - of.mean_D) * of.scale_D
        logs_MC, slope_MCD = network.input_slopes(of.layout, of.weights, x)
        logs_MC = logs_MC / self.temperature
        others_MC = np.delete(logs_MC, self.column, 1)
        most_M1 = others_MC.max(1, keepdims=True)
        share_MC = np.exp(others_MC - most_M1)
        total_M1 = share_MC.sum(1, keepdims=True)
        odds_M = logs_MC[:, self.column] - (most_M1 + np.log(total_M1))[:, 0]
        others_MCD = np.delete(slope_MCD, self.column, 1)
        away_MD = np.einsum("mc,mcd->md", share_MC / total_M1, others_MCD)
        slope_MD = (slope_MCD[:, self.column] - away_MD) / self.temperature
        return odds_M, slope_MD * of.scale_D


def class_odds(trained: Trained, towards: str | None, fold: int | None) -> tuple[str, ClassOdds]:
    """Return a class by its name, and its log-odds.

    Args:
        trained: a RUN.
        towards: the class; None: the last one.
        fold: whose classifier; None: that of all cells.

    Raises:
        UsageError: no such class, or a classifier without a slope in the encoder's vectors.
    """
    card = trained.card
    classifier: Classifier = trained.whole if fold is None else trained.folds[fold]
    if not isinstance(classifier, NetworkClassifier):
        raise UsageError(
            f"{trained.path}: is a {card.model} classifier, whose answer is a rank among normal "
            "cells: it has no gradient.",
            hint="`cytofm cells train --model linear`, or mlp",
        )
    if fold_name(fold) in trained.adapters:
        raise UsageError(
            f"{trained.path}: is a lora classifier: its encoder has learnt, and gives other "
            "vectors than a generator's condition.",
            hint="`cytofm cells train --model linear`, or mlp",
        )
    name = towards or card.classes[-1]
    learnt = [card.classes[number] for number in classifier.present]
    if name not in learnt:
        raise UsageError(
            f"{trained.path}: has learnt no class {name}.", hint=f"known: {named(learnt)}"
        )
    temperature = card.temperature if fold is None else card.temperatures[fold]
    return name, ClassOdds(classifier, learnt.index(name), temperature)
