"""Classes of cells of patients held out: encoders × linear, hidden layer, k-NN, low-rank updates.

    python tests/bench/bench_cell_classes.py WORK --data JUDGED

JUDGED holds, for each set, stores `<set>/*.zarr` and `<set>.csv` (slide_id,x,y,label,group), as
`studies/cyto_ssl/data.py` makes them by `cytofm tile --cells`. WORK/<set>/<encoder>-<model> are
RUNs of `cytofm cells train`: what is finished is not done again. The table is printed, and
written to WORK/table.md, of all that is finished.

The same cells, groups and folds for all. Cells are subsampled (`--most` of a class in a group),
and so are those of an epoch of low-rank updates (`--epoch-cells`), which is what costs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import cytofm_cli as cytofm
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.cells.plan import make_plan
from cytofm_cli.evaluate import probe
from cytofm_cli.evaluate.choice import choose
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.run import features_of
from cytofm_cli.stats import metrics
from cytofm_cli.stats.score_intervals import macro_auc_interval, recall_interval, retraining


@dataclass(frozen=True)
class Collection:
    """Cells that are judged.

    Attributes:
        name: of stores and table.
        folds: of whole groups.
        settings: of `cells train`, beside.
    """

    name: str
    folds: int
    settings: dict[str, Any]


SETS = (
    Collection("malaria_nih", 3, {}),
    Collection("sipakmed", 3, {}),
    Collection("cric", 4, {"task": "abnormal"}),
)
ENCODERS = ("handcrafted", "cytofm-tiny", "random")
# Of one-class: learnt from normal cells alone, by the distance in its settings.
ONE_CLASS = {"one-class": {}, "one-class-knn": {"distance": "knn"}}
MODELS = ("linear", "mlp", "knn", "lora", *ONE_CLASS)
NORMAL = {"malaria_nih": ("uninfected",), "cric": ("NILM",)}
K = 20


def some_points(data: Path, work: Path, name: str, most: int) -> Path:
    """Write a table of the first cells of each class in each group."""
    seen: Counter[tuple[str, str]] = Counter()
    with (data / f"{name}.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kept = []
    for row in rows:
        seen[row["group"], row["label"]] += 1
        if seen[row["group"], row["label"]] <= most:
            kept.append(row)
    path = work / name / "points.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    return path


def judge(of: Collection, encoder: str, model: str, points: Path, args: Any) -> dict[str, Any]:
    """Train and judge one; return its line of the table."""
    out = args.work / of.name / f"{encoder}-{model}"
    kept = out / "line.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    share_features(args.work / of.name, encoder, out)
    stores, began = args.data / of.name, time.process_time()
    settings: dict[str, Any] = {"folds": of.folds, "device": args.device, **of.settings}
    name = "sr-vit-nano" if encoder == "random" else encoder
    if model == "knn":
        line = nearest(of, name, points, stores, settings, args)
    else:
        more: dict[str, dict[str, Any]] = {
            "lora": {
                "epochs": args.epochs,
                "epoch_cells": args.epoch_cells,
                "threads": args.threads,
            }
        }
        if model in ONE_CLASS:
            settings.pop("task", None)
            more[model] = {"normal": NORMAL[of.name], **ONE_CLASS[model]}
        report = cytofm.train_cells(
            stores,
            points,
            out,
            encoder=name,
            random_weights=encoder == "random",
            model="one-class" if model in ONE_CLASS else model,
            **settings,
            **more.get(model, {}),
        )
        line = {key: report.metrics[key] for key in ("auc", "balanced_accuracy", "instances")}
        line |= {"groups": report.metrics["groups"], "epochs": report.metrics.get("epochs")}
        if model in ONE_CLASS:
            line["within"] = within(out / "predictions.csv")
    line["cpu_s"] = round(time.process_time() - began, 1)
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(line))
    return line


def within(predictions: Path) -> dict[str, float]:
    """Return the mean over groups of the AUC of the score among a group's own cells.

    95 % by t over the groups that have both kinds.
    """
    of_group: dict[str, list[tuple[int, float]]] = {}
    with predictions.open(newline="") as stream:
        for row in csv.DictReader(stream):
            cell = (int(row["label"] != "normal"), float(row["score"]))
            of_group.setdefault(row["group"], []).append(cell)
    aucs = [
        float(metrics.auc(np.array(y_N), np.array(score_N)))
        for y_N, score_N in (zip(*cells, strict=True) for cells in of_group.values())
        if len(set(y_N)) == 2
    ]
    mean, half = float(np.mean(aucs)), float(stats.sem(aucs) * stats.t.ppf(0.975, len(aucs) - 1))
    return {"value": mean, "low": mean - half, "high": mean + half, "groups": len(aucs)}


def share_features(folder: Path, encoder: str, out: Path) -> None:
    """Give a RUN the features that another one of the encoder has computed."""
    (out / "features").mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{encoder}-*/features/*.safetensors"):
        if not path.name.startswith("lora-") and not (out / "features" / path.name).exists():
            shutil.copy(path, out / "features")


def nearest(
    of: Collection,
    name: str,
    points: Path,
    stores: Path,
    settings: dict[str, Any],
    args: Any,
) -> dict[str, Any]:
    """Judge k nearest neighbours on the features and folds of the linear classifier."""
    random = name == "sr-vit-nano"
    (choice,) = choose([name], weights=None, random_weights=random, seed=0)
    sources = [Source(path.stem, str(path)) for path in sorted(stores.glob("*.zarr"))]
    plan = make_plan(CellsConfig(**settings), sources, points, choice)
    encoder = "random" if random else name
    kept = args.work / of.name / f"{encoder}-knn" / "features"
    x_ND, _ = features_of(plan.crops, choice, kept, lambda *_: None, lambda _: None)
    x_ND, y_N = x_ND[plan.task.rows_N], plan.task.y_N
    said = probe.out_of_fold(x_ND, y_N, plan.group_N, plan.fold_N, probe.knn((K,)))
    (p_NC,) = said.values()
    how: dict[str, Any] = {"retrained": retraining(plan.n_folds)}
    groups, n_classes = plan.points.groups, len(plan.task.classes)
    hit = recall_interval(y_N, p_NC.argmax(1), groups, n_classes, **how)
    return {
        "auc": macro_auc_interval(y_N, p_NC, groups, **how).record(),
        "balanced_accuracy": hit.record(),
        "instances": len(y_N),
        "groups": len(np.unique(plan.group_N)),
        "epochs": None,
    }


def table(args: argparse.Namespace) -> str:
    """Return two tables of all that is finished, as Markdown: of classes, and of one class."""
    learnt = [model for model in MODELS if model not in ONE_CLASS]
    head = ("set", "encoder", *learnt)
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    head = ("set", "encoder", "distance", "AUC of all cells", "AUC within groups")
    alone = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for of, encoder in itertools.product(SETS, ENCODERS):
        lines = {model: finished(args.work, of.name, encoder, model) for model in MODELS}
        cells = [cell(lines[model]) for model in learnt]
        rows.append(f"| {of.name} | {encoder} | {' | '.join(cells)} |")
        for model, settings in ONE_CLASS.items():
            line = lines[model]
            if line is not None:
                inner = f"{text(line['within'])}, {line['within']['groups']} groups"
                words = (of.name, encoder, settings.get("distance", "mahalanobis"))
                alone.append(f"| {' | '.join((*words, text(line['auc']), inner))} |")
    return "\n".join([*rows, "", *alone]) + "\n"


def finished(work: Path, name: str, encoder: str, model: str) -> dict[str, Any] | None:
    """Read a line; None: not done."""
    path = work / name / f"{encoder}-{model}" / "line.json"
    return json.loads(path.read_text()) if path.is_file() else None


def cell(line: dict[str, Any] | None) -> str:
    """Write AUC and balanced accuracy."""
    if line is None:
        return "–"
    epochs = f" (epochs {', '.join(map(str, line['epochs'][:-1]))})" if line["epochs"] else ""
    return f"{text(line['auc'])}; {line['balanced_accuracy']['value']:.3f}{epochs}"


def text(of: dict[str, float | None]) -> str:
    """Write an estimate with its interval."""
    return f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def main() -> None:
    """Train and judge all that is not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=[of.name for of in SETS])
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--most", type=int, default=12, help="cells of a class in a group, malaria")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--epoch-cells", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1, help="folds side by side, of lora")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    for of in SETS:
        if of.name not in args.sets:
            continue
        most = args.most if of.name == "malaria_nih" else 10**9
        points = some_points(args.data, args.work, of.name, most)
        for model in args.models:
            for encoder in args.encoders:
                if (model == "lora" and encoder != "cytofm-tiny") or (
                    model in ONE_CLASS and of.name not in NORMAL
                ):
                    continue
                line = judge(of, encoder, model, points, args)
                print(of.name, encoder, model, text(line["auc"]), line["cpu_s"], flush=True)
    done = table(args)
    (args.work / "table.md").write_text(done)
    print(done)


if __name__ == "__main__":
    main()
