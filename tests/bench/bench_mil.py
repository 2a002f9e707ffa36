"""Measure MIL training against its matrix products. Run by hand:

    OMP_NUM_THREADS=1 python tests/bench/bench_mil.py [--bags 60] [--repeats 5]

CPU seconds for 200 bags of 1000 × 192, batch 1, one thread; median of the repeats, each with
its own floor measured beside it, as a loaded machine slows both. The floor is the forward
products and the two products of each for the gradients (none for the input of the first).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from cytofm_cli.mil.base import MilModel, Recipe, make_head, preset_settings
from cytofm_cli.mil.optim import make_optimizer
from cytofm_cli.mil.train import one_thread

N, D = 1000, 192
Shape = tuple[int, int, int]  # rows, inner, columns
PRODUCTS: dict[str, list[Shape]] = {
    "abmil": [(N, D, 500), (N, 500, 256), (N, 128, 1), (1, N, 500)],
    "clam_sb": [(N, D, 512), (N, 512, 512), (N, 256, 1), (1, N, 512)],
}


def floor(shapes: list[Shape]) -> Callable[[], None]:
    """Make a function that does the products of one training step and nothing else."""
    cases = [
        (torch.randn(m, k), torch.randn(k, n), torch.randn(m, n), first == 0)
        for first, (m, k, n) in enumerate(shapes)
    ]

    def run() -> None:
        for a, b, c, first in cases:
            torch.mm(a, b)
            torch.mm(a.T, c)
            if not first:
                torch.mm(c, b.T)

    return run


def training_step(method: str, **settings: object) -> Callable[[], None]:
    """Make a function that trains one bag with the official head."""
    recipe, head_settings = preset_settings(method, "official")
    head, _ = make_head(method, D, 2, {**head_settings, **settings})
    model = MilModel(head, D).train()
    optimizer = make_optimizer(model, Recipe(**recipe))
    x, y = torch.randn(1, N, D), torch.tensor([1])

    def run() -> None:
        head.loss(model(x), y, F.cross_entropy).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def seconds(function: Callable[[], None], count: int) -> float:
    """Return CPU seconds of `count` calls."""
    start = time.process_time()
    for _ in range(count):
        function()
    return time.process_time() - start


def inference(method: str, n: int, **settings: object) -> Callable[[], None]:
    """Make a function that judges one bag."""
    head, _ = make_head(method, D, 2, settings)
    head.eval()
    x = torch.randn(1, n, D)

    def run() -> None:
        with torch.inference_mode():
            head(x)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bags", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with one_thread("cpu"):  # as training has it
        _measure(args.bags, args.repeats)


def _measure(bags: int, repeats: int) -> None:
    print("| head | s / 200 bags | floor | ratio |\n|---|---|---|---|")
    for method in ("abmil", "clam_sb", "dsmil", "dtfd"):
        step = training_step(method)
        base = floor(PRODUCTS[method]) if method in PRODUCTS else None
        seconds(step, 5)
        found, below = [], []
        for _ in range(repeats):
            below.append(seconds(base, bags) if base else float("nan"))
            found.append(seconds(step, bags))
        scale = 200 / bags
        ratio = statistics.median(a / b for a, b in zip(found, below, strict=True))
        cells = statistics.median(found) * scale, statistics.median(below) * scale, ratio
        print(f"| {method} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")
    print("\n| TransMIL, CPU s / bag | training | inference |\n|---|---|---|")
    for n in (100, 400, 1000):
        for name, settings in (
            ("official", {}),
            ("cytofm", preset_settings("transmil", "cytofm")[1]),
        ):
            step, judge = (
                training_step("transmil", **settings),
                inference("transmil", n, **settings),
            )
            if n != N:
                step = _transmil_step(n, settings)
            seconds(step, 1)
            train = statistics.median(seconds(step, 1) for _ in range(repeats))
            test = statistics.median(seconds(judge, 1) for _ in range(repeats))
            print(f"| {name}, N = {n} | {train:.3f} | {test:.3f} |")


def _transmil_step(n: int, settings: dict[str, object]) -> Callable[[], None]:
    head, _ = make_head("transmil", D, 2, settings)
    head.train()
    x, y = torch.randn(1, n, D), torch.tensor([1])

    def run() -> None:
        head.zero_grad()
        head.loss(head(x), y, F.cross_entropy).backward()

    return run


if __name__ == "__main__":
    main()
