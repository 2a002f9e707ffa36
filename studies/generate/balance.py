"""Are synthetic cells of a rare class worth something to a classifier of cells?

    python balance.py RUN DATA OUT [--made 160] [--draws 3]

Patients of DATA/pretrain/malaria_nih teach, infected ones of DATA/judged/malaria_nih judge. A draw
takes 1000 cells without parasites and k of the rare ones, with parasites, of all teaching patients;
the generator is asked for cells like these k (and, for one arm, for as many like normal ones). It
may have seen all teaching cells, though no label: as where images are many and labels few.

Arms: few, as they are; with class weights; each rare one repeated; few + made, few + made of both
classes (or what tells a generator's images from photographs would be learnt as the class); and the
control, few + as many more real ones. A linear classifier of one penalty, the same for all.

OUT/balance.json and table.md: AUC and balanced accuracy on judged patients, means over draws; 95 %
from 1000 draws of patients, and of the difference to class weights in the same draws of patients.

Letters: N cells, D features, R draws of patients.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cytofm_cli as cytofm
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.cells.fit import fit_penalised
from cytofm_cli.stats import metrics
from cytofm_cli.store import schema

RARE: Final = "parasitized"
FEW: Final = (5, 20, 80)
NORMAL: Final = 1000
SIDE_UM: Final = 18.0
REPLICATES: Final = 1000
ENCODERS: Final = ("cytofm-tiny", "cytofm-tiny-2", "handcrafted")
REFERENCE: Final = "class weights"
Floats = NDArray[np.float64]


class Cells(NamedTuple):
    """Cells of stores: STORE:NUMBER, patient, whether rare, and features by encoder."""

    word_N: NDArray[np.str_]
    patient_N: NDArray[np.str_]
    rare_N: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]


def embedded(stores: Sequence[Path]) -> Cells:
    """Embed cells of stores by all encoders, and read them."""
    for encoder in ENCODERS:
        done = cytofm.embed(stores, unit="cell", encoder=encoder, cell_um=SIDE_UM)
        done.raise_failures()
    words, patients, rare = [], [], []
    values: dict[str, list[NDArray[np.float32]]] = {encoder: [] for encoder in ENCODERS}
    for path in stores:
        store = cytofm.open_store(path)
        nuclei = store.nuclei()
        labels = [nuclei.classes[number] if nuclei.classes else "" for number in nuclei.class_id]
        words += [f"{path}:{number}" for number in range(len(labels))]
        patients += [path.stem] * len(labels)
        rare += [label == RARE for label in labels]
        for encoder in ENCODERS:
            step = schema.embedding_step(encoder, "cell")
            values[encoder].append(store.read(f"{step}/values"))
    return Cells(
        np.array(words), np.array(patients), np.array(rare, dtype=np.int64),
        {encoder: np.concatenate(parts) for encoder, parts in values.items()},
    )  # fmt: skip


def infected(folder: Path, out: Path) -> list[Path]:
    """Copy the stores of infected patients, whose cells are of both classes: embedding writes."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("P*.zarr")):
        if not (out / path.name).exists():
            others = shutil.ignore_patterns("embeddings")  # of crops of another size
            shutil.copytree(path, out / path.name, ignore=others)
    return sorted(out.glob("*.zarr"))


def made_like(
    run: Path, words: Sequence[str], n: int, out: Path, seed: int, guidance: float
) -> dict[str, NDArray[np.float32]]:
    """Return the features of n synthetic cells, like some cells in turn."""
    report = cytofm.sample_generator(
        run,
        out,
        like=list(words),
        n=n,
        seed=seed,
        steps=30,
        guidance=guidance,
        interval=(0.0, 0.75),
    )
    return embedded([report.store]).values


class Draw(NamedTuple):
    """Cells of one draw, and what was made of them."""

    few: NDArray[np.int64]
    more: NDArray[np.int64]
    normal: NDArray[np.int64]
    rare_made: dict[str, NDArray[np.float32]]
    normal_made: dict[str, NDArray[np.float32]]


def drawn(
    learn: Cells, run: Path, out: Path, k: int, made: int, seed: int, guidance: float
) -> Draw:
    """Draw cells of all patients, and ask the generator for more."""
    rng = np.random.default_rng(seed)
    rare = rng.permutation(np.flatnonzero(learn.rare_N == 1))
    normal = rng.permutation(np.flatnonzero(learn.rare_N == 0))[:NORMAL]
    few, more = rare[:k], rare[k : k + made]
    like = learn.word_N[normal[:made]].tolist()
    return Draw(
        few,
        more,
        normal,
        made_like(
            run, learn.word_N[few].tolist(), made, out / f"rare{k}_draw{seed}", seed, guidance
        ),
        made_like(run, like, made, out / f"normal_draw{seed}", 1000 + seed, guidance),
    )


def arms(learn: Cells, draw: Draw, encoder: str) -> dict[str, tuple[Any, Any, str]]:
    """Return features, classes and weighing of each arm."""
    real, made = learn.values[encoder], draw.rare_made[encoder]
    base = np.concatenate([draw.normal, draw.few])
    repeats = np.concatenate([base, np.resize(draw.few, len(made))])
    more = np.concatenate([base, draw.more])
    of_both = np.concatenate([made, draw.normal_made[encoder]])
    y, rare = learn.rare_N, np.ones(len(made), np.int64)
    both = np.concatenate([rare, np.zeros(len(of_both) - len(made), np.int64)])
    return {
        "as they are": (real[base], y[base], "none"),
        REFERENCE: (real[base], y[base], "balanced"),
        "repeated": (real[repeats], y[repeats], "none"),
        "made": (np.concatenate([real[base], made]), np.concatenate([y[base], rare]), "balanced"),
        "made of both classes": (
            np.concatenate([real[base], of_both]), np.concatenate([y[base], both]), "balanced",
        ),
        "control: real ones": (real[more], y[more], "balanced"),
    }  # fmt: skip


def judged(score_N: Floats, cells: Cells, weight_RN: Floats) -> dict[str, Floats]:
    """Return metrics, the first of all patients, the others of draws of patients."""
    said = (score_N > 0.5).astype(np.int64)
    recall = metrics.recall(cells.rare_N, said, 2, weight_RN)
    spared = metrics.recall(1 - cells.rare_N, 1 - said, 2, weight_RN)
    return {
        "auc": metrics.auc(cells.rare_N, score_N, weight_RN),
        "balanced_accuracy": (recall + spared) / 2,
    }


def patient_draws(patient_N: NDArray[np.str_]) -> Floats:
    """Return how often each cell counts: once, then as often as its patient is drawn."""
    names, number_N = np.unique(patient_N, return_inverse=True)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), REPLICATES)
    counts = np.concatenate([np.ones((1, len(names)), np.int64), counts])
    return counts[:, number_N].astype(np.float64)


def interval(value_R: Floats) -> list[float]:
    """Return the value of all patients, and 95 %."""
    low, high = np.quantile(value_R[1:], [0.025, 0.975])
    return [round(float(x), 4) for x in (value_R[0], low, high)]


def study(options: argparse.Namespace) -> dict[str, Any]:
    """Fit all arms of all draws."""
    where, out = options.data, options.out
    learn = embedded(infected(where / "pretrain" / "malaria_nih", out / "learn"))
    judge = embedded(infected(where / "judged" / "malaria_nih", out / "judge"))
    weight_RN = patient_draws(judge.patient_N)
    results: dict[str, Any] = {}
    for k in FEW:
        draws = [
            drawn(learn, options.run, out / "made", k, options.made, seed, options.guidance)
            for seed in range(options.draws)
        ]
        for encoder in ENCODERS:
            sums: dict[str, dict[str, Floats]] = {}
            for draw in draws:
                for arm, (x_ND, y_N, weighing) in arms(learn, draw, encoder).items():
                    config = CellsConfig(class_weights=weighing, penalty=options.penalty)
                    model = fit_penalised(config, x_ND, y_N, 2, options.penalty)
                    p_N = model.answer(judge.values[encoder]).probabilities()[:, 1]
                    for name, value_R in judged(p_N, judge, weight_RN).items():
                        so_far = sums.setdefault(arm, {}).get(name, 0.0)
                        sums[arm][name] = so_far + value_R / options.draws
            results[f"{k} {encoder}"] = {
                arm: {name: interval(value_R) for name, value_R in of.items()}
                | {f"{name}_less": interval(of[name] - sums[REFERENCE][name]) for name in of}
                for arm, of in sums.items()
            }
            print(k, encoder, json.dumps(results[f"{k} {encoder}"], indent=1), flush=True)
    facts = {"patients": len(np.unique(judge.patient_N)), "cells": len(judge.rare_N)}
    facts |= {"made": options.made, "draws": options.draws, "penalty": options.penalty}
    facts |= {"guidance": options.guidance}
    return {"facts": facts, "results": results}


def table(results: dict[str, Any]) -> str:
    """Return a table of Markdown."""
    lines = [
        "| rare cells | encoder | arm | AUC | less class weights | balanced accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for key, of in results.items():
        k, encoder = key.split(" ", 1)
        for arm, said in of.items():
            auc, less, balanced = (
                f"{said[name][0]:{sign}.3f} [{said[name][1]:{sign}.3f}, {said[name][2]:{sign}.3f}]"
                for name, sign in (("auc", ""), ("auc_less", "+"), ("balanced_accuracy", ""))
            )
            shown = "–" if arm == REFERENCE else less
            lines.append(f"| {k} | {encoder} | {arm} | {auc} | {shown} | {balanced} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--made", type=int, default=160)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--penalty", type=float, default=1e-3)
    options = parser.parse_args()
    said = study(options)
    (options.out / "balance.json").write_text(json.dumps(said, indent=1) + "\n")
    (options.out / "table.md").write_text(table(said["results"]))


if __name__ == "__main__":
    main()
