"""Where views are cut, and how they are resized.

A view's area is a share of the tile's, its aspect ratio log-uniform in 3/4 … 4/3, as in random
resized cropping (Szegedy et al. 2015); its centre is a kept nucleus. Tiles come with a margin of
what lies around them, `margin_of`: a box may reach over the tile's edge, and only one that would
leave the margin is shifted back inside. With a quarter of the tile no view of up to the tile's
side has its nucleus more than a quarter of its side off its centre, and none of up to half the
tile's side is off at all; twice the margin would cost twice the pixels.

Letters: G anything batched, V views, M nuclei, H rows, W columns, C colours, S side of a view.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.units import Box
from cytofm_cli.views import draws, pixels

MARGIN_SHARE: Final = 0.25  # of a tile's side
_ATTEMPTS: Final = 10  # as in torchvision's RandomResizedCrop


def margin_of(tile_px: int) -> int:
    """Return how far views may reach over the edges of a tile, px."""
    return round(MARGIN_SHARE * tile_px)


def draw_sizes(
    keys_G: draws.Keys,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    height: int,
    width: int,
) -> NDArray[np.int64]:
    """Draw crop sizes (w, h) that fit in the tile: int64, shape `keys_G.shape + (2,)`.

    The first of ten draws that fits; if none does, the last one, cut to the tile.

    Args:
        keys_G: one key per crop.
        scale: range of the area as a share of the tile's.
        aspect: range of width / height.
        height: of the tile, px.
        width: of the tile, px.
    """
    u = draws.uniform(keys_G, 2 * _ATTEMPTS)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[..., ::2])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + (high - low) * u[..., 1::2])
    sizes = np.rint(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], -1)).astype(np.int64)
    fits = (sizes >= 1).all(-1) & (sizes[..., 0] <= width) & (sizes[..., 1] <= height)
    fits[..., -1] = True
    first = fits.argmax(-1)[..., None, None]
    size = np.take_along_axis(sizes, first, -2)[..., 0, :]
    fitting: NDArray[np.int64] = np.clip(size, 1, (width, height))
    return fitting


def draw_centres(
    keys_G: draws.Keys, xy_GM2: NDArray[np.float64], kept_GM: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Choose one kept nucleus for each view, all equally likely: (G, 2), NaN if there is none.

    Args:
        keys_G: one key per view, any shape.
        xy_GM2: centroids, shape `keys_G.shape + (M, 2)`.
        kept_GM: bool.
    """
    if kept_GM.shape[-1] == 0:
        return np.full((*keys_G.shape, 2), np.nan)
    count = kept_GM.sum(-1)
    nth = np.floor(draws.uniform(keys_G, 1)[..., 0] * count)
    chosen = (kept_GM.cumsum(-1) > nth[..., None]).argmax(-1)
    xy = np.take_along_axis(xy_GM2, chosen[..., None, None], -2)[..., 0, :]
    return np.where(count[..., None] > 0, xy, np.nan)


def place_boxes(
    keys_G: draws.Keys,
    centre_G2: NDArray[np.float64],
    size_G2: NDArray[np.int64],
    height: int,
    width: int,
    jitter: float = 0.0,
    margin: int = 0,
) -> NDArray[np.int64]:
    """Place crops around their centres, shifted inside the canvas: int64 (G, 4) x, y, w, h.

    The canvas is the tile with a margin on every side; all points count from its corner.

    Args:
        keys_G: one key per view, any shape.
        centre_G2: (x, y) px; NaN places the crop uniformly in the tile.
        size_G2: (w, h) px.
        height: of the tile, px.
        width: of the tile, px.
        jitter: largest shift of the centre in x and in y, as a share of the crop's side.
        margin: px on every side of the tile that crops around a centre may show.
    """
    u = draws.uniform(keys_G, 4)
    room = np.array([width, height]) - size_G2
    # A pixel's centre lies at its whole-numbered point, a box's corner half a pixel before it.
    wanted = centre_G2 + 0.5 + jitter * (2 * u[..., :2] - 1) * size_G2 - size_G2 / 2
    anywhere = margin + np.floor(u[..., 2:] * (room + 1))
    inside = np.clip(np.rint(wanted), 0, room + 2 * margin)
    corner = np.where(np.isnan(centre_G2), anywhere, inside)
    return np.concatenate([corner.astype(np.int64), size_G2], -1)


def resize_crop(rgb_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize one crop of RGB to a square, bicubic with antialias: uint8 RGB (S, S, 3).

    Runs on uint8, interleaved colours at once: the fastest kernel that torch has on a CPU. Not
    available on a GPU; see `resize_boxes`. Rows come first, then columns: a sixth faster than
    Pillow's order, and both round to whole grey levels in between.
    """
    # The batch axis goes first, before the permutation, or torch misses that this is channels
    # last and takes the slow way. Torch copies a part of a picture pixel by pixel, NumPy by rows.
    whole_HWC = np.ascontiguousarray(rgb_HWC)
    small_1CHW = torch.from_numpy(whole_HWC).unsqueeze(0).permute(0, 3, 1, 2)
    for shape in ((size, rgb_HWC.shape[1]), (size, size)):
        small_1CHW = torch.nn.functional.interpolate(
            small_1CHW, shape, mode="bicubic", antialias=True
        )
    return small_1CHW[0].permute(1, 2, 0).numpy()


def resize_boxes(word_GHW: Tensor, boxes: list[Box], size: int) -> Tensor:
    """Cut one box out of each image and resize it: int32 words (G, S, S).

    Two batched matrix products with the weights of an antialiased bicubic filter: no loop
    over images, any device. Equals `resize_crop` to a grey level or two.
    """
    rgb = pixels.unpack(word_GHW).float()
    device = rgb.device
    xs, ys = [(b.x, b.w) for b in boxes], [(b.y, b.h) for b in boxes]
    across = resize_weights(xs, word_GHW.shape[2], size).to(device).unsqueeze(1)
    down = resize_weights(ys, word_GHW.shape[1], size).to(device).unsqueeze(1)
    # Rows first, and to whole grey levels between the axes, as `resize_crop` does.
    low = (down @ rgb).round_().clamp_(0, 255)
    return pixels.pack((low @ across.mT).round_().clamp_(0, 255).to(torch.uint8))


def resize_weights(ranges: list[tuple[int, int]], extent: int, size: int) -> Tensor:
    """Return the matrices (G, size, extent) that resample [start, start + length) to `size`.

    The kernel is Keys' cubic with a = -1/2, stretched by the scale when shrinking, cut at the
    ends of the range and normalised: the filter of Pillow and of torch with antialias.
    """
    start, length = np.asarray(ranges, np.float64).T[..., None, None]
    scale = length / size
    stretch = np.maximum(scale, 1.0)
    centre = start + scale * (np.arange(size)[:, None] + 0.5)
    first = np.maximum(np.floor(centre - 2 * stretch + 0.5), start)
    behind = np.minimum(np.floor(centre + 2 * stretch + 0.5), start + length)
    at = np.arange(extent, dtype=np.float64)
    d = np.abs((at + 0.5 - centre) / stretch)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weight = np.where(d < 1, near, np.where(d < 2, far, 0.0)) * ((at >= first) & (at < behind))
    return torch.from_numpy((weight / weight.sum(-1, keepdims=True)).astype(np.float32))
