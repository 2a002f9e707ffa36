"""How sure the models of a RUN are of a class when a bag is one instance, and its slope.

Legend: M instances, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.errors import UsageError
from cytofm_cli.mil.score import Ensemble, choose_models
from cytofm_cli.mil.train import one_thread, slide_seed
from cytofm_cli.words import named

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BagOdds:
    """Mean log-odds of a class over models, of instances each of which is a bag by itself.

    Attributes:
        ensemble: the models.
        chosen: which of them are asked.
        column: the class.
        seed: for heads that draw at random.
    """

    ensemble: Ensemble
    chosen: tuple[int, ...]
    column: int
    seed: int

    def __call__(self, x_MD: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
        """Return log p / (1 - p), float64 (M,), and its slope by the features (M, D)."""
        odds = [self._of_bag(x_D) for x_D in x_MD]
        return np.array([value for value, _ in odds]), np.stack([slope for _, slope in odds])

    def _of_bag(self, x_D: NDArray[np.floating[Any]]) -> tuple[float, Floats]:
        x_1ND = torch.from_numpy(np.asarray(x_D, np.float32))[None, None].requires_grad_()
        with one_thread("cpu"), torch.enable_grad():
            said = [self._of_model(number, x_1ND) for number in self.chosen]
            mean = torch.stack(said).mean()
            (slope,) = torch.autograd.grad(mean, x_1ND)
        return float(mean.detach()), slope[0, 0].double().numpy()

    def has_slope(self) -> bool:
        """Tell whether the heads let a gradient through: dtfd, for one, detaches its features."""
        x_1ND = torch.zeros(1, 1, self.ensemble.card.n_features, requires_grad=True)
        with torch.enable_grad():
            odds = self._of_model(self.chosen[0], x_1ND)
            return torch.autograd.grad(odds, x_1ND, allow_unused=True)[0] is not None

    def _of_model(self, number: int, x_1ND: torch.Tensor) -> torch.Tensor:
        temperature = self.ensemble.decisions[self.ensemble.cards[number].fold].temperature
        out = self.ensemble.models[number].to("cpu")(x_1ND, seeds=[self.seed])
        logits_C = out.logits_BC[0].double() / temperature
        others = torch.cat([logits_C[: self.column], logits_C[self.column + 1 :]])
        odds: torch.Tensor = logits_C[self.column] - others.logsumexp(0)
        return odds


def bag_odds(ensemble: Ensemble, towards: str | None, slide_id: str) -> tuple[str, BagOdds]:
    """Return a class by its name, and the log-odds of it.

    Args:
        ensemble: models.
        towards: the class; None: the last one.
        slide_id: of the cells: of a slide of the RUN only models that have not seen it are asked.

    Raises:
        UsageError: no such class, or heads without a slope in an encoder's vectors.
    """
    card = ensemble.card
    name = towards or card.classes[-1]
    if name not in card.classes:
        raise UsageError(
            f"the RUN has learnt no class {name}.", hint=f"known: {named(card.classes)}"
        )
    if ensemble.models[0].head.needs_classes or card.vpu:
        what = "VPU features, which are frozen" if card.vpu else "probabilities of classes of cells"
        raise UsageError(
            f"head {card.method} reads {what}: it has no gradient in an encoder's vectors.",
            hint="train abmil, or another head that reads embeddings",
        )
    chosen, _ = choose_models(ensemble, slide_id)
    odds = BagOdds(ensemble, tuple(chosen), card.classes.index(name), slide_seed(slide_id))
    if not odds.has_slope():
        raise UsageError(
            f"head {card.method} lets no gradient through to its features.",
            hint="train abmil, or another head that does",
        )
    return name, odds
