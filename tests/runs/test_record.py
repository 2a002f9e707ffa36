"""RUN folders are compared by what their settings come to."""

from __future__ import annotations

import tomllib
from typing import Any

from cytofm_cli.runs.record import changes, to_text


def record(lr: float | None = None, came_to: float = 3e-4, seed: int = 0) -> dict[str, Any]:
    return {
        "mil": {"method": "abmil", "lr": lr, "classes": None, "seed": seed},
        "recipe": {"lr": came_to},
        "task": {"classes": ["normal", "abnormal"]},
    }


def read_back(of: dict[str, Any]) -> dict[str, Any]:
    return tomllib.loads(to_text(of))


def test_changes__a_preset_spelt_out_is_none() -> None:
    assert changes(read_back(record()), record(lr=3e-4)) == []
    assert changes(read_back(record(lr=3e-4)), record()) == []
    named = record()
    named["mil"]["classes"] = ["normal", "abnormal"]
    assert changes(read_back(record()), named) == []


def test_changes__name_what_comes_to_something_else() -> None:
    assert changes(read_back(record()), record(lr=1e-3, came_to=1e-3)) == [
        "recipe.lr: 0.0003 → 0.001"
    ]
    assert changes(read_back(record()), record(seed=1)) == ["mil.seed: 0 → 1"]


def test_changes__of_an_older_record_that_lacks_the_section_count_the_words() -> None:
    former = {"mil": {"method": "abmil", "lr": 1e-3, "seed": 0}}
    assert "mil.lr: 0.001 → default" in changes(former, record())
