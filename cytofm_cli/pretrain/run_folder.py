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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from cytofm_cli import __version__
from cytofm_cli.errors import ConfigMismatchError, InputError, OutputError
from cytofm_cli.pretrain import checkpoint
from cytofm_cli.run_record import changes, to_text, write_text
from cytofm_cli.views.recipes import same_views

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


def is_done(out: Path, record: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> bool:
    """Tell whether a RUN is finished; refuse what may not be written over.

    Raises:
        ConfigMismatchError: begun with other settings, or something else lies there.
        OutputError: `out` is a file.
        InputError: its config.toml is damaged.
    """
    former = _former(out)
    if former is None or overwrite:
        return False
    changed = changes(*_unsettled(former, record))
    if changed:
        raise ConfigMismatchError(
            f"{out}: was begun with other settings ({'; '.join(changed)}).",
            hint="`--overwrite` begins anew; or choose another -o",
        )
    return (out / SUMMARY).is_file()


def prepare(out: Path, record: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> None:
    """Make the folder, or clear away what may not stay; `is_done` has looked at it."""
    if overwrite and out.exists():
        shutil.rmtree(out)
    (out / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoint.tidy(out)
    (out / STOPPED).unlink(missing_ok=True)
    if not (out / CONFIG).is_file():
        made = {"cytofm": __version__, "torch": torch.__version__, "utc": _now()}
        write_text(out / CONFIG, to_text({**record, "made": made}))


def _unsettled(
    former: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, dict[str, Any]]]:
    """Return two records without the words that cannot differ in what they come to."""
    pair = [{n: dict(of) for n, of in one.items() if n != "made"} for one in (former, wanted)]
    drop = []
    if all("n_steps" in one.get("data", {}) for one in pair):
        drop += ["steps", "epochs"]  # which of the two was typed
    if all(one["pretrain"].get("unit") == "tile" for one in pair):
        drop.append("cell_um")
    for one in pair:
        one["pretrain"] = {k: v for k, v in one["pretrain"].items() if k not in drop}
    if all("views" in one for one in pair) and same_views(pair[0]["views"], pair[1]["views"]):
        for one in pair:
            del one["views"]
    return pair


def _former(out: Path) -> dict[str, Any] | None:
    """Read the record of a RUN of this command; None: there is nothing yet."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, no folder.", hint="choose another -o")
    if not any(out.iterdir()):
        return None
    found: dict[str, Any] = {}
    if (out / CONFIG).is_file():
        try:
            found = tomllib.loads((out / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{out / CONFIG}: damaged.", hint="choose another -o") from error
    if "pretrain" not in found:  # --overwrite must not remove it either
        raise ConfigMismatchError(
            f"{out}: exists and is no RUN of `cytofm pretrain`.", hint="choose another -o"
        )
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")
