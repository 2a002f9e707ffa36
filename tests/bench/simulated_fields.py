"""Simulated Pap fields in the layout of the real ones, for benchmarks that paste or read fields.

    python tests/bench/simulated_fields.py FOLDER [--fields 90] [--side 1184]

FOLDER gets `images/*.jpg`, `images.csv` (image, group, width, height) and `points.csv` (image, x,
y, label: the marked cells, at their nuclei), as the folder of the CRIC fields has them. As many
fields as there, and as large: 90 of 1.4 megapixels. A group is a batch of stain, g1 to g8.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

from cytofm_cli.api.simulate import simulate_slides
from cytofm_cli.simulate.nuclei import read_nuclei

N_FIELDS, SIDE_PX, N_GROUPS, BATCH = 90, 1184, 8, 8
DEFAULT = Path(__file__).resolve().parents[2] / "build" / "simulated_fields"


def fields_of(given: Path | None, folder: Path = DEFAULT) -> Path:
    """Return the folder that is given with `--fields`, or one of simulated fields, made once."""
    if given is not None:
        return given
    if not (folder / "points.csv").exists():
        print(f"simulating {N_FIELDS} fields into {folder}", flush=True)
        simulate(folder)
    return folder


def simulate(folder: Path, n_fields: int = N_FIELDS, side_px: int = SIDE_PX, seed: int = 0) -> None:
    """Write the fields, one a patient; `points.csv` appears last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        cohort = simulate_slides(
            work, patients=n_fields, slides_per_patient=1, size_px=side_px, format="jpeg",
            seed=seed,
        )  # fmt: skip
        cohort.raise_failures()
        images = folder / "images"
        shutil.rmtree(images, ignore_errors=True)
        shutil.move(Path(work) / "slides", images)
        with (folder / "images.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["image", "group", "width", "height"])
            for number, path in enumerate(sorted(images.iterdir())):
                out.writerow([path.name, f"g{1 + number // BATCH % N_GROUPS}", side_px, side_px])
        with (folder / "points.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["image", "x", "y", "label"])
            for slide, nuclei in read_nuclei(Path(work)).items():
                for (x, y), label, marked in zip(
                    nuclei.xy_px0.tolist(), nuclei.classes, nuclei.marked, strict=True
                ):
                    if marked:
                        out.writerow([f"{slide}.jpg", f"{x:.1f}", f"{y:.1f}", label])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", type=int, default=N_FIELDS)
    parser.add_argument("--side", type=int, default=SIDE_PX)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    simulate(args.folder, args.fields, args.side, args.seed)


if __name__ == "__main__":
    main()
