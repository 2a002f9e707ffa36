"""Pictures set beside and below each other on paper, with words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import INK, PAPER
from cytofm_cli.pictures.text import LARGE, LINE_PX, SMALL, ink, write

Image = NDArray[np.uint8]

GAP_PX: Final = 10


def labelled(image: Image, text: str) -> Image:
    """Set a line of text above an image."""
    line = np.full((LINE_PX, image.shape[1], 3), PAPER, np.uint8)
    # A local view is narrower than its label in large letters.
    fits = ink(text, LARGE).shape[1] <= image.shape[1]
    write(line, text, 0, 0, INK, LARGE if fits else SMALL)
    return np.concatenate([line, image])


def below(images: Sequence[Image], *, margin: bool = True) -> Image:
    """Stack images with gaps, left-aligned on paper."""
    gap = GAP_PX if margin else GAP_PX // 2
    width = max(image.shape[1] for image in images) + (2 * gap if margin else 0)
    height = sum(image.shape[0] + gap for image in images) + (gap if margin else 0)
    sheet = np.full((height, width, 3), PAPER, np.uint8)
    y, x = (gap, gap) if margin else (0, 0)
    for image in images:
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
        y += image.shape[0] + gap
    return sheet


def beside(images: Sequence[Image]) -> Image:
    """Set images side by side with gaps, top-aligned on paper."""
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] + GAP_PX for image in images)
    sheet = np.full((height, width, 3), PAPER, np.uint8)
    x = 0
    for image in images:
        sheet[: image.shape[0], x : x + image.shape[1]] = image
        x += image.shape[1] + GAP_PX
    return sheet


def grid(images: Sequence[Image], columns: int) -> Image:
    """Lay images out in rows of so many, on paper with a margin; at least one image."""
    rows = [beside(images[i : i + columns]) for i in range(0, len(images), columns)]
    return below(rows)
