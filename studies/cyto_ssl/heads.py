"""Train every head on every encoder's bags, question (c); a file a task in results/heads/.

    python heads.py [--only TASK ...]

Tasks: bags of malaria cells that differ by one or two of 24 cells, beside the same bags without
those (control: no signal), and Pap fields with a lesion of low grade or worse, beside the colours
of their cells alone (control: no shapes). Runs that are there are not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from arms import STUDY
from data import read, write
from judge import CROP_UM, JUDGED, Encoder, encoders
from places import COLLECTIONS, RESULTS, WORK, cytofm

from cytofm_cli.store.io import open_store
from cytofm_cli.store.schema import TILE_PIXELS

ASKED: Final[dict[str, Any]] = STUDY["heads"]
RATES: Final[dict[str, float]] = STUDY["rates"]
FOLDER: Final = RESULTS / "heads"
COLOUR: Final = "colour"  # of cells: the control of the fields


def chosen() -> list[Encoder]:
    """Return the encoders that are compared, as far as they are there."""
    return [
        encoder
        for encoder in encoders()
        if encoder.about["arm"] in ASKED["arms"]
        and encoder.about.get("seed", 0) == 0
        and encoder.about.get("budget", 1) == 1
    ]


def embed(encoder: Encoder, collection: str, log: Path) -> None:
    """Store the cells of a collection; what is there stays."""
    words = ["embed", JUDGED / collection, "--unit", "cell", "--cell-um", CROP_UM[collection]]
    cytofm([*words, *encoder.words, "--threads", 1, "--quiet"], log)


def needle(task: str) -> Iterator[list[object]]:
    """Yield the words for `mil benchmark` of bags of malaria cells."""
    yield ["--bags", JUDGED / "malaria_nih", "--bag-table", JUDGED / f"{task}_bags.csv",
           "--labels", JUDGED / f"needle{task[-1]}_labels.csv", "--unit", "cell"]  # fmt: skip


def field_labels() -> Path:
    """Write which of the judged fields has a lesion."""
    there = {path.stem for path in (JUDGED / "cric").glob("*.zarr")}
    rows = [
        {"slide_id": Path(row["image"]).stem, "label": row["lsil_plus"], "group": row["group"]}
        for row in read(COLLECTIONS / "cric" / "images.csv")
        if Path(row["image"]).stem in there
    ]
    path = WORK / "heads" / "lsil_plus_labels.csv"
    write(path, rows, ("slide_id", "label", "group"))
    return path


def colours() -> Path:
    """Write a bag a field that holds, a tile each, mean and deviation of red, green and blue."""
    folder = WORK / "heads" / COLOUR
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((JUDGED / "cric").glob("*.zarr")):
        store = open_store(path)
        tile_NHWC = store.read(TILE_PIXELS.path).astype(np.float32) / 255
        features = np.concatenate([tile_NHWC.mean((1, 2)), tile_NHWC.std((1, 2))], axis=1)
        with h5py.File(folder / f"{path.stem}.h5", "w") as file:
            file["features"] = features
            file["coords"] = store.tile_xy_px0
    return folder


def benchmark(task: str, words: Sequence[object], encoder_names: Sequence[str]) -> None:
    """Run every head on a task and write, by encoder and head, the AUC with its interval."""
    log = WORK / "heads" / f"{task}.log"
    names = ["--encoder", ",".join(encoder_names)] if encoder_names else []
    table: dict[str, dict[str, Any]] = {}
    for rate in sorted(set(RATES.values())):
        methods = [method for method in ASKED["methods"] if RATES[method] == rate]
        out = WORK / "heads" / task / f"lr-{rate:g}"
        cytofm(["mil", "benchmark", *words, *names, "--method", ",".join(methods), "--lr", rate,
                "--seeds", ASKED["seeds"], "--workers", 1, "-o", out, "--quiet"], log)  # fmt: skip
        for path in sorted((out / "runs").glob("*/metrics.json")):
            run = json.loads(path.read_text())
            auc = {key: run["auc"][key] for key in ("value", "low", "high")}
            table.setdefault(run["encoder"] or COLOUR, {})[run["method"]] = auc
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{task}.json").write_text(json.dumps(table, indent=1) + "\n")
    print(task, flush=True)


def main() -> None:
    """Go through the tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of tasks")
    only = parser.parse_args().only
    there = chosen()
    stored = [encoder.stored for encoder in there]
    for collection in ("malaria_nih", "cric"):
        for encoder in there:
            embed(encoder, collection, WORK / "heads" / "embed.log")
    fields = ["--labels", field_labels(), "--folds", 3]  # of four groups one has lesions alone
    tasks = {task: (*needle(task), stored) for task in ASKED["bags"]}
    tasks["lsil_plus"] = (["--bags", JUDGED / "cric", "--unit", "cell", *fields], stored)
    tasks["lsil_plus-colour"] = (["--bags", colours(), *fields], [])
    for task, (words, names) in tasks.items():
        if not only or task in only:
            benchmark(task, words, names)


if __name__ == "__main__":
    main()
