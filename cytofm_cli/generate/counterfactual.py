"""What a cell would have to look like for a model to call it something else.

A cell's condition, the vector of an encoder, is moved until a head or classifier of such vectors is
as sure of a class as is wanted; the generator shows each condition from the same noise. Whether the
pictures follow is measured: each is encoded again and scored.

The way (`along`): by the gradient g alone the score rises fastest for the length of the way, which
leads where no cell is: a direction in which real cells hardly differ moves a score much and shows
nothing. By the pattern Σg, with the covariance Σ of real cells' vectors, it is the way on which
vectors differ when scores do (Haufe et al., NeuroImage 87:96, 2014), and for a linear score the
shortest one in Mahalanobis' distance.

Letters: M conditions, F frames, E width of the encoder's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.use_config import CounterfactualConfig
from cytofm_cli.stats.covariance import shrunk_covariance

Floats = NDArray[np.float64]
# Vectors (M, E) → log-odds of a class (M,), and their slope by the vectors (M, E).
Odds = Callable[[NDArray[np.floating[Any]]], tuple[Floats, Floats]]

_NEAR: Final = 1e-3  # log-odds from what is wanted
_STRIDE: Final = 0.5  # log-odds at a time, of scores that are not linear
_STRIDES: Final = 200
_LEAST: Final = 0.2  # share of a stride that the score must rise by
_SAME_SIDE: Final = 0.01  # share by which crops may differ


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A head or classifier of a RUN, and the class that it is asked for.

    Attributes:
        said: RUN and what it is, for people.
        digest: of the RUN.
        of_class: the class.
        encoder: name of the encoder whose vectors it reads; "": nothing says.
        word: how that encoder is opened: NAME or NAME=FILE.
        weights_sha256: of the encoder's weights; None: it has none, or nothing says.
        width: of the vectors.
        side_um: side of the crops that it learnt from, µm; None: nothing says.
        odds: given the name of a slide, the log-odds by a model that has not seen it.
    """

    said: str
    digest: str
    of_class: str
    encoder: str
    word: str
    weights_sha256: str | None
    width: int
    side_um: float | None
    odds: Callable[[str], Odds]


@dataclass(frozen=True, eq=False)
class Way:
    """How conditions are moved.

    Attributes:
        spread_EE: what the gradient is multiplied by; None: nothing.
        between: the median distance of two real cells' vectors.
    """

    spread_EE: Floats | None
    between: float


def require_fit(scorer: Scorer, about: Mapping[str, Any]) -> list[str]:
    """Refuse a head or classifier of other vectors than a generator's conditions.

    Args:
        scorer: the head or classifier.
        about: of the generator, its encoder named.

    Returns:
        what the user should know.

    Raises:
        UsageError: the generator takes no vectors.
        InputError: vectors of another encoder, other weights or another width.
    """
    condition = about["sit"]["condition"]
    if condition["kind"] != "encoder":
        raise UsageError(
            f"a counterfactual moves an encoder's vector, and this generator's condition is "
            f"{condition['kind']}.",
            hint="`cytofm generate train --condition encoder`",
        )
    theirs, ours = scorer.encoder, str(about.get("encoder") or "")
    if scorer.width != condition["dim"]:
        raise InputError(
            f"{scorer.said}: reads vectors of width {scorer.width} ({theirs or 'not stated'}); the "
            f"generator's condition has {condition['dim']} ({ours or 'not stated'}).",
            hint=f"train it on embeddings of {ours or 'that encoder'}",
        )
    weights, trained = scorer.weights_sha256, about.get("encoder_sha256")
    if weights and trained and weights != trained:
        raise InputError(
            f"{scorer.said}: reads vectors of {theirs} (weights {weights[:12]}…); the generator's "
            f"condition is of {ours} (weights {trained[:12]}…).",
            hint=f"train it on embeddings of {ours}",
        )
    sides = scorer.side_um, about.get("side_um")
    if sides[0] and sides[1] and abs(sides[0] / sides[1] - 1) > _SAME_SIDE:
        return [
            f"warning: {scorer.said}: learnt from crops of {sides[0]:g} µm, the generator from "
            f"{sides[1]:g} µm: its scores are of other views"
        ]
    return []


def way_of(real_NE: Floats, along: str) -> Way:
    """Return how conditions are moved, from vectors of at least two real cells."""
    apart = np.linalg.norm(real_NE - np.roll(real_NE, len(real_NE) // 2, 0), axis=1)
    spread = shrunk_covariance(real_NE - real_NE.mean(0))[0] if along == "pattern" else None
    return Way(spread, float(np.median(apart)))


def walk(odds: Odds, start_E: Floats, wanted_F: Sequence[float], way: Way) -> Floats:
    """Move a vector to each wanted log-odds in turn, (F, E); as near as the score lets it come."""
    at, frames = start_E, []
    for wanted in wanted_F:
        at = _reach(odds, at, wanted, way)
        frames.append(at)
    return np.stack(frames)


def _reach(odds: Odds, at_E: Floats, wanted: float, way: Way) -> Floats:
    value, slope_E = _at(odds, at_E)
    for _ in range(_STRIDES):
        gap = wanted - value
        along_E = slope_E if way.spread_EE is None else way.spread_EE @ slope_E
        rise = float(slope_E @ along_E)
        if abs(gap) <= _NEAR or not rise > 0:
            break
        stride = float(np.clip(gap, -_STRIDE, _STRIDE))
        next_E = at_E + stride / rise * along_E
        then, slope_E = _at(odds, next_E)
        gained = (then - value) / stride
        if not gained > _LEAST or abs(wanted - then) >= abs(gap):  # it flattens, or bends back
            break
        at_E, value = next_E, then
    return at_E


def _at(odds: Odds, at_E: Floats) -> tuple[float, Floats]:
    value_M, slope_ME = odds(at_E[None])
    return float(value_M[0]), slope_ME[0]


def wanted_odds(own: float, config: CounterfactualConfig) -> list[float]:
    """Return the log-odds of each frame, evenly from the cell's own to those of `to`."""
    to = config.to if config.to is not None else (0.95 if own <= 0 else 0.05)
    wanted: list[float] = np.linspace(own, np.log(to / (1 - to)), config.frames).tolist()
    return wanted


def probability(odds: Floats | float) -> Any:
    """Return p of log-odds."""
    return 0.5 * (1 + np.tanh(np.asarray(odds) / 2))


def followed(asked_RF: Floats, shown_RF: Floats) -> dict[str, float | None]:
    """Say how far pictures follow their conditions, in log-odds, strip by strip.

    Args:
        asked_RF: of the conditions, a row a strip.
        shown_RF: of the pictures, encoded again.

    Returns:
        `slope`: of shown by asked, about each strip's means: 1 as asked, 0 not at all;
        `correlation` likewise; `moved_asked`, `moved_shown`: the last frame less the first, mean
        over strips, as positive as it is asked.
    """
    asked, shown = (x - x.mean(1, keepdims=True) for x in (asked_RF, shown_RF))
    among, own, other = (asked * shown).sum(), (asked**2).sum(), (shown**2).sum()
    whole = float(np.sqrt(own * other))
    way_R = np.sign(asked_RF[:, -1] - asked_RF[:, 0])
    return {
        "slope": float(among / own) if own > 0 else None,
        "correlation": float(among / whole) if whole > 0 else None,
        "moved_asked": float((way_R * (asked_RF[:, -1] - asked_RF[:, 0])).mean()),
        "moved_shown": float((way_R * (shown_RF[:, -1] - shown_RF[:, 0])).mean()),
    }
