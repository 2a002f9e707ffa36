"""A command that ends before any change of the file system is mended by the same command.

For every K: a copy of the same folder, the command killed before its K-th change, the command once
more. What is there then is what an undisturbed command leaves, byte for byte but for times, and
nothing is left beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import TILE, TRAIN, Warm, put, snapshot
from .warm import CRASHED

OWN = ("--encoder", "handcrafted")
PRETRAIN = (
    "--method", "dino", "--global-px", 32, "--local-px", 16, "--n-local", 2, "--batch", 4,
    "--steps", 2, "--save-every", 1, "--log-every", 1, "--device", "cpu", "--threads", 1,
    "--set", "prototypes=16", "--set", "hidden=8", "--set", "bottleneck=8",
)  # fmt: skip
BAGS = ("--bags", "stores", "--labels", "cohort/labels.csv")
POINTS = ("--labels", "cohort/points.csv", "--groups", "cohort/labels.csv", *OWN)
PROBE = (
    "--points", "cohort/points.csv", "--groups", "cohort/labels.csv", *OWN, "--task", "abnormal",
    "--replicates", 100,
)  # fmt: skip
CASES: dict[str, tuple[object, ...]] = {
    "tile": ("tile", "one", "-o", "new", *TILE, "--preview", "shown"),
    "tile --overwrite": ("tile", "one", "-o", "whole", *TILE, "--stride-px", 64, "--overwrite"),
    "detect": ("detect", "bare"),
    "detect --overwrite": ("detect", "whole", "--overwrite", "--set", "min_probability=0.6"),
    "embed": ("embed", "bare", *OWN),
    "embed --overwrite": (
        *("embed", "whole", *OWN, "--unit", "cell", "--dtype", "float16", "--overwrite"),
    ),
    "run": ("run", "one", "-o", "new", *OWN, "--model", "run", "--to", "h5", *TILE),
    "views": ("views", "found", "-o", "new"),
    "pack": ("pack", "found", "-o", "new.pack"),
    "pretrain": ("pretrain", "stores", "-o", "new", *PRETRAIN),
    "mil train": ("mil", "train", *BAGS, "-o", "new", *TRAIN),
    "mil train --overwrite": (
        *("mil", "train", *BAGS, "-o", "run", *TRAIN, "--seed", 5, "--overwrite"),
    ),
    "mil score": ("mil", "score", "run", "whole", "-o", "new.csv"),
    "cells train": ("cells", "train", "stores", *POINTS, "-o", "new", "--task", "abnormal"),
    "cells train --overwrite": (
        *("cells", "train", "stores", *POINTS, "-o", "cells", "--task", "abnormal"),
        *("--seed", 5, "--overwrite"),
    ),
    "cells apply": ("cells", "apply", "cells", "found"),
    "evaluate probe": ("evaluate", "probe", "stores", *PROBE, "-o", "new"),
    "report": ("report", "run", "whole", "-o", "new.html"),
    "gallery": ("gallery", "stores", "-o", "new", "--by", "area_um2"),
    "heatmap": ("heatmap", "run", "whole", "-o", "new"),
    "export": ("export", "whole", "-o", "new", "--to", "h5,geojson,csv,h5ad"),
    "simulate": (
        *("simulate", "-o", "new", "--patients", 2, "--slides-per-patient", 1, "--size-px", 200),
        *("--format", "jpeg"),
    ),
}
# Made once, then made anew with --overwrite and other settings.
AGAIN: dict[str, tuple[object, ...]] = {
    "pretrain": ("--seed", 5),
    "evaluate probe": ("--seed", 5),
    "report": ("--cells", 3),
    "gallery": ("--top", 3),
    "export": ("--layout", "clam"),
    "views": ("--seed", 5),
    "simulate": ("--seed", 5),
}
# Those that replace what is there, and those that write most ways: the short form.
CHEAP = ("tile --overwrite", "embed --overwrite", "mil train --overwrite")
SAMPLE = 3  # crashes a case in the short form


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
        again, _ = warm.run(*words)
        held = snapshot(work)
        differing = [name for name in {*held, *wanted} if held.get(name) != wanted.get(name)]
        assert differing == [], f"killed before change {crash_at} of {n}: {warm.said.read_text()}"
        assert again in (0, 2)  # 2: all is there already, and is not written over


def words_of(name: str) -> tuple[tuple[object, ...], tuple[object, ...] | None]:
    """Return the words of a case, and of the command before it."""
    if not name.startswith("again: "):
        return CASES[name], None
    name = name.removeprefix("again: ")
    return (*CASES[name], *AGAIN[name], "--overwrite"), CASES[name]


NAMES = [*CASES, *(f"again: {name}" for name in AGAIN)]


@pytest.mark.parametrize("name", CHEAP)
def test_crash__the_same_command_mends_it(warm: Warm, ground: Path, work: Path, name: str) -> None:
    words, before = words_of(name)
    crash_everywhere(warm, rebuild(warm, ground, work, before), work, words, SAMPLE)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
def test_crash_before_every_change__the_same_command_mends_it(
    warm: Warm, ground: Path, work: Path, name: str
) -> None:
    words, before = words_of(name)
    step = int(os.environ.get("CYTOTORTURE_SAMPLE", "0")) or None
    crash_everywhere(warm, rebuild(warm, ground, work, before), work, words, step)
