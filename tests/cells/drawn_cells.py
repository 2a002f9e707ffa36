"""Small stores of cells whose classes can be seen, and labels of some of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.run import Embedder, EmbedJob
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.run import Detection, DetectJob
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide

MPP = 0.25
COLOURS = {"NILM": (110, 60, 90), "LSIL": (60, 60, 150), "HSIL": (40, 110, 60)}
QUIET = (lambda *_: None, lambda _: None)
CROP = 16.0
HOW: dict[str, Any] = {
    "encoder": "handcrafted", "crop_um": CROP, "replicates": 100, "folds": 2, "penalty": 0.1
}  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """Five slides of nine dark discs of three colours; those of four are labelled.

    Attributes:
        stores: folder; tiles and nuclei.
        labels: table of points with groups: two slides a group.
        truth: class of each disc, by slide, row by row.
    """

    stores: Path
    labels: Path
    truth: dict[str, list[str]]

    @property
    def paths(self) -> list[Path]:
        return sorted(self.stores.glob("*.zarr"))


def draw(path: Path, classes: list[str], rng: np.random.Generator) -> None:
    y_HW, x_HW = np.mgrid[:240, :240]
    pixels = np.full((240, 240, 3), (235, 232, 238), float)
    for number, name in enumerate(classes):
        x, y = 40 + 80 * (number % 3), 40 + 80 * (number // 3)
        colour = np.array(COLOURS[name]) + rng.integers(-34, 34, 3)
        pixels[(x_HW - x) ** 2 + (y_HW - y) ** 2 <= 16**2] = colour
    pixels += rng.normal(0, 2, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def make_cohort(root: Path) -> Cohort:
    """Draw, tile and detect."""
    rng = np.random.default_rng(0)
    rows, truth, names = ["slide_id,x,y,label,group"], {}, list(COLOURS)
    config = TileConfig(tile_px=120, mpp=MPP, slide_mpp=MPP, foreground="none")
    for number in range(5):
        slide = f"s{number}"
        truth[slide] = [names[i] for i in rng.permutation(np.arange(9) % 3)]
        draw(root / f"{slide}.png", truth[slide], rng)
        for i, name in enumerate(truth[slide] if number < 4 else []):
            rows.append(f"{slide},{40 + 80 * (i % 3)},{40 + 80 * (i // 3)},{name},g{number // 2}")
        job = {"slide_id": slide, "path": str(root / f"{slide}.png"), "stores": root / "stores"}
        tile_slide(TileJob(**job, config=config, mpp=None), *QUIET)
        path = str(root / "stores" / f"{slide}.zarr")
        Detection().detect(DetectJob(slide_id=slide, path=path, config=DetectConfig()), *QUIET)
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return Cohort(root / "stores", root / "labels.csv", truth)


def embed_cells(path: Path, **settings: object) -> None:
    """Embed the nuclei of a store by hand-made features."""
    config = EmbedConfig(encoder="handcrafted", unit="cell", **settings)  # type: ignore[arg-type]
    job = EmbedJob(slide_id=path.stem, path=str(path), store=path, config=config)
    Embedder().embed(job, *QUIET)


def train(cohort: Cohort, out: Path, **more: Any):
    return cytofm.train_cells(cohort.stores, cohort.labels, out, **(HOW | more))
