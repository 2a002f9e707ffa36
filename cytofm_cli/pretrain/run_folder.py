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
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.runs.record import changes, to_text
from cytofm_cli.views.recipes import same_views
from cytofm_cli.work.files import write_text

CONFIG: Final = "config.toml"
SUMMARY: Final = "summary.json"
ENCODER: Final = "encoder.safetensors"
BEST: Final = "encoder-best.safetensors"
STOPPED: Final = "stopped"
COMPUTE: Final = "compute"  # section of what the machine lends that changes the weights


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
    # On a GPU, and in RUNs from before it was written down, nothing is known of the threads.
    alone = {"made", COMPUTE} - (former.keys() & record.keys())
    changed = changes(*_unsettled(_without(former, alone), _without(record, alone)))
    if changed:
        raise ConfigMismatchError(
            f"{out}: was begun with other settings ({'; '.join(changed)}).",
            hint="`--overwrite` begins anew; or choose another -o",
        )
    return (out / SUMMARY).is_file()


def begun_threads(out: Path) -> int | None:
    """Return the threads that a RUN was begun to compute with; None: it does not say."""
    try:
        found = tomllib.loads((out / CONFIG).read_text(encoding="utf-8"))
        return int(found[COMPUTE]["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lost_encoders(out: Path, exported: Mapping[str, Any]) -> list[str]:
    """Name the encoders of a finished RUN that are gone, damaged, or describe themselves otherwise.

    Args:
        out: the RUN.
        exported: what its encoders are to state, e.g. their licence.
    """
    summary = read_summary(out)
    names = [ENCODER] if summary.get("best_step") is None else [ENCODER, BEST]
    if exported.items() - summary.get("exported", exported).items():
        return names
    digests = summary.get("sha256", {})
    return [name for name in names if not _is_whole(out / name, digests.get(name))]


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each encoder of a RUN, by file name."""
    paths = [path for path in (out / ENCODER, out / BEST) if path.is_file()]
    return {path.name: sha256_file(path) for path in paths}


def _is_whole(path: Path, digest: str | None) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    return digest is None or sha256_file(path) == digest


def _without(record: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: of for name, of in record.items() if name not in names}


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


def forget_false_start(out: Path) -> None:
    """Remove a RUN that holds nothing but its settings: they must not bind the next command."""
    made = {path.name for path in out.iterdir()}
    if made <= {CONFIG, checkpoint.FOLDER} and not checkpoint.saved_steps(out):
        shutil.rmtree(out)


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
    method = found.get(found["pretrain"].get("method"))
    if method is not None:  # before there was a choice, tokens and positions did not decay
        method.setdefault("decayed", "matrices")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")
