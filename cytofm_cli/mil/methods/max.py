"""Max pooling: one worst instance decides, feature by feature."""

from __future__ import annotations

from cytofm_cli.mil.pooling import MaxPool, PoolConfig
from cytofm_cli.registry import Plugin, samples

PLUGIN = Plugin(
    make=MaxPool,
    config=PoolConfig,
    summary="maximum of each feature over instances, linear layer",
    sample=samples({}, {"hidden": 0, "dropout": 0.0}),
)
