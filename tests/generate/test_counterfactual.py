"""Conditions moved along scores: steps by hand, what pictures say, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.counterfactual import (
    Scorer,
    Way,
    followed,
    probability,
    require_fit,
    walk,
    wanted_odds,
    way_of,
)
from cytofm_cli.generate.use_config import CounterfactualConfig

PLAIN = Way(None, 1.0)


def linear(weights: list[float], offset: float = 0.0):
    w_E = np.array(weights)

    def odds(x_ME):
        return x_ME @ w_E + offset, np.tile(w_E, (len(x_ME), 1))

    return odds


def test_walk__of_a_linear_score_takes_the_steps_that_are_worked_by_hand() -> None:
    odds = linear([3.0, 4.0], -1.0)
    start = np.array([1.0, 0.5])  # 3 + 2 - 1 = 4
    frames = walk(odds, start, [4.0, 9.0, 14.0], PLAIN)
    # Along (3, 4) the score rises by 25 a unit: 5 are a fifth of the gradient.
    assert frames == pytest.approx(np.array([[1, 0.5], [1.6, 1.3], [2.2, 2.1]]), abs=1e-3)
    assert odds(frames)[0] == pytest.approx([4, 9, 14], abs=1e-3)
    # With variances 4 and 0 of real cells all goes into the first column: 5 / 3 each.
    frames = walk(odds, start, [4.0, 9.0], Way(np.diag([4.0, 0.0]), 1.0))
    assert frames == pytest.approx(np.array([[1, 0.5], [1 + 5 / 3, 0.5]]), abs=1e-3)


def test_walk__reaches_what_a_curved_score_can_and_stays_where_it_cannot() -> None:
    def bent(x_ME):  # 2 tanh of the first column: never above 2
        t = np.tanh(x_ME[:, 0])
        return 2 * t, np.stack([2 * (1 - t**2), 0 * t], 1)

    frames = walk(bent, np.array([-0.3, 7.0]), [1.0, 5.0], PLAIN)
    assert frames[0] == pytest.approx([np.arctanh(0.5), 7.0], abs=1e-3)
    assert 1.5 < bent(frames[1:])[0][0] < 2 and frames[1][0] < 4
    flat = walk(linear([0.0, 0.0]), np.array([1.0, 2.0]), [3.0], PLAIN)
    assert flat == pytest.approx(np.array([[1.0, 2.0]]))


def test_wanted__goes_evenly_in_log_odds_to_the_other_side() -> None:
    config = CounterfactualConfig(frames=3)
    assert wanted_odds(-3.0, config) == pytest.approx([-3, (np.log(19) - 3) / 2, np.log(19)])
    assert wanted_odds(1.0, config)[-1] == pytest.approx(-np.log(19))
    assert wanted_odds(1.0, CounterfactualConfig(frames=2, to=0.5)) == pytest.approx([1, 0])
    assert probability(np.log(19)) == pytest.approx(0.95)
    assert probability(-800.0) == 0


def test_way__is_the_covariance_of_real_cells_and_their_distance() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(0, 1, (4000, 2)) * (3.0, 0.5)
    way = way_of(real, "pattern")
    assert way.spread_EE == pytest.approx(np.diag([9, 0.25]), abs=0.5)
    assert way.between == pytest.approx(
        np.median(np.linalg.norm(real[:2000] - real[2000:], axis=1))
    )
    assert way_of(real, "gradient").spread_EE is None


def test_followed__is_one_where_pictures_score_as_asked_and_nothing_where_they_stay() -> None:
    asked = np.array([[-2.0, 0, 2], [-1, 0, 1]])
    same = followed(asked, asked + np.array([[5.0], [-3]]))  # strips may be off as a whole
    assert same == pytest.approx({"slope": 1, "correlation": 1, "moved_asked": 3, "moved_shown": 3})
    both_ways = followed(asked * [[1], [-1]], asked * [[0.5], [-0.5]])
    assert both_ways["moved_asked"] == 3 and both_ways["moved_shown"] == 1.5
    half = followed(asked, -asked / 2)
    assert (half["slope"], half["correlation"]) == (pytest.approx(-0.5), pytest.approx(-1))
    still = followed(asked, np.zeros((2, 3)))
    assert (still["slope"], still["correlation"], still["moved_shown"]) == (0, None, 0)


def scorer(**changes: Any) -> Scorer:
    usual: dict[str, Any] = {
        "said": "run (cells train, linear)", "digest": "0", "of_class": "dark",
        "encoder": "cytofm-tiny", "word": "cytofm-tiny", "weights_sha256": "aa", "width": 5,
        "side_um": 8.0, "odds": lambda slide: linear([1.0] * 5),
    }  # fmt: skip
    return Scorer(**usual | changes)


def about(kind: str = "encoder", **changes: Any) -> dict[str, Any]:
    condition = {"kind": kind, "dim": 5 if kind == "encoder" else 0}
    usual = {"sit": {"condition": condition}, "encoder": "cytofm-tiny", "encoder_sha256": "aa"}
    return usual | {"side_um": 8.0} | changes


def test_require_fit__takes_the_same_encoder_only() -> None:
    assert require_fit(scorer(), about()) == []
    with pytest.raises(UsageError, match="this generator's condition is class"):
        require_fit(scorer(), about("class"))
    with pytest.raises(UsageError, match="this generator's condition is none"):
        require_fit(scorer(), about("none"))
    with pytest.raises(InputError, match=r"width 7 .handcrafted.; the generator's condition has 5"):
        require_fit(scorer(width=7, encoder="handcrafted"), about())
    with pytest.raises(InputError, match="weights bb"):
        require_fit(scorer(weights_sha256="bb"), about())
    (line,) = require_fit(scorer(side_um=16.0), about())
    assert "crops of 16 µm, the generator from 8 µm" in line
