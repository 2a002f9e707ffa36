"""Small slides with cells whose classes can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pyvips

from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide

MPP = 0.25
RADIUS_PX = 12


@dataclass(frozen=True)
class Smears:
    """Six PNG slides of eight cells, red or blue discs of changing darkness, on white glass."""

    folder: Path
    points: Path
    groups: Path
    stores: Path

    @property
    def slides(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted(self.folder.glob("*.png"))}


@pytest.fixture(scope="session")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Smears:
    root = tmp_path_factory.mktemp("smears")
    rng = np.random.default_rng(0)
    rows, groups = ["image,x,y,label"], ["image,group"]
    y_HW, x_HW = np.mgrid[:256, :384]
    (root / "slides").mkdir()
    for number in range(6):
        pixels = np.full((256, 384, 3), 245, np.uint8)
        for cell in range(8):
            x, y = 48 + 96 * (cell % 4), 64 + 128 * (cell // 4)
            blue = cell % 2
            colour = np.array([60, 60, 60]) + rng.integers(0, 40, 3)
            colour[2 if blue else 0] += 110
            pixels[(x_HW - x) ** 2 + (y_HW - y) ** 2 <= RADIUS_PX**2] = colour
            rows.append(f"s{number}.png,{x + 0.5},{y + 0.5},{'blue' if blue else 'red'}")
        groups.append(f"s{number}.png,g{number // 2}")
        image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
        image.write_to_file(str(root / "slides" / f"s{number}.png"))
    (root / "points.csv").write_text("\n".join(rows) + "\n")
    (root / "groups.csv").write_text("\n".join(groups) + "\n")
    config = TileConfig(tile_px=128, mpp=MPP, pixels="lossless", min_foreground=0.0)
    for path in sorted((root / "slides").glob("*.png")):
        job = TileJob(
            slide_id=path.stem, path=str(path), mpp=MPP, stores=root / "stores", config=config
        )
        tile_slide(job, lambda done, total: None, lambda text: None)
    return Smears(root / "slides", root / "points.csv", root / "groups.csv", root / "stores")
