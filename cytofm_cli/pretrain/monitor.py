"""What a run says about itself while it trains: a log, collapse monitors, use of the machine.

`log.jsonl` has one JSON object a line: `step`, then numbers; null is a number that was not finite
or not known. Those in `TIMES` differ from run to run, all others do not, stopped and resumed or
not. With the package `tensorboard` installed the same numbers go there.

Letters: B tiles, D features.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from cytofm_cli.errors import InputError
from cytofm_cli.work.claim import host_tag
from cytofm_cli.work.closing import Closes
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.files import output_errors, read_plain, write_text

TIMES: Final = frozenset({"tiles_per_s", "wait_share", "utilisation"})
# Of `feature_std`. The 29 runs of studies/cyto_ssl end at 0.38 to 0.95; BYOL, which recovers, has
# been at 0.033 on its way.
LEAST_SPREAD: Final = 0.05
_FEWEST: Final = 8  # images of a batch that say something of it


class RunLog(Closes):
    """The log of a run, one line at a time; only the process of rank 0 has one.

    Args:
        path: the JSON lines.
        step: updates done when this process takes over; later lines of a process that was
            killed are cut off, since they will be written again.
        tensorboard: folder of TensorBoard's files; None: none.

    Attributes:
        notes: what the user should know, one line each.
    """

    def __init__(self, path: Path, *, step: int = 0, tensorboard: Path | None = None) -> None:
        self.path, self.notes = path, []
        self._board: _Board | None = None
        with output_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut(path, step)
            self._file = path.open("ab")
        if tensorboard is not None:
            if importlib.util.find_spec("tensorboard") is None:
                self.notes.append("TensorBoard is not installed: the log is in log.jsonl only")
                return
            with output_errors(path.parent):
                self._board = _Board(tensorboard, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line; once this returns, it survives a crash of the machine."""
        line = {name: v if math.isfinite(v) else None for name, v in values.items()}
        with output_errors(self.path.parent):
            self._file.write(json.dumps({"step": step, **line}).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._board is not None:
                self._board.write(step, values)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """A file of TensorBoard's events.

    torch's `SummaryWriter` writes them in a thread: of a full disk it prints a trace, and the run
    learns of it some lines later or never.

    Args:
        folder: where it goes.
        step: updates done; TensorBoard forgets what earlier files hold of later ones.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{host_tag()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._put(step=step + 1, session_log=start)
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._put(step=step, summary=self._summary.Summary(value=scalars))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _put(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; a last one that a crash has torn off is left out.

    Raises:
        InputError: another line is damaged, or there is no such file.
    """
    try:
        lines = read_plain(path).split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what no newline ends is torn
        try:
            record = json.loads(line)
            records.append({"step": int(record["step"]), **record})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is no line of a log.") from error
    return records


def _cut(path: Path, step: int) -> None:
    """Keep the lines up to a step, in one rename."""
    if not path.exists():
        return
    kept = [line for line in read_log(path) if line["step"] <= step]
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))


def collapse(features_BD: Tensor) -> dict[str, float]:
    """Tell how far the features of a batch are from all being the same.

    feature_std: √D · mean over d of std over B of z, where z = f / ‖f‖. Near 1 if the directions
    are uniform on the sphere, 0 if all are one (Chen and He, arXiv:2011.10566, §4.1).

    effective_rank: exp(−Σ p log p) with p = σ / Σσ, σ the singular values of f (RankMe,
    arXiv:2210.02885, eq. 1, without its ε). From 1, all features on one line, to min(B, D).

    Args:
        features_BD: of any type, on any device; the sums are made in float64.

    Returns:
        both; NaN where features are not finite, or all are zero.
    """
    f_BD = features_BD.detach().double().cpu()
    if f_BD.numel() == 0 or not bool(torch.isfinite(f_BD).all()) or not bool(f_BD.any()):
        return {"feature_std": math.nan, "effective_rank": math.nan}
    z_BD = functional.normalize(f_BD, dim=1)
    std = float(z_BD.std(0, correction=0).mean()) * math.sqrt(f_BD.shape[1])
    sigma = torch.linalg.svdvals(f_BD)
    p = sigma / sigma.sum()
    return {"feature_std": std, "effective_rank": float(torch.special.entr(p).sum().exp())}


def collapsed(line: Mapping[str, Any], images: int) -> str | None:
    """Return what a user has to know of a log's last line, if features have all become one.

    Args:
        line: as `read_log` gives it.
        images: how many it is of; of fewer than 8 nothing is said.
    """
    spread = line.get("feature_std")
    if spread is None or spread >= LEAST_SPREAD or images < _FEWEST:
        return None
    return (
        f"warning: features have collapsed: those of the last batch all point one way (spread "
        f"{spread:.2g}, where 1 is all ways); an encoder like this tells no two images apart"
    )


def utilisation(device: torch.device, cpu_s: float, wall_s: float) -> float:
    """Return how busy the device is, 0 … 1; NaN where nobody can tell.

    Args:
        device: a GPU is asked for its load of the last moment.
        cpu_s: processor time this process took, all threads together (`time.process_time`).
        wall_s: in how long.
    """
    if device.type == "cpu":
        return cpu_s / (wall_s * cpu_count()) if wall_s > 0 else math.nan
    if device.type == "cuda":
        # Without its package (nvidia-ml-py) or the rights, torch raises this or that.
        with contextlib.suppress(Exception):
            return torch.cuda.utilization(device) / 100
    return math.nan
