"""Values that change over a run: pure functions of the step, for runs of any length.

Steps count from 0; lengths of phases are shares of the run, so that short runs pass through
every phase. No value depends on an earlier one: a resumed run needs no state.
"""

from __future__ import annotations

import math


def cosine(step: float, n_steps: int, start: float, end: float, *, warmup: float = 0.0) -> float:
    """Go from `start` to `end` along half a cosine, after a linear rise from 0.

    DINO's schedule: `end` is what step `n_steps` would have, and stays from there.

    Args:
        step: 0 … n_steps - 1.
        n_steps: length of the run.
        start: value at the first step after the rise.
        end: value behind the last step.
        warmup: share of the steps in which the value rises; its last step has `start`.
    """
    n_warmup = warmup * n_steps
    if step < n_warmup:
        return start * min((step + 1) / n_warmup, 1.0)
    progress = min((step - n_warmup) / max(n_steps - n_warmup, 1), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(step: float, n_steps: int, start: float, end: float, *, share: float) -> float:
    """Go from `start` to `end` on a line over the first `share` of the steps, then stay.

    Temperature of the teacher in DINO, iBOT and DINOv2.
    """
    length = share * n_steps
    return end if step >= length else start + (end - start) * step / length
