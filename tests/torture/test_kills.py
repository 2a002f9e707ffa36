"""A command that is killed, stopped or starved at a random moment is mended by the same command.

The long form: `python tests/torture/long.py --kills 1000 --report FILE.json`; see docs/torture.md.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from .ground import Warm
from .kills import DRAWN, OF_SLIDES, WEATHERS, Case, Trial, may_mount, prepare, run_trial

# Commands that replace what stands in a store; the long form takes them all.
SHORT = [
    ("embed --overwrite", "kill -9"), ("embed --overwrite", "failing disk"),
    ("embed --overwrite", "writers"), ("tile --overwrite", "slide"),
    ("tile --overwrite", "terminate"), ("tile --overwrite", "suspend"),
]  # fmt: skip


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Hold the commands that were run undisturbed already."""
    return {}


@pytest.mark.parametrize(("name", "weather"), SHORT)
def test_weather__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, cases: dict[str, Case], name: str, weather: str
) -> None:
    case = cases.setdefault(name, cases.get(name) or prepare(warm, ground, work, name))
    outcome = run_trial(warm, work, case, weather, random.Random(f"{name} {weather}"))
    assert outcome.finding == ""
    assert outcome.sent


def _meddling(trial: Trial) -> None:
    (trial.work / "whole" / ".left.partial").touch()
    victim = next((trial.work / "whole" / "p1_s1.zarr" / "nuclei").rglob("c.*"))
    victim.write_bytes(b"damaged")


def test_judge__tells_damage(
    warm: Warm, ground: Path, work: Path, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tile --overwrite"
    case = cases.setdefault(name, cases.get(name) or prepare(warm, ground, work, name))
    monkeypatch.setitem(WEATHERS, "meddling", (1, _meddling))
    outcome = run_trial(warm, work, case, "meddling", random.Random(0))
    assert outcome.finding.startswith("verify: exit 4")


def test_judge__tells_what_is_left(
    warm: Warm, ground: Path, work: Path, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tile --overwrite"
    case = cases.setdefault(name, cases.get(name) or prepare(warm, ground, work, name))
    left = "whole/.left.partial"
    monkeypatch.setitem(WEATHERS, "left", (1, lambda trial: (trial.work / left).touch()))
    outcome = run_trial(warm, work, case, "left", random.Random(0))
    assert f"{left} (too many)" in outcome.finding


@pytest.mark.skipif(not os.environ.get("CYTOTORTURE"), reason="an hour long: CYTOTORTURE=all")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("weather", WEATHERS)
def test_every_weather__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, weather: str
) -> None:
    if weather == "full disk" and not may_mount(work):
        pytest.skip("may not mount a file system")
    rng = random.Random(weather)
    for name in DRAWN:
        if weather != "slide" or name in OF_SLIDES:
            outcome = run_trial(warm, work, prepare(warm, ground, work, name), weather, rng)
            assert outcome.finding == "", name
