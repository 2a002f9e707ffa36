"""Small pictures made large enough to look at, with words under them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import INK, PAPER
from cytofm_cli.pictures.text import LINE_PX, SMALL, write

Image = NDArray[np.uint8]


def enlarged(image: Image, side_px: int) -> Image:
    """Repeat pixels of a square image until its side is at least so large."""
    factor = -(-side_px // image.shape[0])
    return np.asarray(image.repeat(factor, 0).repeat(factor, 1))


def captioned(image: Image, lines: Sequence[str]) -> Image:
    """Set lines of text under an image."""
    text = np.full((LINE_PX * len(lines), image.shape[1], 3), PAPER, np.uint8)
    for number, line in enumerate(lines):
        write(text, line, 0, number * LINE_PX + 2, INK, SMALL)
    return np.concatenate([image, text])
