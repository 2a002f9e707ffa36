"""Class names: spellings that are one, the order, and the positive one."""

from __future__ import annotations

import pytest

from cytofm_cli.errors import LabelError
from cytofm_cli.stats.classes import (
    as_found,
    choose_order,
    class_order,
    is_bethesda,
    merge_spellings,
    why_positive,
)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["1", "0"], ("0", "1")),
        (["HSIL", "NILM", "LSIL"], ("NILM", "LSIL", "HSIL")),
        (["hsil", "Ascus", "nilm"], ("nilm", "Ascus", "hsil")),
        (["HSIL", "normal", "LSIL"], ("normal", "LSIL", "HSIL")),
        (["pos", "neg"], ("neg", "pos")),
        (["abnormal", "normal"], ("normal", "abnormal")),
        (["adenoma", "Benign"], ("Benign", "adenoma")),
        (["CASE", "Control"], ("Control", "CASE")),
        (["HPV", "none"], ("none", "HPV")),
        (["infected", "uninfected"], ("uninfected", "infected")),
        (["diseased", "healthy"], ("healthy", "diseased")),
        (["cancer", "no cancer"], ("no cancer", "cancer")),
        (["malignant", "non-malignant"], ("non-malignant", "malignant")),
        (["Carcinoma", "0"], ("0", "Carcinoma")),
        (["squamous", "adeno"], ("adeno", "squamous")),
        (["cancer", "reactive"], ("reactive", "cancer")),
        (["positive", "unknown"], ("unknown", "positive")),
        (["tumor", "tumor-free"], ("tumor-free", "tumor")),
        (["+", "-"], ("-", "+")),
        (["HER2+", "HER2-"], ("HER2-", "HER2+")),
        (["HPV negative", "HPV 16"], ("HPV negative", "HPV 16")),
        (["HSIL", "Negative for malignancy"], ("Negative for malignancy", "HSIL")),
        (["detected", "not detected"], ("not detected", "detected")),
        (["mutant", "wild-type"], ("wild-type", "mutant")),
        (["Pos.", "Neg."], ("Neg.", "Pos.")),
        (["tumor", "benign", "atypia"], ("benign", "atypia", "tumor")),
        (["3+", "0", "1+", "2+"], ("0", "1+", "2+", "3+")),
    ],
)
def test_class_order__what_says_nothing_comes_first(
    names: list[str], order: tuple[str, ...]
) -> None:
    assert class_order(names) == order
    assert class_order(names[::-1]) == order


def test_merge_spellings__most_frequent_wins_and_the_rest_is_said() -> None:
    names, notes = merge_spellings(["neg", "Neg", "Neg", " pos", "pos ", "NEG"], "class")
    assert names == ("Neg", "Neg", "Neg", " pos", " pos", "Neg")
    assert notes == [
        "class 'Neg' is also written 'neg', 'NEG': taken as one",
        "class ' pos' is also written 'pos ': taken as one",
    ]


def test_merge_spellings__numbers_by_value_names_by_letter() -> None:
    assert merge_spellings(["0", "0.0", "00", "1", "1.50", "1.5"], "class")[0] == (
        "0",
        "0",
        "0",
        "1",
        "1.50",
        "1.50",
    )
    distinct = ["HER2", "HER2-", "HER2+", "a b", "ab", "1e3", "1000", "12345678901234567890"]
    assert merge_spellings([*distinct, "12345678901234567891"], "class")[1] == []


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        (("normal", "abnormal"), "'normal' says that nothing was found"),
        (("1", "2"), "the larger number"),
        (("LSIL", "HSIL"), "the worse of the Bethesda system"),
        (("adeno", "squamous"), "the last of the alphabet; --positive chooses another"),
        (("reactive", "cancer"), "'cancer' says that something was found"),
        (("squamous", "adeno"), "as asked for"),  # a RUN whose maker chose
    ],
)
def test_why_positive__is_said(classes: tuple[str, str], why: str) -> None:
    assert why_positive(classes, chosen=False) == why
    assert why_positive(classes, chosen=True) == "as asked for"


def test_is_bethesda__in_any_spelling() -> None:
    assert is_bethesda(["nilm", "ASC US", "Asc-H"])
    assert not is_bethesda(["NILM", "other"])


@pytest.mark.parametrize(
    ("found", "classes", "positive", "order"),
    [
        (["pos", "neg"], None, None, ("neg", "pos")),
        (["a", "b"], None, "A ", ("b", "a")),
        (["a", "b"], ["B", "a"], None, ("b", "a")),
        (["a", "b"], ["B", "a"], "a", ("b", "a")),
        (["a", "b", "c"], ["c", "a", "b"], None, ("c", "a", "b")),
    ],
)
def test_choose_order__as_the_user_asks_in_the_spelling_of_the_table(
    found: list[str], classes: list[str] | None, positive: str | None, order: tuple[str, ...]
) -> None:
    assert choose_order(found, classes, positive) == order


@pytest.mark.parametrize(
    ("found", "classes", "positive", "said"),
    [
        (["a", "b"], None, "c", r"--positive: no slide has class 'c'"),
        (["a", "b", "c"], None, "a", r"--positive a: there are 3 classes \(a, b, c\)"),
        (["a"], None, "a", r"there are 1 classes"),
        (["a", "b"], ["a", "b"], "a", r"--positive a: --classes puts 'b' last"),
        (["a", "b"], ["b"], None, r"`--classes` does not name: a\."),
        (["a", "b"], ["a", "b", "c"], None, r"--classes: no slide has class 'c'"),
        (["a", "b"], ["a", "b", "A"], None, "--classes: a class is named twice"),
    ],
)
def test_choose_order__what_cannot_be_is_said(
    found: list[str], classes: list[str] | None, positive: str | None, said: str
) -> None:
    with pytest.raises(LabelError, match=said):
        choose_order(found, classes, positive)


def test_as_found__some_of_the_classes_in_the_order_asked_for() -> None:
    assert as_found(["a", "b", "c"], ["C", "a"], "--task", whole=False) == ("c", "a")
    with pytest.raises(LabelError, match="--task: no cell has class 'd', 'e'") as error:
        as_found(["b", "a", "b"], ["d", "a", "e"], "--task", what="cell", whole=False)
    assert error.value.hint == "the classes are a, b"


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["Pap (+)", "Pap (-)"], ("Pap (-)", "Pap (+)")),
        (["HPV pos", "HPV 16"], ("HPV 16", "HPV pos")),
        (["pos HPV", "zone"], ("pos HPV", "zone")),  # where it begins, it says nothing
    ],
)
def test_class_order__what_says_something_comes_last(
    names: list[str], order: tuple[str, ...]
) -> None:
    assert class_order(names) == order


def test_why_positive__a_number_beside_a_name_is_no_larger_number() -> None:
    assert why_positive(("1", "grade"), chosen=False).startswith("the last of the alphabet")
