"""Log-odds of a bag of one instance, and their slope in its features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.config import resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.origin import Origin
from cytofm_cli.mil.run import train_run
from cytofm_cli.mil.score import Ensemble, load_run, score_bag
from cytofm_cli.mil.slope import bag_odds

MADE = Origin("uni", unit="cell", cell_um=18.0)
QUICK = {"seeds": 2, "folds": 3, "epochs": 3, "workers": 1, "device": "cpu", "unit": "cell"}


def trained(folder: Path, method: str) -> Ensemble:
    rng = np.random.default_rng(0)
    bags = [
        Bag(f"s{i}", (rng.normal(size=(4, 3)) + 2 * (i % 2)).astype(np.float32), None, MADE)
        for i in range(12)
    ]
    rows = [f"s{i},{'ab'[i % 2]},p{i // 2}" for i in range(12)]
    (folder / "labels.csv").write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    config = resolve(MilConfig, "mil", {**QUICK, "method": method})
    train_run(config, bags, folder / "labels.csv", folder / "run")
    return load_run(folder / "run")


@pytest.fixture(scope="module", params=["abmil", "mean", "clam_sb"])
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return trained(tmp_path_factory.mktemp("slope"), request.param)


def test_odds__are_those_of_models_that_have_not_seen_the_slide(ensemble: Ensemble) -> None:
    name, odds = bag_odds(ensemble, "b", "s3")
    assert (name, len(odds.chosen)) == ("b", 2)  # two seeds of the fold that held it out
    for number in odds.chosen:  # of one model the probability is `mil score`'s
        alone = bag_odds(ensemble, None, "s3")[1].__class__(ensemble, (number,), 1, odds.seed)
        x_1D = np.array([[0.5, -1.0, 2.0]], np.float32)
        value_M, _ = alone(x_1D)
        one = Ensemble(
            (ensemble.models[number],),
            (ensemble.cards[number],),
            ensemble.decisions,
            ensemble.known,
            ensemble.origin,
        )
        p = score_bag(one, Bag("s3", x_1D, None, MADE)).p_C[1]
        assert value_M[0] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
    assert len(bag_odds(ensemble, None, "new slide")[1].chosen) == 6


def test_slope__is_that_of_the_odds(ensemble: Ensemble) -> None:
    _, odds = bag_odds(ensemble, "a", "s3")
    x_MD = np.random.default_rng(1).normal(0.5, 1, (2, 3))
    value_M, slope_MD = odds(x_MD)
    assert slope_MD.shape == (2, 3) and np.abs(slope_MD).max() > 1e-4
    # Small steps, or one crosses the kink of a rectifier.
    for column, step in enumerate(np.eye(3) * 1e-3):
        numeric = (odds(x_MD + step)[0] - odds(x_MD - step)[0]) / 2e-3
        assert slope_MD[:, column] == pytest.approx(numeric, abs=2e-3, rel=2e-2)
    assert bag_odds(ensemble, "b", "s3")[1](x_MD)[0] == pytest.approx(-value_M)


def test_bag_odds__refuses_a_class_that_is_not_known(ensemble: Ensemble) -> None:
    with pytest.raises(UsageError, match=r"no class HSIL.*") as error:
        bag_odds(ensemble, "HSIL", "s3")
    assert error.value.hint == "known: a, b"


def test_bag_odds__refuses_a_head_that_lets_no_gradient_through(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="head dtfd lets no gradient through"):
        bag_odds(trained(tmp_path, "dtfd"), None, "s3")
