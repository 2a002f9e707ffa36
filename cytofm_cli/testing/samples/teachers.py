"""Small frozen teachers for the conformance suite of pretraining methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig
from cytofm_cli.pretrain.backbone import VitTrunk
from cytofm_cli.pretrain.export import export
from cytofm_cli.pretrain.heads import DinoHead
from cytofm_cli.registry import Sample


def write_teacher(folder: Path, seed: int = 0) -> Path:
    """Write an `sr-vit-nano` with random weights, patches of 8 px, that names itself."""
    config = SrVitConfig(size="nano", patch_px=8, img_px=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = VitTrunk(SrVit(config), "sr-vit-nano", config.to_record())
    path = folder / f"teacher-{seed}.safetensors"
    half = (0.5, 0.5, 0.5)
    export(path, trunk, name="teacher", mean=half, std=half, input_px=32, mpp=None)
    return path


def write_checkpoint(folder: Path, *, n_prototypes: int = 12) -> Path:
    """Write the same with heads of DINOv2's kind beside the trunk: a training checkpoint."""
    from safetensors.torch import load_file

    trunk = load_file(write_teacher(folder))
    state = {f"backbone.{name}": value for name, value in trunk.items()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name in ("dino_head", "ibot_head"):
            head = DinoHead(128, n_prototypes, hidden=24, bottleneck=8)
            for key, value in head.mlp.state_dict().items():
                state[f"{name}.mlp.{key}"] = 10 * value
            state[f"{name}.last_layer.weight_v"] = head.prototypes.detach()
            state[f"{name}.last_layer.weight_g"] = torch.ones(n_prototypes, 1)
    path = folder / "checkpoint.pth"
    torch.save({"teacher": state}, path)
    beside = path.with_name("checkpoint.pth.toml")
    beside.write_text('arch = "sr-vit-nano"\ninput_px = 32\n[builder]\nimg_px = 32\n')
    return path


def _samples(folder: Path, *settings: Mapping[str, Any], **traits: Any) -> list[Sample]:
    teacher = {"teacher": str(write_teacher(folder))}
    return [Sample(settings=teacher | dict(each), traits=traits) for each in settings or ({},)]


def tokens(folder: Path) -> list[Sample]:
    """Return how `distill_tokens` is run."""
    return _samples(folder, {}, {"patch_weight": 0.0})


def relations(folder: Path) -> list[Sample]:
    """Return how `distill_relations` is run."""
    return _samples(folder, {}, {"queue": 20}, {"patch_weight": 0.0})


def dino(folder: Path) -> list[Sample]:
    """Return how `distill_dino` is run: with heads learnt on the way, and with those of a file."""
    vit_only: dict[str, Any] = {"masks": True, "rest": {"head_momentum": 1.0}}
    learnt = _samples(
        folder, {"head_share": 0.0}, {"head_share": 0.0, "shared_head": True}, **vit_only
    )
    of_file = {"teacher": str(write_checkpoint(folder))}
    return [*learnt, Sample(settings=of_file, traits=vit_only)]
