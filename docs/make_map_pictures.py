"""Draw the pictures of docs/attention.md and docs/heatmaps.md, on simulated slides.

    python docs/make_map_pictures.py WORK

Simulates a cohort into WORK (what is there already stays), trains a head on its cells, and writes
docs/attention-heads.png, docs/heatmap-cells.jpg and docs/heatmap-tiles.jpg.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image

import cytofm_cli as cytofm

HERE = Path(__file__).parent
SLIDE = "p1_s2"
QUICK = {"folds": 2, "inner_folds": 2, "seeds": 1, "epochs": 10}


def main() -> None:
    work = Path(sys.argv[1])
    cytofm.simulate_slides(
        work / "cohort", patients=6, slides_per_patient=2, size_px=1200, format="jpeg"
    )
    cytofm.run(work / "cohort" / "slides", work / "out")
    stores, labels = work / "out" / "stores", work / "cohort" / "labels.csv"
    cytofm.embed(stores, encoder="handcrafted")
    cytofm.attention(stores, work / "attention", images=10, shown=2, control=True)
    shutil.copy(work / "attention" / "heads.png", HERE / "attention-heads.png")
    for unit, method, what in (("cell", "abmil", "attention"), ("tile", "dsmil", "score")):
        encoder = "cytofm-tiny" if unit == "cell" else "handcrafted"
        run, maps = work / f"run-{unit}", work / f"maps-{unit}"
        cytofm.train(stores, labels, run, unit=unit, encoder=encoder, method=method, **QUICK)
        slide = stores / f"{SLIDE}.zarr"
        cytofm.heatmap(run, slide, maps, what=what, to=("png",), overwrite=True)
        with Image.open(maps / f"{SLIDE}.png") as picture:
            small = picture.resize((820, round(picture.height * 820 / picture.width)))
            small.save(HERE / f"heatmap-{unit}s.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    main()
