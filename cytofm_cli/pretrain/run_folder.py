"""The RUN folder of a pretraining run: what may be written over, and what is done.

RUN/config.toml           settings of the run, the views and the method, and what they met
    log.jsonl             a line every few steps; tensorboard/ if that package is there
    checkpoints/          see `checkpoint`
    attention/            pictures, if asked for
    encoder.safetensors   the trunk, as `--encoder FILE` takes it; there when it is finished
    encoder-best.safetensors   the one with the best probe, if there was a probe
    summary.json
    stopped               a signal ended it; the same command goes on
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import make_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from cytofm_cli import __version__
from cytofm_cli.config import differences, to_toml
from cytofm_cli.errors import ConfigMismatchError, InputError, OutputError
from cytofm_cli.pretrain import checkpoint

CONFIG: Final = "config.toml"
SUMMARY: Final = "summary.json"
ENCODER: Final = "encoder.safetensors"
BEST: Final = "encoder-best.safetensors"
STOPPED: Final = "stopped"


def read_summary(run: Path) -> dict[str, Any]:
    """Read summary.json of a finished RUN.

    Raises:
        InputError: `run` is not one.
    """
    try:
        found: dict[str, Any] = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: not a finished RUN of `cytofm pretrain`.") from error
    return found


def _to_toml(record: Mapping[str, Mapping[str, Any]]) -> str:
    return to_toml(
        {
            name: make_dataclass(name, list(section), frozen=True)(*section.values())
            for name, section in record.items()
        }
    )


def _changes(out: Path, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the settings in which a RUN differs from what is asked for."""
    found = tomllib.loads((out / CONFIG).read_text(encoding="utf-8"))
    found.pop("made", None)
    wanted = tomllib.loads(_to_toml(record))
    flat = [
        {f"{name}.{key}": v for name, section in of.items() for key, v in section.items()}
        for of in (found, wanted)
    ]
    return differences(*flat)


def is_done(out: Path, record: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> bool:
    """Tell whether a RUN is finished; refuse what may not be written over."""
    if not out.exists() or overwrite:
        return False
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, no folder.", hint="choose another -o")
    if not (out / CONFIG).is_file():
        if any(out.iterdir()):
            raise ConfigMismatchError(
                f"{out}: exists and is no RUN of `cytofm pretrain`.", hint="choose another -o"
            )
        return False
    changed = _changes(out, record)
    if changed:
        raise ConfigMismatchError(
            f"{out}: was begun with other settings ({'; '.join(changed)}).",
            hint="`--overwrite` begins anew; or choose another -o",
        )
    return (out / SUMMARY).is_file()


def prepare(out: Path, record: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> None:
    if overwrite and out.exists():
        if any(out.iterdir()) and not (out / CONFIG).is_file():
            raise ConfigMismatchError(
                f"{out}: exists and is no RUN of `cytofm pretrain`.", hint="choose another -o"
            )
        shutil.rmtree(out)
    (out / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoint.tidy(out)
    (out / STOPPED).unlink(missing_ok=True)
    if not (out / CONFIG).is_file():
        made = {"cytofm": __version__, "torch": torch.__version__, "utc": _now()}
        write_text(out / CONFIG, _to_toml({**record, "made": made}))


def write_text(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.partial")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")
