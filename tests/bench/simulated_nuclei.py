"""Simulated slides with the outlines of their nuclei: every preset, and giant nuclei.

`giant` is the Pap preset with nuclei of abnormal cells four times as large (twice as wide: 15 to
35 µm), and cells to hold them. Cohorts are made once for each version of the pictures, into
`build/simulated_nuclei`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from cytofm_cli.api.simulate import simulate_slides
from cytofm_cli.simulate.config import VERSION
from cytofm_cli.simulate.preset import FOLDER as PRESET_FILES

FOLDER = Path(__file__).resolve().parents[2] / "build" / "simulated_nuclei"
PRESETS = ("pap", "lbc", "giemsa", "blood", "fluorescence", "giant")
N_SLIDES, SIDE_PX, ABNORMAL = 4, 2048, 0.6
GIANT, GIANT_CELL = 4.0, 3.0
ABNORMAL_KINDS = ("ascus", "lsil", "koilocyte", "asch", "hsil", "scc", "scc-round")


@dataclass(frozen=True)
class Slide:
    """One slide and its nuclei.

    Attributes:
        image: uint8 (H, W, 3), at `mpp`.
        mpp: µm/px.
        rings: outline of each nucleus, (k, 2) px; lobes of one cell are nuclei of their own.
        classes: class of the cell of each.
        marked: False for cells that are not classified.
        cell: number of the cell.
    """

    image: np.ndarray
    mpp: float
    rings: list[np.ndarray]
    classes: list[str]
    marked: np.ndarray
    cell: np.ndarray


def cohort(preset: str, seed: int = 0, n_slides: int = N_SLIDES) -> Path:
    """Return the folder of a cohort, half of its slides positive, made if it is not there."""
    folder = FOLDER / f"v{VERSION}" / f"{preset}-{seed}-{n_slides}"
    if not (folder / "simulate.json").exists():
        name = str(giant_preset(folder.parent)) if preset == "giant" else preset
        simulate_slides(
            folder, preset=name, patients=n_slides, slides_per_patient=1, size_px=SIDE_PX,
            abnormal_share=ABNORMAL, format="png", seed=seed,
        ).raise_failures()  # fmt: skip
    return folder


def giant_preset(folder: Path) -> Path:
    """Write the preset `giant`."""
    text, kind = [], ""
    for line in (PRESET_FILES / "pap.toml").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\[kinds\.([\w-]+)", line):
            kind = match[1]
        of_nucleus = line.startswith("nucleus")
        if kind in ABNORMAL_KINDS and (of_nucleus or line.startswith("area_um2")):
            median = float(re.search(r"median = ([\d.]+)", line)[1])
            median *= GIANT if of_nucleus else GIANT_CELL
            text.append(re.sub(r"median = [\d.]+", f"median = {median:g}", line, count=1))
        else:
            text.append(line)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "giant.toml"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def slides(preset: str, seed: int = 0, n_slides: int = N_SLIDES) -> Iterator[Slide]:
    """Read the slides of a cohort."""
    folder = cohort(preset, seed, n_slides)
    mpp = orjson.loads((folder / "simulate.json").read_bytes())["mpp"]
    for path in sorted((folder / "slides").glob("*.png")):
        yield _read(path, folder / "truth" / f"{path.stem}.geojson", mpp)


def _read(picture: Path, truth: Path, mpp: float) -> Slide:
    cells_csv = truth.parent.parent / "cells.csv"
    with cells_csv.open(newline="", encoding="utf-8") as file:
        of_slide = [row for row in csv.DictReader(file) if row["slide_id"] == truth.stem]
    own = {int(row["cell"]) for row in of_slide if row["marked"] == "1"}
    rings, classes, cells = [], [], []
    for feature in orjson.loads(truth.read_bytes())["features"]:
        of = feature["properties"]
        geometry = feature.get("nucleusGeometry")
        if geometry is None:
            if of["objectType"] != "detection":  # a cell without a nucleus
                continue
            geometry = feature["geometry"]
        polygons = geometry["coordinates"]
        for polygon in [polygons] if geometry["type"] == "Polygon" else polygons:
            rings.append(np.array(polygon[0]))
            classes.append(of["classification"]["name"])
            cells.append(int(of["measurements"]["Cell"]))
    image = np.asarray(Image.open(picture).convert("RGB"))
    marked = np.array([cell in own for cell in cells], bool)
    return Slide(image, mpp, rings, classes, marked, np.array(cells, np.int64))
