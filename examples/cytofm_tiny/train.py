"""How cytofm-tiny was made: `train.py CRIC STORES OUT.safetensors g1,g4,g6,g8` (see make.sh).

An SR-ViT-tiny learns, from two augmented views of 18 µm of each nucleus, to tell what hand-made
features say of its middle 16 and 24 µm and of its outline, and to tell nuclei apart (NT-Xent).
It sees the fields of the groups that are named; the others judge it. One thread, 2 200 steps of
64 nuclei, about 66 CPU minutes. `cytofm pretrain --method distill` is the general tool; it has no
outlines among its targets and other augmentations.

Letters: N nuclei, B nuclei of a step, E targets, D features, S side of a view, px.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyvips
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.encoders import weights
from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.encoders.handcrafted.describe import describe
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.sr_vit import SrVitConfig
from cytofm_cli.nuclei.features import measure
from cytofm_cli.pretrain.losses import nt_xent
from cytofm_cli.store.io import open_store
from cytofm_cli.units import Box
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD

SEED, STEPS, SLIDES, PER_SLIDE = 0, 2200, 8, 8
VIEW_UM, VIEW_PX, CROP_UM = 18.0, 64, 32
LR, WEIGHT_DECAY, CONTRAST, TEMPERATURE = 1e-3, 0.05, 0.3, 0.2
PAD: Final = 100  # white around a field, px


@dataclass(frozen=True, eq=False)
class Nuclei:
    """All nuclei of the fields that are learnt from.

    Attributes:
        crop_N3SS: uint8, CROP_UM µm around each.
        target_NE: float32, standardised.
        rows: by field, which nuclei are its own.
    """

    crop_N3SS: Tensor
    target_NE: Tensor
    rows: list[NDArray[np.intp]]


def read(cric: Path, stores: Path, groups: Sequence[str]) -> Nuclei:
    """Cut all nuclei of the fields of some groups and describe them."""
    table = list(csv.DictReader((cric / "images.csv").read_text().splitlines()))
    chosen = [row["image"] for row in table if row["group"] in groups]
    crops, said, field_N = [], [], []
    for number, image in enumerate(chosen):
        rgb = pyvips.Image.new_from_file(str(cric / "images" / image)).numpy()[..., :3]
        store = open_store(stores / f"{Path(image).stem}.zarr")
        mpp = store.slide.mpp
        nuclei = store.nuclei()
        height, width = rgb.shape[:2]
        whole = Box(0, 0, width, height)
        outline = measure(nuclei, np.ascontiguousarray(rgb), whole, mpp).columns()
        outline_NF = np.nan_to_num(np.stack([nuclei.area_um2, *outline.values()], 1))
        outline_NF = outline_NF.astype(np.float32).astype(np.float64)
        padded = np.pad(rgb, ((PAD, PAD), (PAD, PAD), (0, 0)), constant_values=255)
        for (x, y), shape in zip(nuclei.xy_px0.tolist(), outline_NF, strict=True):
            square = {um: _cut(padded, x, y, round(um / mpp)) for um in (16, 24, CROP_UM)}
            pixels = [value for um in (16, 24) for value in _described(square[um])]
            said.append([*np.float32(pixels), *shape, *np.log1p(np.abs(shape))])
            crops.append(square[CROP_UM])
            field_N.append(number)
    target_NE = np.array(said, np.float64)
    target_NE = (target_NE - target_NE.mean(0)) / (target_NE.std(0) + 1e-6)
    return Nuclei(
        torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2),
        torch.tensor(target_NE.clip(-4, 4), dtype=torch.float32),
        [np.flatnonzero(np.array(field_N) == number) for number in sorted(set(field_N))],
    )


def _described(image_HWC: NDArray[np.uint8]) -> list[float]:
    return [float(value_B[0]) for value_B in describe(image_HWC[None]).values()]


def _cut(padded_HWC: NDArray[np.uint8], x: float, y: float, side: int) -> NDArray[np.uint8]:
    left, top = round(x - side / 2) + PAD, round(y - side / 2) + PAD
    return np.ascontiguousarray(padded_HWC[top : top + side, left : left + side])


def views(crop_N3SS: Tensor, chosen_B: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
    """Cut and change one view of each: size ± 10 %, centre ± 15 %, turns, stain; (B, 3, S, S)."""
    side = crop_N3SS.shape[-1]
    out = torch.empty(len(chosen_B), 3, VIEW_PX, VIEW_PX)
    for view, i in zip(out, chosen_B, strict=True):
        px = round(VIEW_UM * side / CROP_UM * math.exp(rng.uniform(-0.1, 0.1)))
        reach = 0.15 * px
        cx, cy = (side / 2 + rng.uniform(-reach, reach) for _ in range(2))
        left, top = (int(np.clip(round(c - px / 2), 0, side - px)) for c in (cx, cy))
        cut = crop_N3SS[i : i + 1, :, top : top + px, left : left + px]
        small = functional.interpolate(cut, (VIEW_PX, VIEW_PX), mode="bicubic", antialias=True)[0]
        turn = rng.integers(8)
        small = small.flip(1) if turn & 1 else small
        small = small.flip(2) if turn & 2 else small
        view[:] = (small.transpose(1, 2) if turn & 4 else small).float() / 255
    od = -torch.log(out * 0.98 + 0.02)  # optical density, where stains are linear
    n = len(chosen_B)
    factor = torch.from_numpy(rng.uniform(0.85, 1.15, (n, 1, 1, 1))).float()
    factor = factor * torch.from_numpy(rng.uniform(0.925, 1.075, (n, 3, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-0.0375, 0.0375, (n, 3, 1, 1))).float()
    stained = ((torch.exp(-(od * factor + shift)) - 0.02) / 0.98).clamp(0, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (stained - mean) / std


def batches(nuclei: Nuclei, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Draw some nuclei of some fields, again and again."""
    while True:
        fields = [nuclei.rows[i] for i in rng.permutation(len(nuclei.rows))[:SLIDES]]
        yield np.concatenate(
            [rng.choice(rows, PER_SLIDE, replace=len(rows) < PER_SLIDE) for rows in fields]
        )


def rate(step: int) -> float:
    """Return the learning rate: a linear rise over a tenth of the steps, and a cosine."""
    after = max(0.0, step / STEPS - 0.1) / 0.9
    return LR * min(1.0, (step + 1) / (0.1 * STEPS)) * 0.5 * (1 + math.cos(math.pi * after))


def train(nuclei: Nuclei, out: Path, steps: int = STEPS) -> None:
    """Train the network from random weights; every 200 steps, write it."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    trunk = load_encoder("sr-vit-tiny", random_weights=True, seed=SEED, device="cpu").model.train()
    dim, n_targets = 2 * trunk.embed_dim, nuclei.target_NE.shape[1]
    head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, n_targets))
    projector = nn.Sequential(
        nn.Linear(dim, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128)
    )
    parameters = [
        p.requires_grad_() for part in (trunk, head, projector) for p in part.parameters()
    ]
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == many] for many in (True, False))
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98))
    for step, chosen_B in zip(range(steps), batches(nuclei, rng), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        both_B = np.concatenate([chosen_B, chosen_B])
        token_BTD = trunk.forward_features(views(nuclei.crop_N3SS, both_B, rng))
        feature_BD = torch.cat([token_BTD[:, 0], token_BTD[:, 1:].mean(1)], dim=1)
        contrast = nt_xent(*projector(feature_BD).chunk(2), TEMPERATURE)
        target_BE = nuclei.target_NE[torch.from_numpy(both_B)]
        regression = functional.smooth_l1_loss(head(feature_BD), target_BE)
        optimiser.zero_grad()
        (CONTRAST * contrast + regression).backward()
        norm = nn.utils.clip_grad_norm_(parameters, 3.0)
        optimiser.step()
        if step % 20 == 19:
            sys.stderr.write(f"{step + 1}: {regression:.4f} {contrast:.3f} {norm:.2f}\n")
        if step % 200 == 199 or step + 1 == steps:
            save(trunk, out)


def save(trunk: nn.Module, path: Path) -> None:
    """Write the weights in half precision, with what they are."""
    spec = EncoderSpec(
        name="cytofm-tiny", dim=2 * trunk.embed_dim, input_px=VIEW_PX, mpp=None, cell_um=VIEW_UM,
        mean=IMAGENET_MEAN, std=IMAGENET_STD, pooling="cls+mean", licence="Apache-2.0",
    )  # fmt: skip
    state = {name: value.half() for name, value in trunk.state_dict().items()}
    config = SrVitConfig(size="tiny").to_record()
    weights.write_encoder(path, state, spec, arch="sr-vit-tiny", config=config)


def main() -> None:
    """Read, train, save."""
    torch.set_num_threads(1)
    cric, stores, out = map(Path, sys.argv[1:4])
    train(read(cric, stores, sys.argv[4].split(",")), out)


if __name__ == "__main__":
    main()
