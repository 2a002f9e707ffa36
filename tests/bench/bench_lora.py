"""Memory of fine-tuning: all weights or updates of low rank, activations kept or computed twice.

Run: `OMP_NUM_THREADS=1 python tests/bench/bench_lora.py [--trunk ENCODER:PATCH:SIDE:BATCH ...]`

Each figure is one process that builds DINO (512 prototypes) around a trunk whose weights come from
a file of half precision that was drawn at random, does an update of two global views of random
pixels and ends: its largest resident memory during that and while it is built (a giant's file is
read beside it), and the CPU seconds of the update. What does not fit
below `--most` GB by its weights, gradients and moments alone is not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from cytofm_cli.pretrain import checkpoint
from cytofm_cli.pretrain.backbone import _blueprint, make_backbones, resting
from cytofm_cli.pretrain.base import Batch, Length, Method
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.optim import build_optimizer
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.views.draws import sample_keys

# ViT-S/14 as DINOv2's, and the 1.1 billion weights of Prov-GigaPath.
TRUNKS: Final = ("dinov2-s14:14:224:4", "prov-gigapath:16:112:2")
ARMS: Final[dict[str, dict[str, Any]]] = {
    "all weights": {},
    "all weights, twice": {"checkpoint_activations": True},
    "rank 8": {"lora_rank": 8},
    "rank 8, twice": {"lora_rank": 8, "checkpoint_activations": True},
}
_TENSORS: Final = 6  # all weights: start, student, teacher, gradient, two moments


def write_random(encoder: str, patch_px: int, side: int, path: Path) -> int:
    """Write weights of half precision for a trunk; return how many there are."""
    plan = _blueprint(PretrainConfig(encoder=encoder, h=0), patch_px, side)
    with torch.device("meta"):
        network = plan.network(0.0)
    own = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(x.shape).uniform_(-0.03, 0.03, generator=own).half()
        for name, x in network.state_dict().items()
    }
    save_file(state, path)
    return sum(x.numel() for x in state.values())


def update(encoder: str, patch_px: int, side: int, batch: int, init: str, arm: str) -> None:
    """Do one update and print what it took, as JSON."""
    config = PretrainConfig(encoder=encoder, h=0, init=Path(init), seed=0, **ARMS[arm])
    backbones, about = make_backbones(config, drop_path=0.0, patch_px=patch_px, img_px=side)
    plugin = pretrain_methods.load("dino")
    head = {"prototypes": 512, "hidden": 512, "bottleneck": 128, "drop_path": 0.0}
    length = Length(n_steps=10, steps_per_epoch=10, batch=batch)
    method: Method = plugin.make(backbones, plugin.config(**head), length).train()
    optimizer = build_optimizer(method)
    built_gb = _peak_gb()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    own = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, 3, side, side, generator=own) for _ in range(2)]
    start = time.process_time()
    keys = sample_keys(0, torch.arange(batch).numpy())
    method(Batch(views=views, n_global=2, keys_B=keys), 0).loss.backward()
    optimizer.step()
    method.after_update(0)
    seconds = time.process_time() - start
    peak_gb = _peak_gb()
    at_rest = resting(method)
    kept = sum(x.nbytes for name, x in method.state_dict().items() if name not in at_rest)
    moments = sum(value.nbytes for _, value in checkpoint._moments(method, optimizer))
    said = {"built_gb": built_gb, "peak_gb": peak_gb, "cpu_s": seconds}
    print(json.dumps(said | {"checkpoint_mb": (kept + moments) / 1e6, "trained": about.n_trained}))


def _peak_gb() -> float:
    """Return the largest resident memory since the last call of `clear_refs` (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise SystemExit("no VmHWM: this benchmark needs Linux")


def main() -> None:
    """Run what fits, a process each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trunk", nargs="*", default=TRUNKS)
    parser.add_argument("--only", nargs="*", default=list(ARMS), help="arms")
    parser.add_argument("--most", type=float, default=9.0, help="GB")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        encoder, patch_px, side, batch, init, arm = a.one
        update(encoder, int(patch_px), int(side), int(batch), init, arm)
        return
    print("| trunk | trained | GB, update | GB, built | checkpoint MB | CPU s |")
    print("|---|---|---|---|---|---|")
    for word in a.trunk:
        encoder, *numbers = word.split(":")
        with tempfile.TemporaryDirectory() as folder:
            init = Path(folder) / "weights.safetensors"
            n = write_random(encoder, int(numbers[0]), int(numbers[1]), init)
            for arm in a.only:
                print(row(encoder, numbers, n, init, arm, a.most), flush=True)


def row(encoder: str, numbers: list[str], n: int, init: Path, arm: str, most: float) -> str:
    """Return one arm's line of the table."""
    name = f"{encoder}, {numbers[1]} px, batch {numbers[2]}: {arm}"
    least_gb = n * 4 * _TENSORS / 1e9
    if "lora_rank" not in ARMS[arm] and least_gb > most:
        return f"| {name} | {n / 1e6:.1f} M | at least {least_gb:.0f} | | | |"
    command = [sys.executable, __file__, "--one", encoder, *numbers, str(init), arm]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return (
        f"| {name} | {said['trained'] / 1e6:.2f} M | {said['peak_gb']:.2f} | "
        f"{said['built_gb']:.2f} | {said['checkpoint_mb']:.1f} | {said['cpu_s']:.0f} |"
    )


if __name__ == "__main__":
    main()
