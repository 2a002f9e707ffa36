"""Nested search: settings chosen by cross-validation within the training part of a fold.

The test part of a fold takes no part: it is judged once, by the models with the chosen
settings. Inner fold k judges validation set k; set k + 1 chooses the epoch, the rest trains.
(With fewer than three sets the judged one also chooses the epoch.)
Legend: S slides, C classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import as_record, field_types, resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.registry import mil_methods
from cytofm_cli.stats import metrics
from cytofm_cli.stats.folds import TEST, Fold, Ints

if TYPE_CHECKING:
    from cytofm_cli.mil.base import Recipe


@dataclass(frozen=True)
class Candidate:
    """One combination of the searched settings.

    Attributes:
        settings: the searched settings alone.
        recipe: the whole recipe with them.
        head: all settings of the head with them.
    """

    settings: dict[str, Any]
    recipe: Recipe
    head: dict[str, Any]


@dataclass(frozen=True, eq=False)
class InnerAnswer:
    """What one candidate's model of one inner fold says about the slides it judges."""

    candidate: int
    index: Ints
    logits_SC: NDArray[np.float64]


def make_candidates(
    method: str,
    recipe: Mapping[str, Any],
    head: Mapping[str, Any],
    tune: Mapping[str, Sequence[str]],
    *,
    n_features: int,
    n_classes: int,
) -> list[Candidate]:
    """List all combinations; without a search there is one.

    Args:
        method: name of the head.
        recipe: recipe settings of preset and user.
        head: head settings of preset and user.
        tune: values to try for each setting of the recipe or the head.
        n_features: width of the bags.
        n_classes: number of classes.

    Raises:
        UsageError: a value or setting that does not exist.
    """
    from cytofm_cli.mil.base import Recipe, make_head

    in_recipe = set(field_types(Recipe))
    candidates = []
    for values in itertools.product(*tune.values()):
        given = dict(zip(tune, values, strict=True))
        own = {k: v for k, v in given.items() if k in in_recipe}
        others = {k: v for k, v in given.items() if k not in in_recipe}
        whole = resolve(Recipe, "recipe", recipe, own)
        _refuse_unknown(method, others, in_recipe)
        _, config = make_head(method, n_features, n_classes, {**head, **others})
        record = as_record(config) if config is not None else {}
        known = {**as_record(whole), **record}
        candidates.append(Candidate({key: known[key] for key in given}, whole, record))
    return candidates


def _refuse_unknown(method: str, others: Mapping[str, str], in_recipe: Collection[str]) -> None:
    """Refuse a setting that neither the recipe nor the head has, and name the closest of both."""
    plugin = mil_methods.load(method)
    known = [*in_recipe, *(field_types(plugin.config) if plugin.config else ())]
    for key in others:
        if key.replace("-", "_") not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise UsageError(
                f"--tune: recipe and head {method!r} have no setting {key!r}.",
                hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}",
            )


def inner_split(fold: Fold, turn: int) -> tuple[Ints, Ints, Ints]:
    """Return training, epoch-choosing and judged slides of one inner fold; never test slides."""
    sets = fold.n_validation
    judged = fold.part_N == turn
    choosing = fold.part_N == ((turn + 1) % sets if sets > 2 else turn)
    train = (fold.part_N != TEST) & ~judged & ~choosing
    return np.flatnonzero(train), np.flatnonzero(choosing), np.flatnonzero(judged)


def choose(
    candidates: Sequence[Candidate], answers: Sequence[InnerAnswer], y_N: Ints
) -> dict[str, Any]:
    """Choose the candidate of least log loss over all judged slides; every class counts the same.

    Returns:
        `chosen` (its number), `settings`, and `tried`: settings, loss and AUC of each.
    """
    tried, losses = [], []
    for number, candidate in enumerate(candidates):
        own = [answer for answer in answers if answer.candidate == number]
        y_S = y_N[np.concatenate([answer.index for answer in own])]
        p_SC = metrics.softmax(np.concatenate([answer.logits_SC for answer in own]))
        right_S = np.maximum(p_SC[np.arange(len(y_S)), y_S], 1e-12)
        losses.append(-float(np.average(np.log(right_S), weights=1 / np.bincount(y_S)[y_S])))
        auc = float(metrics.macro_auc(y_S, p_SC))
        tried.append(
            {
                "settings": candidate.settings,
                "loss": losses[-1],
                "auc": auc if np.isfinite(auc) else None,
            }
        )
    best = int(np.argmin(losses))
    return {"chosen": best, "settings": tried[best]["settings"], "tried": tried}


def with_candidate(plan: Any, candidate: Candidate) -> Any:
    """Return the plan with these settings instead of its own."""
    return dataclasses.replace(plan, recipe=candidate.recipe, head=candidate.head)
