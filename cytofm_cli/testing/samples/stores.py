"""A small store, with tiles, nuclei and embeddings of both, made by the steps themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.run import Embedder, EmbedJob
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.run import Detection, DetectJob
from cytofm_cli.store.io import Store, open_store, store_path
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide


def write_slide(path: Path, *, width: int = 256, height: int = 128) -> Path:
    """Draw twelve dark nuclei of 3 to 4 µm radius on pale ground, at 0.25 µm/px."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width] + 0.5
    picture = np.full((height, width, 3), 228.0)
    for cy in np.arange(32, height, 40):
        for cx in np.arange(32, width - 20, 40):
            distance = np.hypot(x - cx, y - cy) - rng.uniform(12, 16)
            soft = 1 / (1 + np.exp(distance / 1.2))
            picture += soft[..., None] * (np.array([80, 60, 120]) - picture)
    Image.fromarray(picture.astype(np.uint8)).save(path)
    return path


def make_store(folder: Path, slide: Path | None = None) -> Store:
    """Tile a slide, find its nuclei, and embed tiles and cells with the hand-made features.

    Args:
        folder: for the store.
        slide: which; None: one is drawn.
    """
    slide = slide or write_slide(folder / "sample.png")
    config = TileConfig(tile_px=128, mpp=0.25, slide_mpp=0.25, foreground="none")
    job = TileJob(
        slide_id=slide.stem, path=str(slide), mpp=None, stores=folder / "stores", config=config
    )
    tile_slide(job, _quiet, _say_nothing)
    path = store_path(folder / "stores", slide.stem)
    nuclei = DetectJob(slide_id=slide.stem, path=str(path), config=DetectConfig())
    Detection().detect(nuclei, _quiet, _say_nothing)
    for unit in ("tile", "cell"):
        embed = EmbedConfig(encoder="handcrafted", unit=unit, device="cpu")
        bag = EmbedJob(slide_id=slide.stem, path=str(path), store=path, config=embed)
        Embedder().embed(bag, _quiet, _say_nothing)
    return open_store(path)


def _quiet(_done: int, _total: int) -> None:
    """Report no progress."""


def _say_nothing(_text: str) -> None:
    """Take no note."""
