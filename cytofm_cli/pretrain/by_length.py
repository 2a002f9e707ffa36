"""Settings of a method that follow from the length of a run.

Published recipes are for about 125 000 updates (DINO: 100 epochs of ImageNet at batch 1024). Runs
of a tenth of that, `LONG`, and more keep them. In a shorter one, what the user leaves open follows
from the number of updates n:

| setting | rule | why |
|---|---|---|
| `momentum` | min(published, 1 - 10 / n), at least 0.5 | a mean over more than a tenth of the run is no teacher but the past: at 0.996 a run of 120 updates ends with a teacher that is 78 % its random start |
| `momentum_end` | min(published, 1 - 10 / n), at least 0.5 | towards 1 the teacher stops to follow: of n = 2500 updates at 0.996 → 1 the exported teacher is on average 47 % of the run behind; of 125 000 it is 12 %, with this rule 10 % |
| `lr` | times min(LONG / n, √(1024 / batch)), at least 1, where it scales linearly | Adam moves a weight by at most the sum of the rates: that sum stays the one of `LONG` updates, up to the rate that scaling by the square root, as Adam's noise does (Malladi et al., NeurIPS 2022), gives from the batch of 1024 that the rates were published for |

What is a share of the run needs no rule: `warmup` (a tenth; published 10 of 100 epochs),
`teacher_temp_warmup` (30 of 100), `freeze_last` (1 of 100). Weight decay is a cosine over the whole
run; AdamW multiplies it by the rate, so that the rule of the rate keeps what it takes away in all.
"""  # noqa: E501 - a table cannot be wrapped

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from cytofm_cli.pretrain.base import Length, MethodConfig

LONG: Final = 12_500  # updates from which on the published settings stand
_WINDOWS: Final = 10  # a run is so many windows of the teacher's mean
_LEAST: Final = 0.5  # momentum of the shortest runs: a window of two updates
_BATCH: Final = 1024  # that the linearly scaled rates were published for

C = TypeVar("C", bound=MethodConfig)


def by_length(config: C, length: Length, given: Collection[str] = ()) -> C:
    """Return the settings for a run of this length; from `LONG` updates on, the same.

    Args:
        config: of a method; one that says `SHORT_RUNS = True` comes back as it is.
        length: of the run.
        given: names of the settings that the user has stated; they stay, and the two momenta are
            one schedule: who states one of them has both.
    """
    if length.n_steps >= LONG or config.SHORT_RUNS:
        return config
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    wanted: dict[str, Any] = {"lr": own["lr"] * _rate(config, length)}
    momenta = ("momentum", "momentum_end")
    for name in momenta:
        if name in own and not set(momenta) & set(given):
            wanted[name] = min(own[name], max(_LEAST, 1 - _WINDOWS / length.n_steps))
    return replace(config, **{name: wanted[name] for name in wanted.keys() - set(given)})


def _rate(config: MethodConfig, length: Length) -> float:
    """Return what the learning rate is multiplied by."""
    if config.lr_scaling != "linear":
        return 1.0
    return max(1.0, min(LONG / length.n_steps, math.sqrt(_BATCH / length.batch)))
