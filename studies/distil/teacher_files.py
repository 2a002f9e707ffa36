"""Weight files of teachers: the trunk of a run with its head, and a trunk with random weights.

Letters: D features, K prototypes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig
from cytofm_cli.pretrain.backbone import VitTrunk
from cytofm_cli.pretrain.export import export
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD

HEAD = "teacher_net.heads.cls."
_EPS = 1e-5  # of torch's batch normalisation


def with_heads(run: Path, file: Path) -> None:
    """Write a DINO run's encoder once more with its head beside the trunk, as DINOv2 names it.

    The head's batch normalisation becomes part of the layer before it, by its running mean and
    variance; patches share the head.

    Args:
        run: RUN folder of `cytofm pretrain --method dino`.
        file: ends in `.safetensors`.
    """
    (checkpoint,) = (run / "checkpoints").glob("step-*/model.safetensors")
    with safe_open(run / "encoder.safetensors", framework="pt") as encoder:
        state = {name: encoder.get_tensor(name) for name in encoder.keys()}  # noqa: SIM118
        about = encoder.metadata()
    head = plain_head(load_file(checkpoint))
    state |= {f"dino_head.{name}": value for name, value in head.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, metadata=about)


def plain_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a head without batch normalisation that says what this one says when it is judged.

    Args:
        state: of the run, with `teacher_net.heads.cls.`: layers 0, 3, 6, normalised by 1 and 4.
    """
    own = {key.removeprefix(HEAD): value for key, value in state.items() if key.startswith(HEAD)}
    head: dict[str, Tensor] = {}
    for layer, norm, plain in ((0, 1, 0), (3, 4, 2)):
        weight, bias = own[f"mlp.{layer}.weight"], own[f"mlp.{layer}.bias"]
        factor = own[f"mlp.{norm}.weight"] / (own[f"mlp.{norm}.running_var"] + _EPS).sqrt()
        shift = own[f"mlp.{norm}.bias"] - factor * own[f"mlp.{norm}.running_mean"]
        head[f"mlp.{plain}.weight"] = factor[:, None] * weight
        head[f"mlp.{plain}.bias"] = factor * bias + shift
    head |= {f"mlp.4.{part}": own[f"mlp.6.{part}"] for part in ("weight", "bias")}
    return head | {
        "last_layer.weight_v": own["prototypes"],
        "last_layer.weight_g": torch.ones(len(own["prototypes"]), 1),
    }


def with_random_weights(file: Path, img_px: int, seed: int = 0) -> None:
    """Write an `sr-vit-nano` that nothing was learnt with, plain as the study's."""
    config = SrVitConfig(size="nano", patch_px=8, img_px=img_px, irpe=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = VitTrunk(SrVit(config), "sr-vit-nano", config.to_record())
    file.parent.mkdir(parents=True, exist_ok=True)
    colours: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    export(file, trunk, name="random", input_px=img_px, mpp=None, pooling="cls+mean", **colours)
