"""A command that is killed, stopped or starved at a random moment is mended by the same command.

The long form: `python tests/torture/long.py --kills 1000 --report FILE.json`; see docs/torture.md.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .ground import Warm
from .kills import DRAWN, WEATHERS, may_mount, prepare, run_trial

# A command that writes into stores and one that makes a folder; the long form takes them all.
SHORT = [
    ("embed --overwrite", "kill -9"), ("embed --overwrite", "failing disk"),
    ("embed --overwrite", "writers"), ("tile --overwrite", "slide"), ("tile --overwrite", "clock"),
    ("tile --overwrite", "terminate"), ("tile --overwrite", "suspend"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "weather"), SHORT)
def test_weather__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, name: str, weather: str
) -> None:
    case = prepare(warm, ground, work, name)
    outcome = run_trial(warm, work, case, weather, random.Random(f"{name} {weather}"))
    assert outcome.finding == ""
    assert outcome.sent


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("weather", WEATHERS)
def test_every_weather__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, weather: str
) -> None:
    if weather == "full disk" and not may_mount(work):
        pytest.skip("may not mount a file system")
    rng = random.Random(weather)
    for name in DRAWN:
        if weather != "slide" or "tile" in name:
            outcome = run_trial(warm, work, prepare(warm, ground, work, name), weather, rng)
            assert outcome.finding == "", name
