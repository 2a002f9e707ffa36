"""The RUN folder of a pretraining run: what may be written over, and what is done.

RUN/config.toml           settings of the run, the views and the method, and what they met
    log.jsonl             a line every few steps; tensorboard/ if that package is there
    checkpoints/          see `checkpoint`
    attention/            pictures, if asked for
    encoder.safetensors   the trunk, as `--encoder FILE` takes it; there when it is finished
    encoder-best.safetensors   the one with the best probe, if there was a probe
    adapters.safetensors       with --lora-rank: the updates alone, a few MB
    summary.json
    stopped               a signal ended it; the same command goes on
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.pretrain import checkpoint
from cytofm_cli.runs import folder
from cytofm_cli.runs.folder import Kind, is_whole, refuse_changes
from cytofm_cli.runs.record import Record, changes
from cytofm_cli.views.recipes import same_views

SUMMARY: Final = "summary.json"
ENCODER: Final = "encoder.safetensors"
BEST: Final = "encoder-best.safetensors"
ADAPTERS: Final = "adapters.safetensors"
LOG: Final = "log.jsonl"
BOARD: Final = "tensorboard"
RUN: Final = Kind(
    "cytofm pretrain",
    frozenset({"pretrain"}),
    frozenset({checkpoint.FOLDER, folder.STOPPED}),
    frozenset({SUMMARY, ENCODER, BEST, ADAPTERS, LOG, BOARD, "attention"}),
)
COMPUTE: Final = "compute"  # section of what the machine lends that changes the weights


def read_summary(run: Path) -> dict[str, Any]:
    """Read summary.json of a finished RUN.

    Raises:
        InputError: `run` is not one.
    """
    summary: dict[str, Any] = RUN.read_json(run, SUMMARY)
    return summary


def is_done(out: Path, record: Record, *, overwrite: bool) -> bool:
    """Tell whether a RUN is finished; refuse what may not be written over.

    Raises:
        ConfigMismatchError: begun with other settings, or something else lies there.
        OutputError: `out` is a file.
        InputError: its config.toml is damaged.
    """
    former = _former(out, overwrite=overwrite)
    if former is None or overwrite:
        return False
    # On a GPU, and in RUNs from before it was written down, nothing is known of the threads.
    alone = {"made", COMPUTE} - (former.keys() & record.keys())
    changed = changes(*_unsettled(_without(former, alone), _without(record, alone)))
    refuse_changes(out, changed, overwrite="begins anew")
    return (out / SUMMARY).is_file()


def begun_threads(out: Path) -> int | None:
    """Return the threads that a RUN was begun to compute with; None: it does not say."""
    try:
        return int(RUN.read_config(out)[COMPUTE]["threads"])
    except (InputError, ValueError, KeyError, TypeError):
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
    names += [name for name in (ADAPTERS,) if name in digests]
    return [name for name in names if not is_whole(out / name, digests.get(name))]


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each encoder of a RUN, by file name."""
    return folder.digests(out, (ENCODER, BEST, ADAPTERS))


def _without(record: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: of for name, of in record.items() if name not in names}


def prepare(out: Path, record: Record, *, overwrite: bool) -> None:
    """Make the folder, or clear away what may not stay; `is_done` has looked at it."""
    folder.begin(out, record, overwrite=overwrite, torch=torch.__version__)
    (out / checkpoint.FOLDER).mkdir(exist_ok=True)
    checkpoint.tidy(out)


def forget_false_start(out: Path) -> None:
    """Remove a RUN that holds nothing but its settings: they must not bind the next command."""
    log = out / LOG
    logged = log.exists() and log.stat().st_size > 0  # TensorBoard's files are never empty
    if not (checkpoint.saved_steps(out) or logged):
        folder.forget_false_start(out, empty=(checkpoint.FOLDER, LOG, BOARD))


def _unsettled(former: Record, wanted: Record) -> list[dict[str, dict[str, Any]]]:
    """Return two records without the words that cannot differ in what they come to."""
    pair = [{n: dict(of) for n, of in record.items() if n != "made"} for record in (former, wanted)]
    drop = ["by_length"]  # what it settles stands in the method's section
    if all("n_steps" in record.get("data", {}) for record in pair):
        drop += ["steps", "epochs"]  # which of the two was typed
    if all(record["pretrain"].get("unit") == "tile" for record in pair):
        drop.append("cell_um")
    for record in pair:
        record["pretrain"] = {k: v for k, v in record["pretrain"].items() if k not in drop}
    if all("views" in record for record in pair):
        with contextlib.suppress(UsageError):  # damaged: it differs, and is told with the RUN
            if same_views(pair[0]["views"], pair[1]["views"]):
                for record in pair:
                    del record["views"]
    return pair


def _former(out: Path, *, overwrite: bool) -> dict[str, Any] | None:
    """Read the record of a RUN in today's words; None: there is nothing yet."""
    record = RUN.former(out, overwrite=overwrite)
    if record is None:
        return None
    if "lora_rank" in record["pretrain"]:  # before there was a choice
        record["pretrain"].setdefault("lora_targets", ["qkv", "proj"])
    method = record.get(record["pretrain"].get("method", ""))
    if method is not None:  # before there was a choice, tokens and positions did not decay
        method.setdefault("decayed", "matrices")
    return record
