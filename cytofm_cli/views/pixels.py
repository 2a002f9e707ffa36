"""Pixels as 32-bit words, so that a shuffle or a crop moves a pixel and not three planes.

A word holds R, G, B and, on top, 255. Colours change on float planes (r, g, b, 1), by one 3 × 4
matrix product.

Letters: B tiles, G anything batched, H rows, W columns, C colours, S side of a square view.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.work.opencv import opencv

_TOP: Final = -(1 << 24)  # 0xFF000000 as int32


def pack(rgb_BCHW: Tensor) -> Tensor:
    """Pack uint8 RGB tiles (B, 3, H, W), any strides, into int32 words (B, H, W)."""
    n_tiles, _, height, width = rgb_BCHW.shape
    if rgb_BCHW.device.type == "cpu":
        return _pack_on_host(rgb_BCHW)
    word_BHW = torch.full((n_tiles, height, width), _TOP, dtype=torch.int32, device=rgb_BCHW.device)
    byte_BHW4 = as_bytes(word_BHW)
    for colour in range(3):  # plane by plane: twice as fast as one strided copy
        byte_BHW4[..., colour].copy_(rgb_BCHW[:, colour])
    return word_BHW


def _pack_on_host(rgb_BCHW: Tensor) -> Tensor:
    cv2 = opencv()

    n_tiles, _, height, width = rgb_BCHW.shape
    byte_BHW4 = np.empty((n_tiles, height, width, 4), np.uint8)
    full_HW = _full(height, width)
    for rgb_CHW, byte_HW4 in zip(rgb_BCHW.numpy(), byte_BHW4, strict=True):
        if rgb_CHW.strides[0] == 1:  # colours lie side by side
            cv2.cvtColor(rgb_CHW.transpose(1, 2, 0), cv2.COLOR_RGB2RGBA, dst=byte_HW4)
        else:
            cv2.merge([*map(np.ascontiguousarray, rgb_CHW), full_HW], dst=byte_HW4)
    return torch.from_numpy(byte_BHW4).view(torch.int32).squeeze(-1)


@lru_cache(maxsize=4)
def _full(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width), 255, np.uint8)


def as_bytes(word_GHW: Tensor) -> Tensor:
    """View contiguous words (G, H, W) as uint8 (G, H, W, 4), without a copy."""
    return word_GHW.view(torch.uint8).view(*word_GHW.shape, 4)


def unpack(word_GHW: Tensor) -> Tensor:
    """Return words (G, H, W) as uint8 RGB (G, 3, H, W)."""
    return as_bytes(word_GHW.contiguous())[..., :3].movedim(-1, -3).contiguous()


def rgb_on_host(word_HW: Tensor) -> NDArray[np.uint8]:
    """Return words on the host, rows of any distance, as uint8 RGB (H, W, 3), side by side."""
    cv2 = opencv()

    byte_HW4 = word_HW.unsqueeze(-1).view(torch.uint8).numpy()
    rgb_HW3: NDArray[np.uint8] = cv2.cvtColor(byte_HW4, cv2.COLOR_RGBA2RGB)
    return rgb_HW3


def planes(word_GHW: Tensor) -> Tensor:
    """Return contiguous words as float32 planes (G, 4, H, W): r, g, b and 1."""
    n_images, height, width = word_GHW.shape
    x_G4HW = torch.empty(n_images, 4, height, width, device=word_GHW.device)
    x_G4HW[:, :3].copy_(as_bytes(word_GHW)[..., :3].movedim(-1, 1))
    x_G4HW[:, 3].fill_(1)
    return x_G4HW


def turn(word_GSS: Tensor, code_G: list[int]) -> Tensor:
    """Apply one of the eight symmetries of the square to each view, in place.

    Args:
        word_GSS: square views, words.
        code_G: 0 … 7; bit 0 transposes, then bit 1 flips left-right, bit 2 upside-down.
    """
    rows_of: dict[int, list[int]] = {}
    for row, code in enumerate(code_G):
        rows_of.setdefault(code, []).append(row)
    rows_of.pop(0, None)
    for code, rows in rows_of.items():
        axes = [axis for axis, bit in ((2, 2), (1, 4)) if code & bit]
        view_GSS = word_GSS[rows].mT if code & 1 else word_GSS[rows]
        word_GSS[rows] = view_GSS.flip(axes) if axes else view_GSS
    return word_GSS
