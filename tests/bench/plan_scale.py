"""Reckon a large cohort from what one slide costs, and check it by simulation.

    python tests/bench/plan_scale.py [--slides 100000] [--cores 1024] [--gpus 8] [--server nfs]

On paper: core-hours, GPU-hours, bytes, files and calls to the file server, each divided by what
there is of it; the largest quotient is the bottleneck. Simulated: workers that read slides,
compute and ask one file server, which shares bandwidth and calls among all that want them; slides
differ in size, and workers are preempted, which costs the step that they were in. What one slide
costs was measured (`RATES`, with the bench that gives each), servers and GPUs are assumed.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

GB, TB = 1e9, 1e12


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What work costs on one core of the machine that it was measured on, and on a GPU.

    Attributes:
        tiles_tiled: 512-px tiles a CPU second of `tile --pixels source` (bench_pipeline.py).
        tiles_detected: of `detect` with classical (bench_detect.py, whole command).
        cells_cut: cells a CPU second that are cut for an encoder (bench_cells.py).
        cells_encoded: of `embed --unit cell` with cytofm-tiny, cutting included (bench_cells.py).
        cells_on_gpu: cells a second of one GPU with a ViT-S at 224 px: assumed.
        start_s: of CPU before a worker's first slide.
        asks: calls that ask the file server, of a slide's three steps (bench_scale.py).
        changes: calls that change names, of a slide's three steps (bench_scale.py).
        files: of a finished store of one chunk an array (bench_scale.py).
    """

    tiles_tiled: float = 1000.0
    tiles_detected: float = 66.0
    cells_cut: float = 5300.0
    cells_encoded: float = 280.0
    cells_on_gpu: float = 3000.0
    start_s: float = 2.0
    asks: float = 1830.0
    changes: float = 144.0
    files: float = 57.0


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Slides, of median size; sizes are log-normal.

    Attributes:
        slides: how many.
        tiles: 512-px tiles with foreground of a slide.
        cells: of a slide.
        slide_bytes: that are read of a slide.
        dim: of an embedding, float32.
        spread: standard deviation of the logarithm of a slide's size.
    """

    slides: int = 100_000
    tiles: float = 10_000
    cells: float = 100_000
    slide_bytes: float = 1.5 * GB
    dim: int = 256
    spread: float = 0.6

    @property
    def embedding_bytes(self) -> float:
        """Of all slides."""
        return self.slides * self.cells * self.dim * 4.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A shared file system: assumed, look up your own.

    Attributes:
        bandwidth: bytes a second, all clients together.
        client_bandwidth: of one client.
        asks: calls a second, all together.
        ask_s: what one call takes on an idle server.
    """

    bandwidth: float
    client_bandwidth: float
    asks: float
    ask_s: float


SERVERS: Final[Mapping[str, Server]] = {
    "nfs": Server(bandwidth=1.2 * GB, client_bandwidth=0.6 * GB, asks=8e3, ask_s=5e-4),
    "lustre": Server(bandwidth=40 * GB, client_bandwidth=1.5 * GB, asks=6e4, ask_s=3e-4),
}


@dataclass(frozen=True)
class Plan:
    """What a cohort takes in all, and for how long each resource is busy, hours."""

    core_hours: float
    gpu_hours: float
    read_bytes: float
    written_bytes: float
    files: float
    calls: float
    busy_h: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """The resource that is busy longest."""
        return max(self.busy_h, key=lambda name: self.busy_h[name])


@dataclass
class Shared:
    """Something that n clients share evenly, each at most so much a second.

    Time runs in units of served work: an order of `size` is done when `served` has grown by it.
    """

    capacity: float
    most: float
    served: float = 0.0
    at_s: float = 0.0
    queue: list[tuple[float, int, int]] = field(default_factory=list)
    count: Iterator[int] = field(default_factory=itertools.count)

    def rate(self) -> float:
        """Return what each client gets a second now."""
        return min(self.most, self.capacity / max(1, len(self.queue)))

    def move_to(self, now_s: float) -> None:
        """Serve everybody until now."""
        self.served += (now_s - self.at_s) * self.rate()
        self.at_s = now_s

    def order(self, now_s: float, size: float, who: int) -> None:
        """Let a client wait for so much."""
        self.move_to(now_s)
        heapq.heappush(self.queue, (self.served + size, next(self.count), who))

    def next_s(self) -> float:
        """Return when the next order is done."""
        if not self.queue:
            return math.inf
        return self.at_s + max(0.0, self.queue[0][0] - self.served) / self.rate()

    def pop(self, now_s: float) -> int:
        """Return whose order is done."""
        self.move_to(now_s)
        return heapq.heappop(self.queue)[2]


def plan(cohort: Cohort, rates: Rates, server: Server, *, cores: int, gpus: int) -> Plan:
    """Reckon on paper; sizes are medians times the mean of a log-normal size."""
    mean = math.exp(cohort.spread**2 / 2)
    core_s = cohort.slides * mean * cpu_s(cohort, rates, gpus=gpus)
    gpu_s = cohort.slides * mean * cohort.cells / rates.cells_on_gpu if gpus else 0.0
    read = cohort.slides * mean * cohort.slide_bytes
    written = cohort.embedding_bytes * mean
    calls = cohort.slides * (rates.asks + rates.changes)
    busy_h = {
        "cores": core_s / cores / 3600,
        "GPUs": gpu_s / gpus / 3600 if gpus else 0.0,
        "bandwidth": (read + written) / server.bandwidth / 3600,
        "calls": calls / server.asks / 3600,
    }
    files = cohort.slides * rates.files
    return Plan(core_s / 3600, gpu_s / 3600, read, written, files, calls, busy_h)


def cpu_s(cohort: Cohort, rates: Rates, *, gpus: int) -> float:
    """Return the CPU seconds of a slide of median size: tile, detect, embed."""
    embed = cohort.cells / (rates.cells_cut if gpus else rates.cells_encoded)
    return cohort.tiles / rates.tiles_tiled + cohort.tiles / rates.tiles_detected + embed


def simulate(
    cohort: Cohort,
    rates: Rates,
    server: Server,
    *,
    cores: int,
    preempted_h: float = math.inf,
    seed: int = 0,
) -> dict[str, float]:
    """Let workers go through the slides, one core each; without GPUs.

    Args:
        cohort: what there is to do.
        rates: what it costs.
        server: what workers share.
        cores: workers.
        preempted_h: mean time between two preemptions of a worker. The slide begins anew, with
            the start of a process.
        seed: of sizes and preemptions.

    Returns:
        hours to the end, `busy` (share of the cores' time spent computing what counted), and the
        number of preemptions.
    """
    rng = np.random.default_rng(seed)
    size_N = np.exp(rng.normal(0, cohort.spread, cohort.slides))
    compute_s = cpu_s(cohort, rates, gpus=0)
    bytes_each = cohort.slide_bytes + cohort.cells * cohort.dim * 4.0
    calls_each = rates.asks + rates.changes
    disk = Shared(server.bandwidth, server.client_bandwidth)
    names = Shared(server.asks, 1 / server.ask_s)
    compute: list[tuple[float, int]] = [(rates.start_s, worker) for worker in range(cores)]
    heapq.heapify(compute)
    todo, now_s, useful_s, killed = iter(size_N), 0.0, 0.0, 0
    size = np.zeros(cores)
    stage = np.zeros(cores, int)  # 0: between slides, 1: calls, 2: bytes, 3: computes, 4: lost
    while compute or disk.queue or names.queue:
        times = (compute[0][0] if compute else math.inf, disk.next_s(), names.next_s())
        now_s = min(times)
        which = times.index(now_s)
        worker = heapq.heappop(compute)[1] if which == 0 else (disk, names)[which - 1].pop(now_s)
        if stage[worker] == 3:
            useful_s += size[worker] * compute_s
        if stage[worker] in (0, 3):
            if (following := next(todo, None)) is None:
                continue
            size[worker] = following
        if stage[worker] in (0, 3, 4):
            stage[worker] = 1
            names.order(now_s, calls_each, worker)
        elif stage[worker] == 1:
            stage[worker] = 2
            disk.order(now_s, size[worker] * bytes_each, worker)
        else:
            took_s = size[worker] * compute_s
            until_s = rng.exponential() * preempted_h * 3600
            stage[worker] = 3 if took_s <= until_s else 4
            killed += int(took_s > until_s)
            lost_s = until_s + rates.start_s
            heapq.heappush(compute, (now_s + (took_s if took_s <= until_s else lost_s), worker))
    return {"hours": now_s / 3600, "busy": useful_s / (now_s * cores), "preemptions": killed}


def main() -> None:
    """Print the plan and the simulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=100_000)
    parser.add_argument("--cores", type=int, default=1024)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--server", choices=SERVERS, default="nfs")
    parser.add_argument("--preempted-h", type=float, default=12.0)
    args = parser.parse_args()
    cohort, rates, server = Cohort(slides=args.slides), Rates(), SERVERS[args.server]
    print(f"{args.slides} slides on {args.cores} cores, {args.server}")
    for gpus in (0, args.gpus):
        found = plan(cohort, rates, server, cores=args.cores, gpus=gpus)
        print(
            f"{gpus} GPUs: {found.core_hours:,.0f} core-hours, {found.gpu_hours:,.0f} GPU-hours, "
            f"{found.read_bytes / TB:.0f} TB read, {found.written_bytes / TB:.1f} TB written, "
            f"{found.files / 1e6:.1f} M files, {found.calls / 1e6:.0f} M calls; bottleneck: "
            f"{found.bottleneck}"
        )
        print("  busy, h: " + ", ".join(f"{name} {h:.1f}" for name, h in found.busy_h.items()))
    for cores in (1, 16, 128, args.cores, 4 * args.cores):
        part = replace(cohort, slides=min(cohort.slides, 20 * cores))
        for hours in (math.inf, args.preempted_h):
            result = simulate(part, rates, server, cores=cores, preempted_h=hours)
            told = f"preempted every {hours:g} h" if math.isfinite(hours) else "undisturbed"
            a_core = part.slides / result["hours"] / cores
            print(
                f"simulated, {cores} cores, {part.slides} slides, {told}: "
                f"{result['hours']:.1f} h, {a_core:.2f} slides an hour and core, "
                f"{result['busy']:.0%} computing, {result['preemptions']:.0f} preemptions"
            )


if __name__ == "__main__":
    main()
