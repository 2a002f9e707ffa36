"""What each MIL head can and cannot see: heads × tasks of `mil_tasks.py`, beside the oracles.

    OMP_NUM_THREADS=1 python tests/bench/bench_heads.py FILE.jsonl [--tasks needle,pair] \
        [--heads abmil,dsmil] [--size 24] [--preset official] [--set weight_decay=0.01]
    python tests/bench/bench_heads.py FILE.jsonl --table

Whole runs of `cytofm mil train` (3 folds by patient, 2 seeds). FILE gets a line a run, and what it
holds already is not run again: a killed bench goes on where it was. AUC is that of the pooled
out-of-fold answers; that of training is the mean over the models, each on its own training bags.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mil_tasks import MARKS, Task, make_task

from cytofm_cli.api.train import train
from cytofm_cli.mil.artefacts import load_model
from cytofm_cli.mil.plan import Plan
from cytofm_cli.mil.train import predict_logits
from cytofm_cli.registry import mil_methods
from cytofm_cli.stats.metrics import macro_auc, softmax

FOLDS, SEEDS = 3, 2
OF_RECIPE = ("epochs", "lr", "weight_decay", "patience")  # what the command line has too


def judge(task: Task, head: str, preset: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """Train a run; return AUC out of fold and in training, passes a model and CPU seconds."""
    plans: list[Plan] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        start = time.process_time()
        report = train(
            task.bags,
            _labels(task, Path(folder, "labels.csv")),
            run,
            method=head,
            preset=preset,
            folds=FOLDS,
            seeds=SEEDS,
            bootstrap=100,
            started=plans.append,
            head_settings={k: v for k, v in settings.items() if k not in OF_RECIPE},
            **{k: v for k, v in settings.items() if k in OF_RECIPE},
        )
        seconds = time.process_time() - start
        turns = itertools.product(range(FOLDS), range(SEEDS))
        training = [_training_auc(plans[0], run, fold, turn) for fold, turn in turns]
        epochs = (run / "log.jsonl").read_text().count('"epoch"')
    return {
        "auc": report.metrics["auc"]["value"],
        "training_auc": float(np.mean(training)),
        "epochs": epochs / (FOLDS * SEEDS),
        "cpu_s": round(seconds, 1),
    }


def _labels(task: Task, path: Path) -> Path:
    rows = zip(task.bags, task.y_S.tolist(), task.groups, strict=True)
    text = "".join(f"{bag.slide_id},{y},{group}\n" for bag, y, group in rows)
    path.write_text(f"slide_id,label,group\n{text}")
    return path


def _training_auc(plan: Plan, run: Path, fold: int, turn: int) -> float:
    model, _ = load_model(run / "models" / f"fold{fold}_seed{turn}.safetensors")
    index, _ = plan.folds[fold].train_validation(turn)
    logits_SC = predict_logits(model, [plan.cohort.bags[i] for i in index.tolist()])
    return float(macro_auc(plan.cohort.y_N[index], softmax(logits_SC)))


def oracle_aucs(task: Task) -> dict[str, float]:
    """Return the AUC of each oracle."""
    scores = task.oracles.items()
    return {k: float(macro_auc(task.y_S, np.stack([-z, z], 1))) for k, z in scores}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs that a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def todo(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what each run that is asked for is."""
    settings = dict(pair.split("=", 1) for pair in args.set)
    for task, head in itertools.product(args.tasks, args.heads):
        yield {
            "task": task,
            "size": args.size,
            "patients": args.patients,
            "draw": args.draw,
            "head": head,
            "preset": args.preset,
            "settings": settings,
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Write AUC / AUC in training: a row a head and setting, a column a task."""
    tasks = list(dict.fromkeys((r["task"], r["size"], r["patients"], r["draw"]) for r in rows))
    names = [f"{name}, {size}" for name, size, *_ in tasks]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(tasks)}"]
    drawn = [make_task(t, size=n, patients=p, seed=d) for t, n, p, d in tasks]
    of_oracles = [oracle_aucs(task) for task in drawn]
    for name in of_oracles[0]:
        cells = [f"{aucs[name]:.3f}" for aucs in of_oracles]
        lines.append(f"| oracle: {name} | {' | '.join(cells)} |")
    kinds = dict.fromkeys((r["head"], r["preset"], json.dumps(r["settings"])) for r in rows)
    for head, preset, settings in kinds:
        cells = []
        for task in tasks:
            here = [
                f"{r['auc']:.3f} / {r['training_auc']:.3f}"
                for r in rows
                if (r["head"], r["preset"], json.dumps(r["settings"])) == (head, preset, settings)
                and (r["task"], r["size"], r["patients"], r["draw"]) == task
            ]
            cells.append(here[-1] if here else "")
        said = [head, *([preset] if preset != "cytofm" else [])]
        said += [f"{k}={v}" for k, v in json.loads(settings).items()]
        lines.append(f"| {' '.join(said)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what FILE lacks, or print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(MARKS))
    parser.add_argument("--heads", type=lambda text: text.split(","), default=mil_methods.names())
    parser.add_argument("--size", type=int, default=24, help="instances a bag")
    parser.add_argument("--patients", type=int, default=100, help="each has two bags")
    parser.add_argument("--draw", type=int, default=0, help="seed of the bags")
    parser.add_argument("--preset", default="cytofm")
    parser.add_argument("--set", action="append", default=[], help="setting=value of the head")
    parser.add_argument("--table", action="store_true", help="only print what FILE holds")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.file)))
        return
    rows = read(args.file)
    for run in todo(args):
        if any(all(row[k] == v for k, v in run.items()) for row in rows):
            continue
        task = make_task(run["task"], size=args.size, patients=args.patients, seed=args.draw)
        row = {**run, **judge(task, run["head"], run["preset"], run["settings"])}
        with args.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['task']} {row['head']}: {row['auc']:.3f}, training {row['training_auc']:.3f}")


if __name__ == "__main__":
    main()
