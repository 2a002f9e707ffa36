"""All statistics of a stack of images, measured together.

Every statistic is unchanged by quarter turns and mirroring. To keep that exact where a
threshold could flip, images are halved and box-filtered in integers, in a symmetric way for
odd sizes too; only sums of floats depend on the order of the pixels.

What an image comes to does not depend on the images beside it: every step works on pixels one
by one, on bins that are each image's own, or on rows that are.

Sources: optical density and stain vectors, Ruifrok & Johnston 2001; threshold, Otsu 1979;
local binary patterns, Ojala, Pietikäinen & Mäenpää 2002 (the rotation-invariant uniform kind).

Letters: B images, H W pixels, C colours.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.handcrafted import blobs, colour, texture
from cytofm_cli.encoders.handcrafted.counts import Features
from cytofm_cli.encoders.handcrafted.halve import halve_exactly

_BLOCK_PX: Final = 2**20  # of images at a time: few calls, and planes that stay in the caches


def describe(pixels_BHWC: NDArray[np.uint8]) -> Features:
    """Return the named features of RGB images.

    Args:
        pixels_BHWC: uint8 (B, H, W, 3), at least one image, any size from 1 × 1.

    Returns:
        For each feature float64 (B,), finite. Lengths and areas are in pixels of half the
        images' resolution.
    """
    _, height, width, _ = pixels_BHWC.shape
    step = max(1, _BLOCK_PX // (height * width))
    blocks = [_block(pixels_BHWC[at : at + step]) for at in range(0, len(pixels_BHWC), step)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _block(pixels_BHWC: NDArray[np.uint8]) -> Features:
    pixels_BHWC = np.ascontiguousarray(pixels_BHWC)
    halved_CBHW = halve_exactly(pixels_BHWC)
    planes = colour.densities(halved_CBHW)
    dark_BHW = colour.levels(planes["dark"])
    return (
        colour.measure(halved_CBHW, planes, dark_BHW)
        | texture.finest(pixels_BHWC)
        | texture.measure(planes["dark"])
        | blobs.measure(planes, dark_BHW)
    )
