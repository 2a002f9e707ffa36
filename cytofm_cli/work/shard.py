"""Parts of a job array: `i/n`, or `slurm` for what Slurm says of this task of an array."""

from __future__ import annotations

import os
import re
from typing import Final

from cytofm_cli.errors import UsageError

SLURM: Final = "slurm"
_HINT: Final = '--shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT", array from 0.'


def resolve_shard(shard: str | None) -> str | None:
    """Return a shard as `i/n`, None for everything.

    Args:
        shard: `i/n` with 0 ≤ i < n; `slurm`: what the variables of a Slurm array say.

    Raises:
        UsageError: neither; or not in an array; or in one with gaps, of which Slurm's variables do
            not tell which part is meant.
    """
    if shard is None:
        return None
    if shard == SLURM:
        return _of_slurm()
    parts(shard)
    return shard


def parts(shard: str) -> tuple[int, int]:
    """Return i and n of `i/n`.

    Raises:
        UsageError: it is something else, or i is not below n.
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise UsageError(f"--shard {shard}: must be i/n with 0 ≤ i < n, or slurm.", hint=_HINT)
    return int(match[1]), int(match[2])


def _of_slurm() -> str:
    """Count this task among those of its array, which may begin anywhere and go in steps."""
    task, count = _variable("ID"), _variable("COUNT")
    if task is None or count is None:
        raise UsageError(
            "--shard slurm: this is no task of a Slurm array.",
            hint="sbatch --array=0-31 …; elsewhere --shard i/n",
        )
    first, step = _variable("MIN") or 0, _variable("STEP") or 1
    last = _variable("MAX")
    place, rest = divmod(task - first, step)
    whole = last is None or (last - first) // step + 1 == count
    if rest or not whole or not 0 <= place < count:
        raise UsageError(
            f"--shard slurm: the array of {count} tasks that task {task} is of has gaps.",
            hint="number it without, as `sbatch --array=0-31` does, or give --shard i/n",
        )
    return f"{place}/{count}"


def _variable(name: str) -> int | None:
    value = os.environ.get(f"SLURM_ARRAY_TASK_{name}", "")
    return int(value) if value.isdecimal() else None
