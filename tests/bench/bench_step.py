"""Time an update of DINO with sr-vit-nano: plain, + NCP, + top-h, + relative positions, all.

Run: `OMP_NUM_THREADS=1 python tests/bench/bench_step.py DATA [--rounds 5] [--only plain all]`

DATA is a folder of stores, or a pack, with tiles of single cells (64 to 96 px) and their nuclei.
Each arm trains on its own; rounds alternate. Figures are medians of CPU seconds of this process,
views included, on one thread (wall seconds on a GPU). `--profile ARM` lists where one arm's time
goes instead; `--set KEY=VALUE` changes a setting of the method, `--views` one of the views.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_pretrain import measure

from cytofm_cli.api.inputs import find_stores_and_packs
from cytofm_cli.config import resolve
from cytofm_cli.pretrain import plan as plans
from cytofm_cli.pretrain import run as runs
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.pretrain.data import Batches
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.loop import Trainer

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"ncp": False, "h": 0, "irpe": False},
    "NCP": {"ncp": True, "h": 0, "irpe": False},
    "top-h": {"ncp": False, "h": 16, "irpe": False},
    "iRPE": {"ncp": False, "h": 0, "irpe": True},
    "all": {"ncp": True, "h": 16, "irpe": True},
}


@dataclass
class Arm:
    """One arm in training."""

    trainer: Trainer
    batches: Batches

    def update(self) -> None:
        """Do one update."""
        self.trainer.update(self.batches)
        self.trainer.step += 1


def make_arm(name: str, data: list[Path], folder: Path, a: argparse.Namespace) -> Arm:
    """Build an arm that is ready for its next update; "plain/bf16" is one of mixed precision."""
    name, _, amp = name.partition("/")
    own: dict[str, Any] = {"radius_um": a.radius_um} | dict(w.split("=", 1) for w in a.views)
    views = views_of(a.method, resolve(PretrainViews, "views", own), a.encoder)
    config = PretrainConfig(
        method=a.method, encoder=a.encoder, batch=a.batch, steps=10**5, threads=a.threads,
        device=a.device, amp=amp or a.amp, **ARMS[name],
    )  # fmt: skip
    settings = dict(word.split("=", 1) for word in a.set)
    plan = plans.make_plan(config, views, data, settings)
    trainer, _ = runs._trainer(plan, folder, World(), plans.own_device(a.device, World()))
    return Arm(trainer, runs._batches(plan, trainer))


def profile(arm: Arm, n: int) -> None:
    """Print which operators an arm spends its time in."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    with profiling(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(n):
            arm.update()
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="stores, folders of stores, or packs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--method", default="dino")
    parser.add_argument("--encoder", default="sr-vit-nano")
    parser.add_argument("--radius-um", default="4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="off")
    parser.add_argument("--only", nargs="*", default=list(ARMS), help="arms, as all/bf16 too")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--views", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--profile", help="an arm")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    data = find_stores_and_packs(a.data)
    with tempfile.TemporaryDirectory() as folder:
        names = [a.profile] if a.profile else a.only
        arms = {name: make_arm(name, data, Path(folder), a) for name in names}
        for arm in arms.values():
            for _ in range(2):  # warm up
                arm.update()
        if a.profile:
            profile(arms[a.profile], a.updates)
        else:
            rows = race(arms, a)
            if a.json:
                a.json.write_text(json.dumps(vars(a) | {"rows": rows}, indent=2, default=str))
        for arm in arms.values():
            arm.batches.close()


def race(arms: dict[str, Arm], a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time the arms in turns and print a table."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(a.rounds):
        for name, arm in arms.items():
            seconds[name].append(measure(arm.update, a.updates, a.device))
    rows = {}
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        step = statistics.median(values)
        ratio = statistics.median(v / f for v, f in zip(values, first, strict=True))
        rows[name] = {"step_ms": step * 1e3, "images_per_s": a.batch / step, "ratio": ratio}
        print(
            f"{name:6s} {step * 1e3:7.0f} ms an update  {a.batch / step:6.1f} images/s"
            f"  {ratio:.2f} ×"
        )
    print(time.strftime("%Y-%m-%d"), torch.__version__, f"{a.threads} thread(s)", a.device)
    return rows


if __name__ == "__main__":
    main()
