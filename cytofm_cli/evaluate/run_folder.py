"""The folder of an evaluation: what makes two runs the same, and features that are kept.

Legend: N instances, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import former_names
from cytofm_cli.errors import InputError
from cytofm_cli.evaluate.config import ProbeConfig
from cytofm_cli.runs.folder import Kind, refuse_changes
from cytofm_cli.runs.record import Record, changes
from cytofm_cli.work.files import plain, write_bytes

METRICS: Final = "metrics.json"
FEATURES: Final = "features"
PREDICTIONS: Final = "predictions.csv"
TABLE: Final = "table.md"
RUN: Final = Kind(
    "cytofm evaluate probe",
    frozenset({"evaluate"}),
    frozenset({FEATURES}),
    frozenset({METRICS, PREDICTIONS, TABLE}),
)


def read_features(path: Path, n: int) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
    """Return kept features; None if they are not there or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(plain(path), framework="numpy") as file:
            values = file.get_tensor("features")
            facts = json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return (values, facts) if len(values) == n else None


def keep_features(path: Path, values: NDArray[np.float32], facts: Mapping[str, Any]) -> None:
    """Keep features, visible only when complete."""
    from safetensors.numpy import save

    write_bytes(path, save({"features": values}, metadata={"facts": json.dumps(facts)}))


def may_write(
    out: Path,
    record: Record,
    *,
    defaults: Mapping[str, Any] | None = None,
    overwrite: bool,
) -> bool:
    """Tell whether a RUN must be made; False: it is done already.

    Args:
        out: RUN folder.
        record: sections of its config.toml.
        defaults: what settings come to that are not set: spelt out, they are the same.
        overwrite: make it anew if it is of other settings.

    Raises:
        OutputError: `out` is a file.
        ConfigMismatchError: `out` was made with other settings, or is something else.
        InputError: its config.toml is damaged.
    """
    former = RUN.former(out, overwrite=overwrite)
    if former is None:
        return True
    names = former_names(ProbeConfig)
    former["evaluate"] = {names.get(key, key): value for key, value in former["evaluate"].items()}
    if not overwrite:
        changed = changes(*(_spelt_out(of, defaults or {}) for of in (former, record)))
        refuse_changes(out, changed, overwrite="replaces it and keeps the features")
    return overwrite or not _is_whole(out)


def read_metrics(out: Path) -> dict[str, Any]:
    """Read metrics.json of a RUN.

    Raises:
        InputError: `out` is no finished RUN.
    """
    metrics: dict[str, Any] = RUN.read_json(out, METRICS)
    return metrics


def _spelt_out(record: Record, defaults: Mapping[str, Any]) -> Record:
    section = dict(record["evaluate"])
    for name, value in defaults.items():
        if section.get(name) is None:
            section[name] = value
    if section.get("judged"):  # their order says nothing
        section["judged"] = sorted(section["judged"])
    return {**record, "evaluate": section}


def _is_whole(out: Path) -> bool:
    """Tell whether all results are there; from kept features they are soon made again."""
    if not all((out / name).is_file() for name in (PREDICTIONS, TABLE)):
        return False
    try:
        return isinstance(read_metrics(out), dict)
    except InputError:
        return False
