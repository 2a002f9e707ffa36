"""The RUN folder of a generator.

RUN/config.toml            settings, encoders, data, threads
    log.jsonl              a line every few steps; tensorboard/ if that package is there
    checkpoints/           as of `cytofm pretrain`
    generator.safetensors  see `file`; there when it is finished
    summary.json
    stopped                a signal ended it; the same command goes on
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import InputError
from cytofm_cli.pretrain.run_folder import COMPUTE
from cytofm_cli.runs.folder import Kind, is_whole, refuse_changes
from cytofm_cli.runs.record import Record, changes

RUN: Final = Kind("cytofm generate train", frozenset({"generate", "encoders"}))
SUMMARY: Final = "summary.json"
GENERATOR: Final = "generator.safetensors"


def is_done(out: Path, record: Record, *, overwrite: bool) -> bool:
    """Tell whether a RUN is finished; refuse what may not be written over.

    Raises:
        ConfigMismatchError: begun with other settings, or something else lies there.
        OutputError: `out` is a file.
        InputError: its config.toml is damaged.
    """
    former = RUN.former(out)
    if former is None or overwrite:
        return False
    alone = {"made", COMPUTE} - (former.keys() & record.keys())
    refuse_changes(
        out, changes(_plain(former, alone), _plain(record, alone)), overwrite="begins anew"
    )
    return (out / SUMMARY).is_file()


def generator_of(run: Path) -> Path:
    """Return the file of a finished RUN, or the file itself.

    Raises:
        InputError: `run` is none or not trained to its end, or its file is gone or was changed.
    """
    if run.is_file():
        return run
    if not (run / SUMMARY).exists() and RUN.is_run(run):
        raise InputError(
            f"{run}: is not trained to its end.", hint="the same `cytofm generate train` goes on"
        )
    summary: Mapping[str, Any] = RUN.read_json(run, SUMMARY)
    path = run / GENERATOR
    if not is_whole(path, summary.get("sha256")):
        raise InputError(
            f"{path}: is gone or was changed.", hint="`cytofm generate train` writes it again"
        )
    return path


def _plain(record: Mapping[str, Any], without: set[str]) -> dict[str, dict[str, Any]]:
    """Return a record without some sections, and without the word that n_steps settles."""
    plain = {name: dict(of) for name, of in record.items() if name not in {*without, "made"}}
    for name in ("steps", "epochs"):
        plain["generate"].pop(name, None)
    return plain
