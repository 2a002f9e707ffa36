"""CLAM-MB: clustering-constrained attention MIL, one attention branch a class (Lu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

from cytofm_cli.mil.clam import Clam, ClamConfig, samples
from cytofm_cli.registry import Plugin


class ClamMultiBranch(Clam):
    """Class c's logit comes from branch c's bag vector, and its map speaks for class c."""

    multi_branch: ClassVar[bool] = True


PLUGIN = Plugin(
    make=ClamMultiBranch,
    config=ClamConfig,
    summary="CLAM, one attention branch a class (Lu 2021)",
    sample=samples,
)
