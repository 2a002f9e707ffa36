"""The RUN of `mil train`: its files, and how lost and exchanged ones are noticed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import InputError, WeightsError
from cytofm_cli.mil.origin import SECTION
from cytofm_cli.runs import folder
from cytofm_cli.runs.folder import CONFIG, Kind
from cytofm_cli.runs.record import Record, changes
from cytofm_cli.table_text import meant
from cytofm_cli.work.files import read_plain

METRICS: Final = "metrics.json"
SPLITS: Final = "splits.csv"
PREDICTIONS: Final = "predictions.csv"
LOG: Final = "log.jsonl"
MODELS: Final = "models"
CELLS: Final = "cells"
MANIFEST: Final = "models/manifest.json"
DECISIONS: Final = "models/decisions.json"
RUN: Final = Kind(
    "cytofm mil train",
    frozenset({"mil", "task"}),
    files=frozenset({METRICS, SPLITS, PREDICTIONS, LOG, MODELS}),
)
# What decides the folds, and nothing else.
_ABOUT_FOLDS = ("protocol", "folds", "inner_folds", "repeats", "test_fraction")


def may_write(out: Path, record: Record, *, overwrite: bool) -> bool:
    """Tell whether a RUN must be made; False: it is done already.

    Args:
        out: RUN folder.
        record: sections of its config.toml.
        overwrite: make a RUN anew, whatever its settings.

    Raises:
        OutputError: `out` is a file.
        ConfigMismatchError: `out` was made with other settings, or is something else.
        WeightsError: a file of it was exchanged. A RUN that lost files is made again.
    """
    folder.restore(out)
    if (out / METRICS).is_file() and not _says_settings(out):
        if overwrite:
            return True
        raise RUN.lost_settings(out)
    former = RUN.former(out, overwrite=overwrite)
    if former is None or overwrite:
        return True
    folder.refuse_changes(out, _changes(former, record), overwrite="replaces it")
    refuse_exchanged(out)
    return bool(lost(out))


def read_metrics(run: Path) -> dict[str, Any]:
    """Read metrics.json of a RUN.

    Raises:
        InputError: `run` is no finished RUN.
    """
    metrics: dict[str, Any] = RUN.read_json(run, METRICS)
    return metrics


def read_config(run: Path) -> dict[str, dict[str, Any]]:
    """Read config.toml of a RUN: sections `mil`, `recipe`, the head's name, `task`."""
    return RUN.read_config(run)


def parse_rows(text: str) -> list[dict[str, str]]:
    """Parse a table that we wrote; a quoted cell may hold any line break."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [
        {name: meant(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        for row in rows
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read splits.csv or predictions.csv of a RUN.

    Raises:
        OSError, ValueError: it cannot be read, is no plain file, or is no UTF-8.
    """
    return parse_rows(read_plain(path).decode("utf-8"))


def manifest_text(run: Path) -> str:
    """Write name and SHA-256 of all that is read again: splits, predictions, `models/`."""
    names = sorted(f"{MODELS}/{p.name}" for p in (run / MODELS).glob("[!.]*"))
    names = [PREDICTIONS, SPLITS, *(name for name in names if name != MANIFEST)]
    return json.dumps(folder.digests(run, names), indent=2) + "\n"


def lost(run: Path) -> list[str]:
    """Name the files that a finished RUN should hold and does not; none if `run` is no RUN."""
    if not RUN.is_run(run):
        return []
    wanted = {SPLITS, PREDICTIONS, DECISIONS, *(_recorded(run) or ()), *models_of(run)}
    gone = {name for name in wanted if not (run / name).is_file()}
    try:
        read_metrics(run)
    except InputError:
        gone.add(METRICS)
    return sorted(gone)


def refuse_exchanged(run: Path, names: Collection[str] | None = None) -> None:
    """Refuse a RUN with files whose content is not what was trained.

    Args:
        run: a RUN.
        names: files to look at; None: all.

    Raises:
        WeightsError: names the files, with both digests.
    """
    recorded = _recorded(run)
    if recorded is None:
        exchanged = [f"{MANIFEST} (damaged)"]
    else:
        looked_at = {k: v for k, v in recorded.items() if names is None or k in names}
        exchanged = folder.exchanged(run, looked_at)
    if exchanged:
        raise WeightsError(
            f"{run}: holds other files than were trained: {'; '.join(exchanged)}.",
            hint="put the right ones back, or train it anew with `--overwrite`",
        )


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


def run_digest(run: Path) -> str:
    """Identify a finished RUN by what was learnt from what, whatever its folder is called."""
    state = hashlib.sha256()
    for path in (run / CONFIG, run / DECISIONS):
        state.update(read_plain(path))
    return state.hexdigest()[:16]


def _says_settings(run: Path) -> bool:
    """Tell whether a folder says what it was made with, by whatever command."""
    try:
        return bool(read_config(run))
    except InputError:
        return False


def _recorded(run: Path) -> dict[str, str] | None:
    """Read the manifest: empty for a RUN of older versions, which had none; None: damaged."""
    try:
        recorded = json.loads(read_plain(run / MANIFEST))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(recorded, dict) and all(isinstance(of, str) for of in recorded.values())
    return recorded if whole else None


def _changes(former: Record, record: Record) -> list[str]:
    # A RUN of a version that did not record the origin: the digest of the bags tells enough.
    wanted = {name: of for name, of in record.items() if name in former or name != SECTION}
    if former["task"].get("splits_digest") == record["task"]["splits_digest"]:
        # The same folds, by whatever words they were drawn.
        former, wanted = (_without_folds(of) for of in (former, wanted))
    return changes(former, wanted)


def _without_folds(record: Record) -> dict[str, Any]:
    mil = {key: value for key, value in record["mil"].items() if key not in _ABOUT_FOLDS}
    return {**record, "mil": mil}
