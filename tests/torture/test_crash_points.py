"""A command that ends before any change of the file system is mended by the same command.

Every K of every command: `python tests/torture/crashes.py`; see docs/torture.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .crashes import NAMES, chosen, crash, undisturbed
from .ground import Warm

# Those that replace what is there, and those that write most ways: the short form.
CHEAP = ("tile --overwrite", "embed --overwrite", "mil train --overwrite")
SAMPLE = 3  # crashes a case in the short form
LONG = os.environ.get("CYTOTORTURE", "")  # every command: all K, or so many of them

pytestmark = pytest.mark.slow


def crash_some(warm: Warm, ground: Path, work: Path, name: str, n: int | None) -> None:
    """Crash a command before about so many of its changes, or all."""
    case = undisturbed(warm, ground, work, name)
    for crash_at in chosen(case.n, 1 if n is None else -(-case.n // n)):
        wrong = crash(warm, work, case, crash_at)
        assert wrong == "", f"killed before change {crash_at} of {case.n}"


@pytest.mark.parametrize("name", CHEAP)
def test_crash__the_same_command_mends_it(warm: Warm, ground: Path, work: Path, name: str) -> None:
    crash_some(warm, ground, work, name, SAMPLE)


@pytest.mark.skipif(
    not LONG, reason="hours long: CYTOTORTURE=all, or a number of crashes a command"
)
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
def test_crash_before_every_change__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, name: str
) -> None:
    crash_some(warm, ground, work, name, None if LONG == "all" else int(LONG))
