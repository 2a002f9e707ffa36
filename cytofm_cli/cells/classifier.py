"""What a cell classifier is: arrays that turn features into class probabilities.

Legend: M cells, D features, C classes.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells import network, outliers
from cytofm_cli.cells.network import Layout, Weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOT_LEARNT = -60.0  # log-probability of a class that the training part lacked: 1e-26
# Rows that are computed at a time: what a cell is told does not depend on how many ask.
ROWS = 4096


@dataclass(frozen=True, eq=False)
class Answer:
    """What is said of cells.

    Attributes:
        log_MC: logarithms of the class probabilities; of one-class, of the share of normal cells
            that lie farther out, and nearer.
        score_M: of one-class: the distance from normal cells, in standard deviations of theirs.
    """

    log_MC: Floats
    score_M: Floats | None = None

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """Return (M, C), rows sum to 1; a temperature above 1 makes them less sure."""
        scaled = self.log_MC / temperature
        p_MC = np.exp(scaled - scaled.max(1, keepdims=True))
        return np.asarray(p_MC / p_MC.sum(1, keepdims=True))


class Classifier(Protocol):
    """Turns features into answers, and itself into arrays."""

    @property
    def n_classes(self) -> int:
        """Return of how many classes the answers are."""

    def answer(self, x_MD: NDArray[np.floating[Any]]) -> Answer:
        """Judge cells by their features."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that it consists of."""


@dataclass(frozen=True, eq=False)
class NetworkClassifier:
    """Standardised features, then `network`.

    Attributes:
        layout: of the network.
        mean_D, scale_D: of the training part; a constant feature has scale 0.
        weights: of the network.
        present: the classes that the training part had.
        n_classes: of the answers.
    """

    layout: Layout
    mean_D: Floats
    scale_D: Floats
    weights: Weights
    present: Ints
    n_classes: int

    def answer(self, x_MD: NDArray[np.floating[Any]]) -> Answer:
        """Judge cells by their features."""
        log_MC = np.full((len(x_MD), self.n_classes), NOT_LEARNT)
        for first in range(0, len(x_MD), ROWS):
            x = (x_MD[first : first + ROWS].astype(np.float64) - self.mean_D) * self.scale_D
            logs = network.log_probabilities(self.layout, self.weights, x)
            log_MC[first : first + ROWS, self.present] = np.maximum(logs, NOT_LEARNT)
        return Answer(log_MC)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that it consists of; the layout follows from the shapes."""
        shape = np.array([self.n_classes, self.layout.hidden, int(self.layout.ordinal)])
        return {
            "shape": shape,
            "mean": self.mean_D,
            "scale": self.scale_D,
            "present": self.present,
            **self.weights,
        }

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Build it from its arrays; KeyError or ValueError for others."""
        n_classes, hidden, ordinal = (int(number) for number in arrays["shape"])
        layout = Layout(len(arrays["mean"]), len(arrays["present"]), hidden, bool(ordinal))
        weights = {name: arrays[name] for name in layout.shapes()}
        if any(weights[name].shape != shape for name, shape in layout.shapes().items()):
            raise ValueError("weights of other shapes")
        own = (arrays["mean"], arrays["scale"], weights, arrays["present"])
        return cls(layout, *own, n_classes)


@dataclass(frozen=True, eq=False)
class OutlierClassifier(abc.ABC):
    """Distance from normal cells, and how usual it is; subclasses say which distance.

    Attributes:
        mean_D, scale_D: of the normal cells of the training part.
        held_out_N: distances of normal cells that it was not fitted on, ascending.
    """

    mean_D: Floats
    scale_D: Floats
    held_out_N: Floats
    n_classes: ClassVar[int] = 2  # normal, and outlier

    def distance(self, x_MD: NDArray[np.floating[Any]]) -> Floats:
        """Return the distance of each cell, (M,)."""
        parts = [np.zeros(0)]
        for first in range(0, len(x_MD), ROWS):
            x = (x_MD[first : first + ROWS].astype(np.float64) - self.mean_D) * self.scale_D
            parts.append(self._distance(x))
        return np.concatenate(parts)

    @abc.abstractmethod
    def _distance(self, x_MD: Floats) -> Floats:
        """Return the distances of some standardised cells."""

    def answer(self, x_MD: NDArray[np.floating[Any]]) -> Answer:
        """Judge cells by their features."""
        distance_M = self.distance(x_MD)
        nearer_M = outliers.share_nearer(self.held_out_N, distance_M)
        log_MC = np.log(np.maximum(np.stack([1 - nearer_M, nearer_M], 1), np.exp(NOT_LEARNT)))
        spread = max(float(self.held_out_N.std()), 1e-12)
        return Answer(log_MC, (distance_M - self.held_out_N.mean()) / spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that it consists of."""
        return {"mean": self.mean_D, "scale": self.scale_D, "held_out": self.held_out_N}


@dataclass(frozen=True, eq=False)
class MahalanobisClassifier(OutlierClassifier):
    """Mahalanobis distance, of a shrunk covariance.

    Attributes:
        whiten_DD: see `outliers.whitening`.
    """

    whiten_DD: Floats

    def _distance(self, x_MD: Floats) -> Floats:
        return np.asarray(np.sqrt(((x_MD @ self.whiten_DD) ** 2).sum(1)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that it consists of."""
        return {**super().arrays(), "whiten": self.whiten_DD}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Build it from its arrays; KeyError for others."""
        return cls(*(arrays[name] for name in ("mean", "scale", "held_out", "whiten")))


@dataclass(frozen=True, eq=False)
class NeighbourClassifier(OutlierClassifier):
    """Distance to the k-th nearest normal cell where their spread is the same in all directions.

    Attributes:
        whiten_DD: see `outliers.whitening`.
        bank_BD: float32, whitened normal cells of the training part.
        k: which neighbour counts.
    """

    whiten_DD: Floats
    bank_BD: NDArray[np.float32]
    k: int

    def _distance(self, x_MD: Floats) -> Floats:
        return outliers.neighbour_distance(x_MD @ self.whiten_DD, self.bank_BD, self.k)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that it consists of."""
        own: dict[str, NDArray[Any]] = {"whiten": self.whiten_DD, "bank": self.bank_BD}
        return {**super().arrays(), **own, "k": np.array([self.k])}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Build it from its arrays; KeyError for others."""
        return cls(
            mean_D=arrays["mean"],
            scale_D=arrays["scale"],
            held_out_N=arrays["held_out"],
            whiten_DD=arrays["whiten"],
            bank_BD=arrays["bank"],
            k=int(arrays["k"][0]),
        )


def classifier_of(arrays: Mapping[str, NDArray[Any]]) -> Classifier:
    """Build a classifier from what its `arrays` gave.

    Raises:
        KeyError, ValueError: they are none of a classifier.
    """
    if "bank" in arrays:
        return NeighbourClassifier.of(arrays)
    return (MahalanobisClassifier if "whiten" in arrays else NetworkClassifier).of(arrays)
