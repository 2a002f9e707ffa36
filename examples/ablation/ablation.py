"""The ablation of Cyto-SSL on one's own slides: what do NCP, top-h and relative positions bring?

    python examples/ablation/ablation.py stores -o ablation --points points.csv \
        --groups images.csv --labels lsil_plus=lsil.csv --labels abnormal=abnormal.csv

Arms: DINO and what is added to it (NCP, top-h attention, relative positions, all three), and
SimCLR, MoCo, BYOL, DINO, iBOT without and with all three. Every arm and seed gets the same
number of steps and tiles; then frozen features are judged by a linear and a k-NN probe on
labelled cells and by ABMIL on the slides' labels, on the same folds. Differences are paired:
the same cells or slides, the same seeds. Every command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.evaluate.judge import Truth, group_weights, over_groups
from cytofm_cli.stats import intervals as statistics
from cytofm_cli.stats import metrics

PLAIN = ("--no-ncp", "--h", "0", "--no-irpe")
METHODS = ("simclr", "moco", "byol", "dino", "ibot")
WITH_PROTOTYPES = ("dino", "ibot")
Floats = NDArray[np.float64]


def arms(h: int, dino_flags: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the arms: name → flags of `cytofm pretrain`."""
    dino, full = ("--method", "dino"), ("--ncp", "--h", str(h), "--irpe")
    flags_of = {
        "dino": (*dino, *PLAIN),
        "dino+ncp": (*dino, "--ncp", "--h", "0", "--no-irpe"),
        "dino+top-h": (*dino, "--no-ncp", "--h", str(h), "--no-irpe"),
        "dino+irpe": (*dino, "--no-ncp", "--h", "0", "--irpe"),
        "dino+all": (*dino, *full),
    }
    for method in METHODS:
        flags_of.setdefault(method, ("--method", method, *PLAIN))
        flags_of.setdefault(f"{method}+all", ("--method", method, *full))
    return {
        name: (*flags, *dino_flags) if flags[1] in WITH_PROTOTYPES else flags
        for name, flags in flags_of.items()
    }


# Each row of the table is compared with this one.
BASELINES = {f"dino+{part}": "dino" for part in ("ncp", "top-h", "irpe", "all")} | {
    f"{method}+all": method for method in METHODS
}


def name_of(arm: str, seed: int) -> str:
    """Return the name of an arm's encoder."""
    return f"{arm.replace('+', '-')}-s{seed}"


def run_of(name: str, unit: str) -> str:
    """Return the folder of an encoder's run, as `mil benchmark` calls it."""
    return f"{name.replace('-', '_')}_{unit}-abmil"


def cytofm(words: Iterable[object], log: Path) -> None:
    """Run `cytofm` on one thread; its messages go to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cytofm_cli", *(str(word) for word in words)]
    with log.open("a") as handle:
        done = subprocess.run(  # noqa: S603 - our own command
            command, stdout=handle, stderr=handle, env=environment, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: see {log}")


def one(a: argparse.Namespace, arm: str, flags: Sequence[str], seed: int) -> None:
    """Pretrain, probe and embed one arm with one seed."""
    name = name_of(arm, seed)
    folder = a.out / "runs" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    cytofm(
        ["pretrain", a.stores, "-o", folder, "--name", name, *flags, "--seed", seed, *a.pretrain,
         "--device", a.device, "--threads", 1, "--save-every", 10**6, "--no-progress"],
        log,
    )  # fmt: skip
    encoder = folder / "encoder.safetensors"
    cytofm(
        ["evaluate", "probe", a.stores, "--points", a.points, "--groups", a.groups,
         "--encoder", encoder, "--task", "abnormal", "--crop-um", a.crop_um,
         "--k", 20, "--shots", 16, "--draws", 2, "--replicates", 100, "--threads", 1,
         "-o", a.out / "probes" / name],
        log,
    )  # fmt: skip
    if a.labels:
        cytofm(
            ["embed", a.bags or a.stores, "--encoder", encoder, "--unit", a.unit, "--workers", 1,
             *(["--cell-um", a.crop_um] if a.unit == "cell" else []),
             "--threads", 1, "--no-progress"],
            log,
        )  # fmt: skip


def slide_level(a: argparse.Namespace, names: Sequence[str], task: str, labels: str) -> None:
    """Train ABMIL on the bags of all arms and seeds."""
    cytofm(
        ["mil", "benchmark", "--bags", a.bags or a.stores, "--labels", labels, "--unit", a.unit,
         "--encoder", ",".join(names), "--method", "abmil", "--folds", a.folds[task],
         "--seeds", 1, "--bootstrap", 100, "--workers", a.jobs, "-o", a.out / "mil" / task,
         "--no-progress"],
        a.out / "runs" / f"{task}.log",
    )  # fmt: skip


def read_cells(path: Path, probe: str) -> tuple[list[str], NDArray[np.int64], Floats]:
    """Return slides, truth and probability of `abnormal` for each cell of a probe."""
    with (path / "predictions.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["probe"] == probe]
    y_N = np.array([row["label"] == "abnormal" for row in rows], np.int64)
    p_N = np.array([float(row["prob_abnormal"]) for row in rows])
    return [row["slide_id"] for row in rows], y_N, p_N


def read_slides(path: Path) -> tuple[list[str], NDArray[np.int64], Floats]:
    """Return slides, truth and mean held-out probability of the positive class."""
    with (path / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    column = [name for name in rows[0] if name.startswith("prob_")][-1]
    positive = column.removeprefix("prob_")
    values_of: dict[str, list[float]] = {}
    truth: dict[str, bool] = {}
    for row in rows:
        values_of.setdefault(row["slide_id"], []).append(float(row[column]))
        truth[row["slide_id"]] = row["label"] == positive
    names = sorted(values_of)
    y_N = np.array([truth[name] for name in names], np.int64)
    return names, y_N, np.array([float(np.mean(values_of[name])) for name in names])


def paired_bootstrap(
    first: statistics.Metric, second: statistics.Metric, weight_RS: Floats
) -> statistics.Difference:
    """Compare means over seeds on the same replicates (second − first).

    p is twice the smaller share of replicates on one side of zero, with one added to both
    counts so that it is never 0 (Davison & Hinkley 1997, §4.2).
    """
    gap_R = second(weight_RS) - first(weight_RS)
    low, high = np.quantile(gap_R, [0.025, 0.975])
    fewer = min(int((gap_R <= 0).sum()), int((gap_R >= 0).sum()))
    p = min(1.0, 2 * (fewer + 1) / (len(gap_R) + 1))
    return statistics.Difference(float(second(None) - first(None)), float(low), float(high), p)


def judge(
    read: Callable[[str, int], tuple[list[str], NDArray[np.int64], Floats]],
    names: Sequence[str],
    seeds: int,
    replicates: int = 2000,
) -> dict[str, Any]:
    """Return the mean AUC over seeds with its interval over slides, and paired differences."""
    first_slides, y_N, _ = read(names[0], 0)
    truth = Truth(y_N, tuple(first_slides), retrained=0.0)
    weight_RS = group_weights(truth, replicates, zlib.crc32(b"ablation"))
    measures: dict[str, Callable[[Floats | None], Floats]] = {}
    for name in names:
        runs = [read(name, seed) for seed in range(seeds)]
        assert all(slides == first_slides for slides, _, _ in runs)
        each = [
            over_groups(lambda w, p=p, y=y: np.asarray(metrics.auc(y, p, w)), first_slides)
            for _, y, p in runs
        ]
        measures[name] = lambda w, each=each: np.mean([measure(w) for measure in each], axis=0)
    table: dict[str, Any] = {}
    for name in names:
        estimate = statistics.bootstrap(measures[name], weight_RS)
        single = [float(metrics.auc(y, p)) for _, y, p in (read(name, s) for s in range(seeds))]
        table[name] = {"auc": estimate.value, "low": estimate.low, "high": estimate.high,
                       "seeds": single}  # fmt: skip
    pairs = [(name, BASELINES[name]) for name in names if name in BASELINES]
    gaps = [paired_bootstrap(measures[b], measures[n], weight_RS) for n, b in pairs]
    adjusted = statistics.holm([gap.p for gap in gaps])
    for (name, base), gap, p in zip(pairs, gaps, adjusted, strict=True):
        table[name]["against"] = {"arm": base, "difference": gap.value, "low": gap.low,
                                  "high": gap.high, "p_holm": p}  # fmt: skip
    return table


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """Write one table: a row an arm, a column a task."""
    tasks = list(results)
    lines = [
        "| arm | " + " | ".join(f"{t}: AUC [95 %] | difference [95 %], p" for t in tasks) + " |"
    ]
    lines.append("|---" * (1 + 2 * len(tasks)) + "|")
    for arm in results[tasks[0]]:
        cells = []
        for task in tasks:
            row = results[task][arm]
            cells.append(f"{row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
            gap = row.get("against")
            cells.append(
                f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}], "
                f"{gap['p_holm']:.2f}"
                if gap
                else ""
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what follows `--` goes to `cytofm pretrain`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stores", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--points", type=Path, required=True, help="labelled cells")
    parser.add_argument("--groups", type=Path, required=True)
    parser.add_argument("--bags", type=Path, help="stores of the bags [the same]")
    parser.add_argument("--unit", choices=("tile", "cell"), default="tile", help="of the bags")
    parser.add_argument("--labels", action="append", default=[], metavar="TASK=FILE[:FOLDS]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--h", type=int, default=16)
    parser.add_argument("--crop-um", type=float, default=32.0)
    parser.add_argument("--dino-flags", type=shlex.split, default=[],
                        help="flags of `cytofm pretrain` for DINO and iBOT alone")  # fmt: skip
    parser.add_argument("--only", help="arms, comma-separated")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    words = [*words, "--"]  # argparse itself leaves what follows `--` to the first position
    end = words.index("--")
    a = parser.parse_args(words[:end])
    a.pretrain, a.folds, files = words[end + 1 : -1], {}, {}
    for word in a.labels:
        task, _, file = word.partition("=")
        path, _, folds = file.partition(":")
        files[task] = path
        a.folds[task] = int(folds or 5)
    a.labels = files
    return a


def main() -> None:
    """Run everything that is not there yet, and write table.md and results.json."""
    a = parse(sys.argv[1:])
    chosen = arms(a.h, a.dino_flags)
    if a.only:
        chosen = {name: chosen[name] for name in a.only.split(",")}
    with ThreadPoolExecutor(a.jobs) as pool:
        list(pool.map(lambda job: one(a, *job), [
            (arm, flags, seed) for seed in range(a.seeds) for arm, flags in chosen.items()
        ]))  # fmt: skip
    names = [name_of(arm, seed) for seed in range(a.seeds) for arm in chosen]
    for task, file in a.labels.items():
        slide_level(a, names, task, file)
    results = {}
    for probe in ("linear", "knn20"):
        results[f"cells, {probe}"] = judge(
            lambda arm, s, probe=probe: read_cells(a.out / "probes" / name_of(arm, s), probe),
            list(chosen),
            a.seeds,
        )
    for task in a.labels:
        results[f"{task}, ABMIL"] = judge(
            lambda arm, s, task=task: read_slides(
                a.out / "mil" / task / "runs" / run_of(name_of(arm, s), a.unit)
            ),
            list(chosen),
            a.seeds,
        )
    (a.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (a.out / "table.md").write_text(markdown(results))
    sys.stdout.write((a.out / "table.md").read_text())


if __name__ == "__main__":
    main()
