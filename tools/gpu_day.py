"""What `gpu_day.sh` does: kernels, smoke tests of pretraining, and two arms for the time that is left.

Each part is a process of its own with a limit; after each `gpu_day.json` is written anew, so that
what is done counts whenever the machine goes. SIGTERM is handed on: training writes a checkpoint.

    gpu_day.json                      all figures, with device and versions
    kernels.json                      of kernels/bench/bench.py
    best.safetensors, plain.safetensors   encoders, where the runs came to their end
    best.jsonl, plain.jsonl           their logs
    runs.tar                          their checkpoints, where they did not: `--resume` goes on
    gpu_day.log                       what the parts said
"""  # noqa: E501

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARMS = ROOT / "studies" / "cyto_ssl" / "gpu_day"
_LEAVE_S = 15  # for packing up at the end

# How much each part may do: of a GPU, and of the rehearsal on a CPU.
LIMITS: dict[str, dict[str, Any]] = {
    "gpu": {
        "device": "cuda", "check_s": 60, "kernels_s": 90, "smoke_s": 45, "published_s": 75,
        "check": ["--tokens", "17", "65", "197", "--models", "tiny", "--rounds", "1", "--no-flex"],
        "kernels": ["--tokens", "65", "197", "1025", "--models", "tiny", "base", "--rounds", "15"],
        "smoke_steps": 120, "batch": 512, "least_steps": 500, "compiled": True,
        "published": ["--batch", "256", "--rounds", "3", "--updates", "3"],
    },
    "tiny": {
        "device": "cpu", "check_s": 60, "kernels_s": 60, "smoke_s": 60, "published_s": 60,
        "check": ["--tokens", "17", "--models", "tiny", "--rounds", "1", "--no-flex"],
        "kernels": ["--tokens", "17", "--models", "tiny", "--rounds", "1", "--no-flex"],
        "smoke_steps": 2, "batch": 4, "least_steps": 4, "compiled": False,
        "published": ["--batch", "2", "--rounds", "1", "--updates", "1", "--prototypes", "64"],
    },
}  # fmt: skip


@dataclass
class Day:
    """The results so far, and the time that is left."""

    out: Path
    work: Path
    deadline: float
    limits: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds that are left, but those for packing up."""
        return self.deadline - _LEAVE_S - time.monotonic()

    def stop(self, *_: object) -> None:
        """Hand a signal on: what trains writes a checkpoint and ends."""
        self.stopped = True
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    def note(self, part: str, value: Any) -> None:
        """Add the result of a part and write all results."""
        self.results[part] = value
        partial = self.out / ".gpu_day.json"
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.out / "gpu_day.json")

    def begin(self, words: Sequence[object]) -> subprocess.Popen[bytes]:
        """Start a Python process; what it says goes to the log."""
        with (self.out / "gpu_day.log").open("ab") as log:
            command = [sys.executable, *map(str, words)]
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self.children.append(child)
        return child

    def end(self, child: subprocess.Popen[bytes], limit_s: float) -> int:
        """Wait for a process; at its limit it is asked to stop, then killed."""
        try:
            return child.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            child.terminate()
            try:
                return child.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                return child.wait()
        finally:
            self.children.remove(child)

    def run(self, words: Sequence[object], limit_s: float) -> dict[str, Any]:
        """Run a process to its end or limit; return its exit code and seconds."""
        if self.stopped or self.left() < 1:
            return {"rc": None, "said": "no time was left"}
        start = time.monotonic()
        rc = self.end(self.begin(words), min(limit_s, self.left()))
        return {"rc": rc, "seconds": round(time.monotonic() - start, 1)}


def about(device: str) -> dict[str, Any]:
    """Describe the machine."""
    import torch

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "device": gpu or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "triton": version,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def kernels(day: Day) -> None:
    """Check the kernels against float64, then time them; a red check leaves no table."""
    bench, device = ROOT / "kernels/bench/bench.py", ["--device", day.limits["device"]]
    checked = day.run(
        [bench, *device, "--dtype", "float32", *day.limits["check"]], day.limits["check_s"]
    )
    day.note("kernels_checked", checked | {"green": checked["rc"] == 0})
    if checked["rc"] != 0:
        return
    prefix = day.work / "kernels"
    timed = day.run(
        [bench, *device, *day.limits["kernels"], "--out", prefix], day.limits["kernels_s"]
    )
    table = prefix.with_suffix(".json")
    if table.is_file():
        shutil.copy(table, day.out / "kernels.json")
        timed["rows"] = json.loads(table.read_text())["rows"]
    day.note("kernels", timed)


def pretrain_words(day: Day, pack: Path, arm: Path, run: Path, *more: object) -> list[object]:
    """Return the command of a run of an arm."""
    # The arms of a study on two cores have one thread; here two runs share all cores.
    threads = max(1, (os.cpu_count() or 2) // 2)
    own = ["--device", day.limits["device"], "--threads", threads, "--no-progress"]
    return ["-m", "cytofm_cli", "pretrain", pack, "-o", run, "--config", arm, *own, *more]


def figures(run: Path) -> dict[str, Any]:
    """Read the speed of a run from its log: the median but for the first line, which warms up."""
    try:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    if not lines:
        return {}
    warm = sorted(lines[1:] or lines, key=lambda line: line["tiles_per_s"])
    middle = warm[len(warm) // 2]
    kept = ("tiles_per_s", "wait_share", "utilisation")
    return {name: middle.get(name) for name in kept} | {
        "step": lines[-1]["step"],
        "loss": lines[-1].get("loss"),
        "teacher_start": lines[-1].get("teacher_start"),
    }


def smoke(day: Day, pack: Path, best: Path) -> None:
    """Run the best arm a few steps: float32, mixed precision, compiled, and as DDP of one."""
    n, batch = day.limits["smoke_steps"], day.limits["batch"]
    common = ["--steps", n, "--batch", batch, "--log-every", max(1, n // 6)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    ways: dict[str, list[object]] = {
        "float32": ["--amp", "off"],
        "bf16": ["--amp", "bf16"],
        "bf16, compiled": ["--amp", "bf16", "--compile"],
        "bf16, DDP of one": ["--amp", "bf16"],
    }
    seen = {}
    if not day.limits["compiled"]:
        del ways["bf16, compiled"]
    for number, (name, more) in enumerate(ways.items()):
        run = day.work / f"smoke{number}"
        words = pretrain_words(day, pack, best, run, *common, *more)
        words = [*torchrun, *words] if "DDP" in name else words
        seen[name] = day.run(words, day.limits["smoke_s"]) | figures(run)
        day.note("smoke", seen)


def published(day: Day, pack: Path) -> None:
    """Time an update beside the published loop's, on the same images."""
    file = day.work / "published.json"
    words = [ROOT / "tests/bench/bench_pretrain.py", pack, "--device", day.limits["device"]]
    sizes = ["--global-px", 64, "--local-px", 32, "--json", file]
    done = day.run([*words, *sizes, *day.limits["published"]], day.limits["published_s"])
    if file.is_file():
        done["rows"] = json.loads(file.read_text())["rows"]
    day.note("published", done)


def steps_that_fit(day: Day, batch: int) -> int:
    """Return how many updates both arms can do side by side, by the speed of the smoke runs."""
    rates = [way.get("tiles_per_s") or 0 for way in day.results.get("smoke", {}).values()]
    # Two processes share the GPU, and start-up and checkpoints take their part.
    fit = int(0.35 * max(rates, default=0) * max(0.0, day.left() - 30) / batch)
    return max(day.limits["least_steps"], fit)


def train(day: Day, pack: Path, arms: dict[str, Path], steps: int | None) -> None:
    """Train both arms side by side for the same number of updates, as many as fit."""
    batch = day.limits["batch"]
    steps = steps or steps_that_fit(day, batch)
    more = ["--steps", steps, "--batch", batch, "--save-every", max(1, steps // 10)]
    runs = {name: day.work / "runs" / name for name in arms}
    started = {
        name: day.begin(pretrain_words(day, pack, arm, runs[name], *more))
        for name, arm in arms.items()
        if not day.stopped
    }
    ended = {name: day.end(child, day.left()) for name, child in started.items()}
    for name, run in runs.items():
        for made, kept in (("encoder.safetensors", "safetensors"), ("log.jsonl", "jsonl")):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(run / made, day.out / f"{name}.{kept}")
    if any(rc != 0 for rc in ended.values()):
        with tarfile.open(day.out / "runs.tar", "w") as tar:
            tar.add(day.work / "runs", "runs")
    day.note(
        "train",
        {name: {"rc": rc, "steps": steps, "batch": batch} | figures(runs[name])
         for name, rc in ended.items()},
    )  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Write the speed of pretraining as the Markdown table of the docs."""
    made = results["about"]
    head = f"{made['device']}, torch {made['torch']}, triton {made['triton']}, {made['date']}"
    lines = [head, "", "| run | images/s | waiting for data | exit |", "|---|---|---|---|"]
    for part in ("smoke", "train"):
        for name, row in results.get(part, {}).items():
            speed, wait = row.get("tiles_per_s"), row.get("wait_share")
            rate = "–" if speed is None else f"{speed:.0f}"
            waited = "–" if wait is None else f"{wait:.1%}"
            lines.append(f"| {part}: {name} | {rate} | {waited} | {row['rc']} |")
    for name, row in results.get("published", {}).get("rows", {}).items():
        lines.append(f"| published loop's task: {name} | {1 / row['seconds_per_tile']:.0f} |  |  |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("pack", type=Path, help="of `cytofm pack`; or gpu_day.json with --table")
    p.add_argument("arms", type=Path, nargs="*", help="TOML of the best arm and of its plain twin")
    p.add_argument("--out", type=Path, default=Path("gpu_day_results"))
    p.add_argument("--seconds", type=float, default=510, help="when it ends")
    p.add_argument("--steps", type=int, help="updates of each arm [default: as many as fit]")
    p.add_argument("--limits", choices=list(LIMITS), default="gpu")
    p.add_argument("--resume", type=Path, help="runs.tar of a former day; give its --steps too")
    p.add_argument("--table", action="store_true", help="print a table of results, and stop")
    return p.parse_args()


def main() -> int:
    """Do all parts; returns 0 if every one of them came to its end."""
    a = parse()
    if a.table:
        print(table(json.loads(a.pack.read_text())), end="")
        return 0
    best, plain = a.arms or (ARMS / "best.toml", ARMS / "plain.toml")
    for path in (a.pack, best, plain):
        if not path.is_file():
            print(f"gpu_day: {path}: no such file.", file=sys.stderr)
            return 2
        if path.suffix == ".toml":
            tomllib.loads(path.read_text())
    pack, arms = a.pack.resolve(), {"best": best.resolve(), "plain": plain.resolve()}
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        deadline = time.monotonic() + a.seconds
        day = Day(a.out.resolve(), Path(work), deadline, LIMITS[a.limits])
        signal.signal(signal.SIGTERM, day.stop)
        day.note("about", about(day.limits["device"]))
        if a.resume:
            with tarfile.open(a.resume) as tar:
                tar.extractall(day.work, filter="data")
        else:
            kernels(day)
            smoke(day, pack, arms["best"])
            published(day, pack)
        train(day, pack, arms, a.steps)
    print(table(day.results), end="")
    codes = [day.results["kernels_checked"]["rc"]] if "kernels_checked" in day.results else []
    for part in ("smoke", "train"):
        codes += [row["rc"] for row in day.results.get(part, {}).values()]
    return 0 if all(code == 0 for code in codes) else 1


if __name__ == "__main__":
    sys.exit(main())
