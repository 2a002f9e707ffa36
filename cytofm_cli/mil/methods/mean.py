"""Mean pooling: the floor that every MIL head must beat."""

from __future__ import annotations

from cytofm_cli.mil.pooling import MeanPool, PoolConfig
from cytofm_cli.registry import Plugin, samples

PLUGIN = Plugin(
    make=MeanPool,
    config=PoolConfig,
    summary="mean of the instances, linear layer",
    sample=samples({}, {"hidden": 16}),
)
