"""Two drawn fields of which everything is known, for tests of the Python functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# Two nuclei in pale cells; centres (x, y) and half axes, pixels.
NUCLEI = ((100.0, 120.0, 14.0, 10.0), (380.0, 300.0, 18.0, 13.0))


def draw_field() -> np.ndarray:
    """Two pale cells with a dark nucleus each, on bright ground: uint8 (512, 512, 3)."""
    y, x = np.mgrid[:512, :512] + 0.5
    picture = np.full((512, 512, 3), (243.0, 240.0, 236.0))
    for cx, cy, a, b in NUCLEI:
        for scale, colour in ((3.0, (196, 205, 226)), (1.0, (84, 62, 128))):
            inside = np.hypot((x - cx) / a, (y - cy) / b) < scale
            picture[inside] = colour
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def write_two_fields(folder: Path) -> Path:
    """Write the field as `a.png`, and mirrored as `b.png`; return the folder."""
    Image.fromarray(draw_field()).save(folder / "a.png")
    Image.fromarray(np.ascontiguousarray(draw_field()[:, ::-1])).save(folder / "b.png")
    return folder
