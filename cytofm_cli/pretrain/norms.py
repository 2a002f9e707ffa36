"""How images were normalised that weights were trained on, where views are normalised otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm

from cytofm_cli.encoders import catalogue, weights
from cytofm_cli.encoders.sidecar import sidecar
from cytofm_cli.errors import WeightsError
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD


def norm_notes(encoder: str, init: Path) -> list[str]:
    """Warn of weights that know images which are normalised otherwise than views are."""
    known = _norm_of(encoder, init)
    if known is None or np.allclose(known, (IMAGENET_MEAN, IMAGENET_STD), atol=1e-3):
        return []
    mean, std = (" ".join(f"{x:.3g}" for x in values) for values in known)
    return [
        f"warning: {init}: was trained on images normalised with mean {mean} and std {std}; views "
        "have ImageNet's values, which the first updates have to get used to"
    ]


def _norm_of(encoder: str, init: Path) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return mean and std as the file, the one beside it, the catalogue or timm states them."""
    resolved = catalogue.resolve(encoder)
    stated: dict[str, Any] = {}
    usual = timm.models.get_pretrained_cfg(resolved.model) if resolved.plugin == "timm" else None
    if usual is not None:
        stated |= {"mean": usual.mean, "std": usual.std}
    stated |= resolved.expects
    with contextlib.suppress(WeightsError):  # most files do not say what they are
        stated |= weights.read_description(init).expects
    stated |= sidecar(init)
    return (stated["mean"], stated["std"]) if {"mean", "std"} <= stated.keys() else None
