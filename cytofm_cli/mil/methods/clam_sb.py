"""CLAM-SB: clustering-constrained attention MIL, one attention branch (Lu et al. 2021)."""

from __future__ import annotations

from cytofm_cli.mil.clam import Clam, ClamConfig, samples
from cytofm_cli.registry import Plugin

PLUGIN = Plugin(
    make=Clam,
    config=ClamConfig,
    summary="CLAM, one attention branch (Lu 2021)",
    sample=samples,
)
