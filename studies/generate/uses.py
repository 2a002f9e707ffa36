"""Do pictures follow moved conditions, and does another stain cost structure?

    python uses.py RUN DATA OUT

Strips: of each of the first infected patients of DATA/judged/malaria_nih, by name, the first cell
without and the first with parasites, none picked, moved by a linear classifier of the patients of
DATA/pretrain/malaria_nih (of the encoder that the generator is told by), with another one of
hand-made features as judge of the pictures. Ways: pattern and gradient, from noise and from the
cell itself. 95 % from 1000 draws of patients.

Restained: cells of the first judged patients in the stain of the next one (`--nucleus dark`), and
of blocks of DATA/judged/sipakmed in that of the next block of the same class (the detector's
nucleus), without guidance and with CytoSyn's. Means over pairs of slides, and their range.

OUT/uses.json, uses.md, and strips.jpg: the first strips without the photographs they begin with,
which is docs/generate-strips.jpg.
"""

from __future__ import annotations

import argparse
import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.generate.counterfactual import followed
from cytofm_cli.generate.file import read_generator
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.pictures.files import jpeg_bytes
from cytofm_cli.pictures.sheet import grid
from cytofm_cli.pictures.strip import captioned, enlarged

RARE: Final = "parasitized"
PATIENTS: Final = 8
CELLS: Final = 8
# Along what, from which strength, under which guidance.
WAYS: Final = (
    ("pattern", 1.0, 1.0), ("gradient", 1.0, 1.0), ("pattern", 0.6, 1.0), ("gradient", 0.6, 1.0),
    ("pattern", 1.0, 2.5), ("gradient", 1.0, 2.5), ("pattern", 0.6, 2.5), ("gradient", 0.6, 2.5),
)  # fmt: skip
STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
GUIDANCES: Final = (1.0, 2.5)  # of restained cells


def first_cells(store: Path) -> list[str]:
    """Return STORE:NUMBER of the first cell without and the first with parasites."""
    nuclei = cytofm.open_store(store).nuclei()
    names = [nuclei.classes[number] for number in nuclei.class_id]
    return [f"{store}:{names.index(name)}" for name in ("uninfected", RARE)]


def classifiers(told: str, data: Path, out: Path) -> list[Path]:
    """Train the classifier that moves conditions, of the encoder `told`, and the judge."""
    learn = sorted((data / "pretrain" / "malaria_nih").glob("P*.zarr"))
    runs = []
    for encoder in (told, "handcrafted"):
        run = cytofm.train_cells(learn, None, out / f"cells-{encoder}", encoder=encoder,
                                 crop_um=18.0, folds=3)  # fmt: skip
        runs.append(run.path)
    return runs


def strips(generator: Path, data: Path, out: Path) -> dict[str, Any]:
    """Make strips by all ways, and say how far their pictures followed."""
    told = str(read_generator(generator_of(generator)).about["encoder"])
    score, judge = classifiers(told, data, out)
    patients = sorted((data / "judged" / "malaria_nih").glob("P*.zarr"))[:PATIENTS]
    like = [word for store in patients for word in first_cells(store)]
    said = {}
    for along, strength, guidance in WAYS:
        report = cytofm.make_counterfactual(
            generator, score, out / f"strips-{along}-{strength:g}-{guidance:g}", like=like,
            judge=judge, guidance=guidance,
            real=sorted((data / "pretrain" / "malaria_nih").glob("P*.zarr")),
            along=along, strength=strength, frames=5, steps=30, real_cells=300,
        )  # fmt: skip
        lines = (report.path / "scores.csv").read_text().splitlines()
        rows = list(csv.DictReader(lines))
        p_judge = np.array([float(row["p_judge"]) for row in rows]).clip(1e-6, 1 - 1e-6)
        odds = {
            "asked": np.array([float(row["log_odds_condition"]) for row in rows]),
            "shown": np.array([float(row["log_odds_image"]) for row in rows]),
            "judged": np.log(p_judge / (1 - p_judge)),
        }
        frames = {name: values.reshape(len(like), -1) for name, values in odds.items()}
        said[f"{along}, strength {strength:g}, guidance {guidance:g}"] = {
            "own": slope_of(frames["asked"], frames["shown"]),
            "judge": slope_of(frames["asked"], frames["judged"]),
            "moved_last": report.metrics["moved_last"],
            "cosine": [report.metrics["cosine_first"], report.metrics["cosine_last"]],
            "odds": report.metrics["followed"],
        }
        print(said, flush=True)
    return said


def slope_of(asked: Any, shown: Any) -> list[float]:
    """Return the slope, and 95 % over patients, each of whom has two strips."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(asked) // 2, (1000, len(asked) // 2))
    slopes = []
    for draw in draws:
        strips_R = np.concatenate([2 * draw, 2 * draw + 1])
        slopes.append(followed(asked[strips_R], shown[strips_R])["slope"])
    low, high = np.quantile(slopes, [0.025, 0.975])
    whole = followed(asked, shown)["slope"] or 0.0
    return [round(float(x), 4) for x in (whole, low, high)]


def picture(folder: Path, rows: int) -> bytes:
    """Return the first strips of a folder, synthetic frames alone, with their scores."""
    lines = (folder / "scores.csv").read_text().splitlines()
    frames = [
        captioned(
            enlarged(np.asarray(Image.open(folder / row["file"])), 96),
            [f"asked {float(row['p_condition']):.2f}", f"picture {float(row['p_image']):.2f}"],
        )
        for row in csv.DictReader(lines)
    ]
    return jpeg_bytes(grid(frames[: 5 * rows], 5))


def restained(generator: Path, data: Path, out: Path) -> dict[str, Any]:
    """Draw cells in the stains of other slides."""
    patients = sorted((data / "judged" / "malaria_nih").glob("P*.zarr"))
    blocks = sorted((data / "judged" / "sipakmed").glob("*.zarr"))
    alike = [pair for pair in pairwise(blocks) if pair[0].name[:3] == pair[1].name[:3]]
    said = {}
    for name, pairs, nucleus in (
        ("malaria", list(pairwise(patients))[:8:2], "dark"),
        ("sipakmed", alike[:8:2], "detector"),
    ):
        for guidance in GUIDANCES:
            said[f"{name}, guidance {guidance:g}"] = restained_pairs(
                generator, pairs, nucleus, guidance, out
            )
            print(said, flush=True)
    return said


def restained_pairs(
    generator: Path, pairs: list[tuple[Path, Path]], nucleus: str, guidance: float, out: Path
) -> dict[str, Any]:
    """Draw cells of the first of each pair in the stain of the second."""
    all_metrics = [
        cytofm.restain_cells(
            generator, stain, out / f"restained-{own.stem}-{stain.stem}-{guidance:g}",
            like=[str(own)], n=CELLS, strength=STRENGTHS, nucleus=nucleus, steps=30,
            real_cells=100, guidance=guidance,
        ).metrics
        for own, stain in pairs
    ]  # fmt: skip
    return {
        "pairs": [f"{own.stem} in {stain.stem}" for own, stain in pairs],
        "with_nucleus": sum(of["with_nucleus"] for of in all_metrics),
        "floor": over([of["floor"] for of in all_metrics]),
        "rows": {
            how: {
                key: over([of["rows"][how][key] for of in all_metrics])
                for key in ("dice", "lost", "colour")
            }
            for how in all_metrics[0]["rows"]
        },
    }


def over(values: list[float | None]) -> list[float]:
    """Return mean, least and most of what there is."""
    known = [value for value in values if value is not None]
    return [round(float(of(known)), 3) for of in (np.mean, np.min, np.max)]


def tables(said: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    lines = [
        "| way | slope, own encoder | slope, judge | moved | cosine, first and last |",
        "|---|---|---|---|---|",
    ]
    for name, of in said["strips"].items():
        own, judge = (f"{s[0]:.3f} [{s[1]:.3f}, {s[2]:.3f}]" for s in (of["own"], of["judge"]))
        first, last = of["cosine"]
        lines.append(
            f"| {name} | {own} | {judge} | {of['moved_last']:.2f} | {first:.3f}, {last:.3f} |"
        )
    for name, of in said["restained"].items():
        lines += ["", f"{name}: {', '.join(of['pairs'])}; floor {of['floor'][0]:.2f}", ""]
        lines += ["| how | Dice | lost | colours |", "|---|---|---|---|"]
        for how, row in of["rows"].items():
            cells = [f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in row.values()]
            lines.append(f"| {how} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    of = (options.run, options.data, options.out)
    said = {"strips": strips(*of), "restained": restained(*of)}
    strip = picture(options.out / "strips-pattern-1-1", PATIENTS)
    (options.out / "strips.jpg").write_bytes(strip)
    (options.out / "uses.json").write_text(json.dumps(said, indent=1) + "\n")
    (options.out / "uses.md").write_text(tables(said))


if __name__ == "__main__":
    main()
