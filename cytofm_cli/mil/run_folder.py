"""The folder of a finished RUN: its files, and how lost and exchanged ones are noticed."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cytofm_cli.errors import InputError
from cytofm_cli.runs.provenance import sha256_file

MANIFEST = "models/manifest.json"
METRICS, CONFIG, SPLITS = "metrics.json", "config.toml", "splits.csv"
PREDICTIONS, LOG, MODELS, CELLS = "predictions.csv", "log.jsonl", "models", "cells"
DECISIONS = "models/decisions.json"


def read_metrics(run: Path) -> dict[str, Any]:
    """Read metrics.json of a RUN.

    Raises:
        InputError: `run` is no finished RUN.
    """
    try:
        found: dict[str, Any] = json.loads((run / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run}: not a finished RUN of `cytofm mil train`.",
            hint="give what its -o named",
        ) from error
    return found


def read_config(run: Path) -> dict[str, dict[str, Any]]:
    """Read config.toml of a RUN: sections `mil`, `recipe`, the head's name, `task`."""
    try:
        return tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run}: not a finished RUN of `cytofm mil train`.",
            hint="give what its -o named",
        ) from error


def parse_rows(text: str) -> list[dict[str, str]]:
    """Parse a table that we wrote; a quoted cell may hold any line break."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read splits.csv or predictions.csv of a RUN.

    Raises:
        OSError, ValueError: it cannot be read, or is no UTF-8.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return parse_rows(file.read())


def is_run(run: Path) -> bool:
    """Tell whether a folder is a RUN, whatever of it is lost but what it was made with."""
    try:
        return {"mil", "task"} <= read_config(run).keys()
    except InputError:
        return False


def manifest_text(run: Path) -> str:
    """Write name and SHA-256 of all that is read again: splits, predictions, `models/`."""
    names = sorted(f"{MODELS}/{p.name}" for p in (run / MODELS).glob("[!.]*"))
    names = [PREDICTIONS, SPLITS, *(name for name in names if name != MANIFEST)]
    return json.dumps({name: sha256_file(run / name) for name in names}, indent=2) + "\n"


def lost(run: Path) -> list[str]:
    """Name the files that a finished RUN should hold and does not; none if `run` is no RUN."""
    if not is_run(run):
        return []
    wanted = {SPLITS, PREDICTIONS, DECISIONS, *(_digests(run) or ()), *models_of(run)}
    gone = {name for name in wanted if not (run / name).is_file()}
    try:
        read_metrics(run)
    except InputError:
        gone.add(METRICS)
    return sorted(gone)


def changed(run: Path, names: Collection[str] | None = None) -> list[str]:
    """Name the files whose content is not what was trained, with both digests.

    Args:
        run: a RUN.
        names: files to look at; None: all.
    """
    digests = _digests(run)
    if digests is None:
        return [f"{MANIFEST} (damaged)"]
    found = []
    for name, wanted in digests.items():
        if (names is None or name in names) and (run / name).is_file():
            digest = sha256_file(run / name)
            if digest != wanted:
                found.append(f"{name} (SHA-256 {digest[:12]}…, recorded {wanted[:12]}…)")
    return found


def _digests(run: Path) -> dict[str, str] | None:
    """Read the manifest: empty for a RUN of older versions, which had none; None: damaged."""
    try:
        return dict(json.loads((run / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError):
        return None


def models_of(run: Path) -> list[str]:
    """List the models that a RUN is made of, by fold and seed.

    Raises:
        InputError: `run` is no finished RUN.
    """
    record = read_config(run)
    try:
        folds, seeds = int(record["task"]["folds"]), int(record["mil"]["seeds"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{run / CONFIG}: lacks {error}.", hint="train the RUN again") from error
    return [
        f"{MODELS}/fold{fold}_seed{turn}.safetensors"
        for fold in range(folds)
        for turn in range(seeds)
    ]
