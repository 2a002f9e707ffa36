"""Write the tables of docs/generate.md from results/*.json.

    python report.py [OUT]

With OUT, the folder of the Makefile, its metrics, those of the uses and some lines of its logs are
kept in results/ first. What is between the two marks of the page is replaced; the words around it
stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = HERE.parents[1] / "docs" / "generate.md"
RESULTS: Final = HERE / "results"
FIRST, TRAIN = "first", "train"
BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
SHARES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)  # of the run, whose lines of the log are shown
LOSSES: Final = {
    "velocity": "velocity", "l1": "L1 (of −1 … 1)", "perceptual": "perceptual",
    "align_vae": "alignment (autoencoder)", "align_sit": "alignment (SiT)",
}  # fmt: skip
OVERLAP: Final = ("precision", "recall", "density", "coverage")
Results = Mapping[str, Any]


def main() -> None:
    """Keep the results, and write the page."""
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n\n" + page(results) + "\n" + END + after)


def collect(out: Path) -> None:
    """Keep the metrics of `generate evaluate`, summaries and some lines of the trainings' logs."""
    RESULTS.mkdir(exist_ok=True)
    for path in sorted(out.glob("*/metrics.json")):
        metrics = json.loads(path.read_text())
        if "spaces" in metrics:  # those of the uses beside it have none
            keep(path.parent.name, metrics)
    for path in sorted((*out.glob("uses/uses.json"), *out.glob("balance-*/balance.json"))):
        keep(path.parent.name, json.loads(path.read_text()))  # of docs/generate-uses.md
    for name, run in ((FIRST, out / "first"), (TRAIN, out / "run")):
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        steps = [round(share * (len(lines) - 1)) for share in SHARES]
        summary = json.loads((run / "summary.json").read_text())
        summary.pop("autoencoder", None)  # where it lay
        keep(name, {"summary": summary, "log": [lines[at] for at in sorted(set(steps))]})


def keep(name: str, result: Results) -> None:
    """Write a file of results/."""
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def page(results: Results) -> str:
    """Return all tables."""
    judged = {n.removeprefix("judged-"): r for n, r in results.items() if n.startswith("judged-")}
    plain, before = judged.get("malaria_nih"), results.get("before")
    runs = {name: of for name, of in results.items() if name.partition("-")[0] in _SAMPLERS}
    if plain:
        runs["sde-50"] = plain  # which is how all but those are sampled
    ema = {"on": before, "off": results.get("no-vae-ema")}
    guided = {"1": plain} | {
        name.partition("-")[2]: of for name, of in results.items() if name.startswith("guidance-")
    }
    sections = [
        "### The losses\n", "Of the first training:\n", losses_table(results.get(FIRST)),
        "Of the second:\n", losses_table(results.get(TRAIN)),
        "### Patients that training has not seen (`make evaluate`)\n", judged_table(judged),
        "### Like what was asked for, and no copy (`make evaluate memory`)\n",
        memory_table({**judged, "malaria_nih, cells of the training": results.get("memory")}),
        "### What JPEG alone does (`make evaluate`)\n", jpeg_table(judged),
        "### Samplers by steps (`make evaluate samplers`)\n",
        runs_table(["sampler, steps"], {n.replace("-", ", "): runs[n] for n in in_order(runs)}),
        "### Guidance, in 0,0.75 (`make evaluate guidance`)\n", runs_table(["guidance"], guided),
        "### What the second training brings (`make before`)\n",
        runs_table(["trained"], {"once": before, "twice": plain}),
        "### The autoencoder's running mean, after the first training (`make before vae_ema`)\n",
        runs_table(["running mean"], ema),
    ]  # fmt: skip
    return "\n".join(sections)


_SAMPLERS: Final = ("euler", "heun", "sde")


def in_order(names: Iterable[str]) -> list[str]:
    """Sort "sampler-steps" by sampler, then by number of steps."""
    return sorted(names, key=lambda name: (name.partition("-")[0], int(name.partition("-")[2])))


def losses_table(train: Results | None) -> str:
    """Return a row a line of the log that was kept: means since the line before it."""
    lines = [] if train is None else train["log"]
    losses = {key: name for key, name in LOSSES.items() if lines and key in lines[0]}
    rows = [[str(line["step"]), *(f"{line[key]:.3f}" for key in losses)] for line in lines]
    return table(["updates", *losses.values()], rows)


def judged_table(judged: Results) -> str:
    """Return the made images, the floor and the autoencoder alone, by collection and space."""
    names = {
        "made": "made", "floor": "real, other slides",
        "autoencoder": "the reference through the autoencoder",
    }  # fmt: skip
    rows = [
        [f"{collection}, {space}, n {of['n']}, {of['dim']} features", word, *overlap(of[key])]
        for collection, space, of in spaces(judged)
        for key, word in names.items()
    ]
    return table(["where", "against the reference", "Fréchet", *OVERLAP], rows)


def memory_table(results: Results) -> str:
    """Return nearest real images and fidelity, by collection, in the space of the condition."""
    rows = []
    for name, _, of in spaces(results):
        if "fidelity" in of:
            near, said = of["memorisation"], of["fidelity"]
            rows.append([
                name, f"{near['nearest_made'][1]:.3f}", f"{near['nearest_real'][1]:.3f}",
                f"{near['copies']:.1%}", f"{said['cosine']:.3f}", f"{said['retrieval']:.1%}",
                f"{said['chance']:.1%}",
            ])  # fmt: skip
    heads = [
        "cells", "nearest real: made", "real, of another slide", "nearer than 99 % of the real",
        "cosine with the condition", "retrieved", "by chance",
    ]  # fmt: skip
    return table(heads, rows)


def jpeg_table(judged: Results) -> str:
    """Return a row a quality, by collection and space."""
    rows = [
        [f"{collection}, {space}", quality, *overlap(by), f"{by['fidelity']['cosine']:.4f}"]
        for collection, space, of in spaces(judged)
        for quality, by in sorted(of["jpeg"].items(), key=lambda item: -int(item[0]))
    ]
    return table(["where", "quality", "Fréchet", *OVERLAP, "cosine with PNG"], rows)


def runs_table(heads: Sequence[str], runs: Mapping[str, Results | None]) -> str:
    """Return a row a RUN: Fréchet in every space; the rest in the space of the condition."""
    names = sorted({space for _, space, _ in spaces(runs)})
    rows = []
    for name, run in runs.items():
        if run is None:
            continue
        own = next(of for of in run["spaces"].values() if "fidelity" in of)
        said = own["fidelity"]
        rows.append([
            name, *(f"{run['spaces'][space]['made']['frechet']:.4g}" for space in names),
            *overlap(own["made"])[1:], f"{said['cosine']:.3f}", f"{said['retrieval']:.1%}",
        ])  # fmt: skip
    distances = [f"Fréchet, {space}" for space in names]
    return table([*heads, *distances, *OVERLAP, "cosine", "retrieved"], rows)


def spaces(results: Mapping[str, Results | None]) -> Iterator[tuple[str, str, Results]]:
    """Yield name, feature space and its measures of each result that is there."""
    for name, result in results.items():
        for space, of in (result or {"spaces": {}})["spaces"].items():
            yield name, space, of


def overlap(of: Results) -> list[str]:
    """Return Fréchet distance, precision, recall, density, coverage."""
    return [f"{of['frechet']:.4g}", *(f"{of[key]:.3f}" for key in OVERLAP)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    if not rows:
        return "Not run yet.\n"
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


if __name__ == "__main__":
    main()
