"""The folder of an evaluation: what makes two runs the same, and features that are kept.

Legend: N instances, D features.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import former_names
from cytofm_cli.errors import ConfigMismatchError, InputError, OutputError
from cytofm_cli.evaluate.config import ProbeConfig
from cytofm_cli.runs.record import changes
from cytofm_cli.work.files import write_bytes

METRICS, CONFIG, FEATURES = "metrics.json", "config.toml", "features"
PREDICTIONS, TABLE = "predictions.csv", "table.md"


def read_features(path: Path, n: int) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
    """Return kept features; None if they are not there or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
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
    record: Mapping[str, Mapping[str, Any]],
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
        ConfigMismatchError: `out` was made with other settings, or is something else.
    """
    if not out.exists():
        return True
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, no folder.", hint="choose another -o")
    if not (out / CONFIG).is_file():
        if any(path.name != FEATURES for path in out.iterdir()):
            raise ConfigMismatchError(
                f"{out}: exists and is not a RUN of `cytofm evaluate probe`.",
                hint="choose another -o",
            )
        return True
    try:
        former = tomllib.loads((out / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{out / CONFIG}: damaged ({error}).", hint="choose another -o") from error
    if "evaluate" not in former:
        raise ConfigMismatchError(f"{out}: is a RUN of another command.", hint="choose another -o")
    names = former_names(ProbeConfig)
    former["evaluate"] = {names.get(key, key): value for key, value in former["evaluate"].items()}
    changed = changes(*(_spelt_out(of, defaults or {}) for of in (former, record)))
    if changed and not overwrite:
        raise ConfigMismatchError(
            f"{out}: was made with other settings ({'; '.join(changed)}).",
            hint="`--overwrite` replaces it and keeps the features; or choose another -o",
        )
    return overwrite or not _is_whole(out)


def _spelt_out(
    record: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
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
        return isinstance(json.loads((out / METRICS).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
