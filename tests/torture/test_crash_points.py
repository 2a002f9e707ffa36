"""A command that ends before any change of the file system is mended by the same command.

For every K: a copy of the same folder, the command killed before its K-th change, `verify`, which
must find no damage, the command once more. What is there then is what an undisturbed command
leaves, byte for byte but for times, and nothing is left beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .cases import AGAIN, CASES, words_of
from .ground import Warm, check_stores, put, snapshot
from .warm import CRASHED

# Those that replace what is there, and those that write most ways: the short form.
CHEAP = ("tile --overwrite", "embed --overwrite", "mil train --overwrite")
SAMPLE = 3  # crashes a case in the short form
LONG = os.environ.get("CYTOTORTURE", "")  # every command: all K, or so many of them


def rebuild(warm: Warm, ground: Path, work: Path, before: tuple[object, ...] | None) -> Path:
    """Return a template to begin from: the ground, with what `before` makes."""
    if before is None:
        return ground
    put(ground, work)
    warm.do(*before)
    template = work.with_name("begun")
    put(work, template)
    return template


def crash_everywhere(
    warm: Warm, template: Path, work: Path, words: tuple[object, ...], step: int | None
) -> None:
    """Crash a command before its changes, all or every `step`-th, and run it again each time."""
    put(template, work)
    n = warm.do(*words)
    wanted = snapshot(work)
    assert [name for name in wanted if "/." in f"/{name}" and "/.cytofm/" not in f"/{name}"] == []
    chosen = range(n) if step is None else sorted({*range(0, n, -(-n // step)), n - 1})
    for crash_at in chosen:
        put(template, work)
        code, changes = warm.run(*words, crash_at=crash_at)
        assert code == CRASHED or changes <= crash_at, warm.said.read_text()
        check_stores(warm, work)
        again, _ = warm.run(*words)
        held = snapshot(work)
        differing = [name for name in {*held, *wanted} if held.get(name) != wanted.get(name)]
        told = f"{sorted(differing)[:8]} {warm.said.read_text()}"
        assert differing == [], f"killed before change {crash_at} of {n}: {told}"
        assert again in (0, 2)  # 2: all is there already, and is not written over


NAMES = [*CASES, *(f"again: {name}" for name in AGAIN)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_crash__the_same_command_mends_it(warm: Warm, ground: Path, work: Path, name: str) -> None:
    words, before = words_of(name)
    crash_everywhere(warm, rebuild(warm, ground, work, before), work, words, SAMPLE)


@pytest.mark.slow
@pytest.mark.skipif(
    not LONG, reason="hours long: CYTOTORTURE=all, or a number of crashes a command"
)
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
def test_crash_before_every_change__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, name: str
) -> None:
    words, before = words_of(name)
    step = None if LONG == "all" else int(LONG)
    crash_everywhere(warm, rebuild(warm, ground, work, before), work, words, step)
