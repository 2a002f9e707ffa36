"""iBOT: DINO, and prototypes of the patches that the student does not see.

Zhou et al., ICLR 2022, with the settings of its ViT-S run, but that prototypes keep their length
(`norm_last_layer true`; that run learns it).
"""

from __future__ import annotations

from dataclasses import dataclass

from cytofm_cli.config import option
from cytofm_cli.pretrain.patches import MaskedConfig, MaskedMethod
from cytofm_cli.registry import PretrainPlugin, Sample


@dataclass(frozen=True, kw_only=True)
class Config(MaskedConfig):
    """Settings of iBOT."""

    prototypes: int = option(8192, "prototypes, K", low=2)


class Ibot(MaskedMethod):
    """Masked image modelling with a teacher. Needs a trunk with patches."""

    config: Config


_MASKS = {"masks": True}
# Of the mask token and the head of patches nothing is asked where no image is masked.
_NO_MASKS = {"masks": True, "idle": ("mask_token", "heads.patch")}

PLUGIN = PretrainPlugin(
    make=Ibot,
    config=Config,
    summary="iBOT: DINO and masked patches (Zhou 2022)",
    views={"recipe": "ibot"},
    sample=lambda _folder: [
        Sample(traits=_MASKS),
        Sample(settings={"shared_head": False}, traits=_MASKS),
        Sample(settings={"mask_chance": 0.0, "shared_head": False}, traits=_NO_MASKS),
    ],
)
