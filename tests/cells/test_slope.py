"""Log-odds of a class and their slope in the features."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from cytofm_cli.cells.classifier import MahalanobisClassifier, NetworkClassifier
from cytofm_cli.cells.network import Layout
from cytofm_cli.cells.slope import ClassOdds, class_odds
from cytofm_cli.errors import UsageError


def classifier(classes: int, hidden: int, *, ordinal: bool) -> NetworkClassifier:
    rng = np.random.default_rng(classes)
    layout = Layout(4, classes, hidden, ordinal)
    weights = {name: rng.normal(0, 1, shape) for name, shape in layout.shapes().items()}
    scale = np.array([2.0, 1.0, 0.0, 0.5])  # the third feature was constant
    present = np.arange(classes) * 2  # of classes between them there were no cells
    return NetworkClassifier(layout, rng.normal(0, 1, 4), scale, weights, present, 2 * classes)


def test_odds__of_two_classes_are_the_linear_output_by_the_temperature() -> None:
    of = classifier(2, 0, ordinal=False)
    x = np.array([[1.0, 2.0, 9.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    w, offset = of.weights["output"][:-1, 0], of.weights["output"][-1, 0]
    odds, slope = ClassOdds(of, 1, 2.0)(x)
    assert odds == pytest.approx((((x - of.mean_D) * of.scale_D) @ w + offset) / 2)
    assert slope == pytest.approx(np.tile(w * of.scale_D / 2, (2, 1)))
    assert ClassOdds(of, 0, 2.0)(x)[0] == pytest.approx(-odds)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("ordinal", [False, True])
def test_odds__are_those_of_the_calibrated_probability(
    classes: int, hidden: int, ordinal: bool
) -> None:
    of = classifier(classes, hidden, ordinal=ordinal)
    x = np.random.default_rng(1).normal(0, 1, (3, 4))
    for column in range(classes):
        asked = ClassOdds(of, column, 1.7)
        odds, slope = asked(x)
        p = of.answer(x).probabilities(1.7)[:, of.present[column]]
        assert odds == pytest.approx(np.log(p / (1 - p)), abs=1e-6)
        numeric = [
            approx_fprime(row, lambda r, asked=asked: asked(r[None])[0][0], 1e-6) for row in x
        ]
        assert slope == pytest.approx(np.stack(numeric), abs=1e-4)


def test_class_odds__refuses_what_has_no_such_class_or_no_slope() -> None:
    of = classifier(2, 0, ordinal=False)
    card = SimpleNamespace(
        model="linear", classes=("a", "b", "c", "d"), temperature=1.5, temperatures=(3.0,)
    )
    trained = SimpleNamespace(path="run", card=card, folds=(of,), whole=of, adapters={})
    name, odds = class_odds(trained, "c", 0)
    assert (name, odds.column, odds.temperature) == ("c", 1, 3.0)
    with pytest.raises(UsageError, match="learnt no class b"):  # named, but without cells
        class_odds(trained, "b", None)
    with pytest.raises(UsageError, match="is a lora classifier"):
        class_odds(SimpleNamespace(**vars(trained) | {"adapters": {"whole": {}}}), "c", None)
    far = MahalanobisClassifier(np.zeros(4), np.ones(4), np.zeros(3), np.eye(4))
    one_class = SimpleNamespace(**vars(trained) | {"whole": far})
    one_class.card = SimpleNamespace(**vars(card) | {"model": "one-class"})
    with pytest.raises(UsageError, match="it has no gradient"):
        class_odds(one_class, None, None)
