"""Measure DINO pretraining against a plain re-statement of the published loop's steps.

Run: `OMP_NUM_THREADS=1 python tests/bench/bench_pretrain.py [--rounds 5] [--batch 8] [--json FILE]`

Both sides train the same network (timm's ViT-tiny/16) on the same stored 512-px tiles with the
same batch, views and head, on one thread of the CPU (or on the GPU, `--device cuda`). The other
side does what the published script does, written anew: PIL images through torchvision
transforms, a forward for each size, a loss summed over pairs of views, clipping and the
teacher's update parameter by parameter, AdamW over plain lists. Rounds alternate; the figure is
the median of the rounds' ratios in CPU seconds (wall seconds on a GPU).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cytofm_cli.api.inputs import find_stores_and_packs
from cytofm_cli.pretrain import plan as plans
from cytofm_cli.pretrain import run as runs
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.tile_index import open_index
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.ncp import PRESETS

ARCH = "vit_tiny_patch16_224"


def published(stores: list[Path], a: argparse.Namespace) -> Callable[[], None]:
    """Return one update of the published loop."""
    device, prototypes = torch.device(a.device), a.prototypes

    class Head(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            layers = [nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU()]
            self.mlp = nn.Sequential(*layers, nn.Linear(2048, 256))
            last = nn.Linear(256, prototypes, bias=False)
            self.last = nn.utils.parametrizations.weight_norm(last)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(F.normalize(self.mlp(x), dim=-1))
            return logits

    class Net(nn.Module):
        def __init__(self, drop: float) -> None:
            super().__init__()
            self.trunk = timm.create_model(
                ARCH, num_classes=0, dynamic_img_size=True, drop_path_rate=drop
            )
            self.head = Head(192)

        def forward(self, views: list[Tensor]) -> Tensor:
            large = [v for v in views if v.shape[-1] == views[0].shape[-1]]
            small = views[len(large) :]
            groups = [large, small] if small else [large]
            return self.head(torch.cat([self.trunk(torch.cat(group)) for group in groups]))

    torch.manual_seed(0)
    student, teacher = Net(0.1).to(device), Net(0.0).to(device)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in student.parameters() if p.ndim > 1]},
            {"params": [p for p in student.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=1e-4,
        foreach=False,
    )
    centre = torch.zeros(1, prototypes, device=device)
    batches = pil_batches(stores, a)

    def update() -> None:
        nonlocal centre
        views = [v.to(device) for v in next(batches)]
        with torch.no_grad():
            target = teacher(views[:2])
        logits = student(views) / 0.1
        probabilities = F.softmax((target - centre) / 0.04, dim=-1).chunk(2)
        total, n = logits.new_zeros(()), 0
        for i, q in enumerate(probabilities):
            for j, s in enumerate(logits.chunk(len(views))):
                if i != j:
                    total = total + torch.sum(-q * F.log_softmax(s, dim=-1), dim=-1).mean()
                    n += 1
        centre = centre * 0.9 + target.mean(0, keepdim=True) * 0.1
        optimiser.zero_grad()
        (total / n).backward()
        for p in student.parameters():
            if p.grad is not None:
                p.grad.mul_(torch.clamp(3.0 / (p.grad.norm(2) + 1e-6), max=1))
        optimiser.step()
        with torch.no_grad():
            for own, other in zip(student.parameters(), teacher.parameters(), strict=True):
                other.mul_(0.996).add_(0.004 * own.detach())

    return update


def pil_batches(stores: list[Path], a: argparse.Namespace) -> Iterator[list[Tensor]]:
    """Yield lists of views made with torchvision's transforms on PIL images."""
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    end = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

    def chain(px: int, scale: tuple[float, float], blur: float, solarise: float) -> T.Compose:
        crop = T.RandomResizedCrop(px, scale, interpolation=T.InterpolationMode.BICUBIC)
        return T.Compose(
            [crop, T.RandomHorizontalFlip(), jitter, T.RandomGrayscale(0.2),
             T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], p=blur),
             T.RandomSolarize(128, p=solarise), *end]
        )  # fmt: skip

    makers = [chain(a.global_px, (0.4, 1), 1.0, 0), chain(a.global_px, (0.4, 1), 0.1, 0.2)]
    makers += [chain(a.local_px, (0.05, 0.4), 0.5, 0)] * 8
    index = open_index(stores, need_nuclei=False)
    rng = np.random.default_rng(0)
    while True:
        chosen = rng.choice(index.n_tiles, a.batch, replace=False).tolist()
        pixels_BHWC = index.read(chosen, PRESETS["none"]).tile_BCHW.movedim(1, -1).numpy()
        images = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in pixels_BHWC]
        yield [torch.stack([make(image) for image in images]) for make in makers]


def ours(
    stores: list[Path], folder: Path, a: argparse.Namespace, *, ncp: bool
) -> Callable[[], None]:
    """Return one update of `cytofm pretrain`."""
    views = ViewsConfig(
        recipe="dino", colours="natural", global_px=a.global_px, local_px=a.local_px
    )
    config = PretrainConfig(
        method="dino", encoder=f"timm/{ARCH}", ncp=ncp, batch=a.batch, steps=10**6, threads=1,
        device=a.device, amp="off",
    )  # fmt: skip
    # The published loop's prototypes rest in the first epoch; here both sides move them.
    settings = {"prototypes": str(a.prototypes), "freeze_last": "0"}
    plan = plans.make_plan(config, views, stores, settings)
    device = plans.own_device(a.device, World())
    trainer, _ = runs._trainer(plan, folder, World(), device)
    batches = runs._batches(plan, trainer)

    def update() -> None:
        trainer.update(batches)
        trainer.step += 1

    return update


def measure(update: Callable[[], None], n: int, device: str) -> float:
    """Return seconds an update: of the CPU, or of the wall clock on a GPU."""
    gpu = device != "cpu"
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    for _ in range(n):
        update()
    if gpu:
        torch.cuda.synchronize()
    return (clock() - start) / n


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stores", type=Path, help="folder of stores with nuclei, or a pack")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--global-px", type=int, default=224)
    parser.add_argument("--local-px", type=int, default=96)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if a.device == "cpu":
        torch.set_num_threads(1)
    stores = find_stores_and_packs([str(a.stores)])
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Any] = {
            "published": published(stores, a),
            "ours, no NCP": ours(stores, Path(folder), a, ncp=False),
            "ours, NCP": ours(stores, Path(folder), a, ncp=True),
        }
        for update in sides.values():
            update()  # warm up
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(a.rounds):
            for name, update in sides.items():
                seconds[name].append(measure(update, a.updates, a.device))
    base = seconds["published"]
    rows = {
        name: {
            "seconds_per_tile": statistics.median(values) / a.batch,
            "ratio": statistics.median(b / v for b, v in zip(base, values, strict=True)),
        }
        for name, values in seconds.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, row in rows.items():
        print(f"{name:14s} {row['seconds_per_tile']:.4f} s a tile  {row['ratio']:.2f} ×")
    print(f"peak memory of all three together {peak:.2f} GiB", file=sys.stderr)
    if a.json:
        a.json.write_text(json.dumps(vars(a) | {"rows": rows}, indent=2, default=str))


if __name__ == "__main__":
    main()
