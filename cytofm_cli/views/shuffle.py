"""Shuffle pixels: deal those that lie outside, in a random order, to where others lay.

The order is a permutation of all n outside pixels, made from a fixed one, T, of the m ≤ n pixels
where m is n with all but its four highest bits cleared: position k takes T(k + a), the n - m
positions and pixels that are left change places with random ones, and everything moves on by b.
The shifts a, b and a third for the changes of place come from the key. So an order costs a shifted
read of a table, with neither a sort nor a draw a pixel, and its first part can be had alone.

`deal_box` is for one image on a CPU, `shuffle_outside` for a batch on any device; they agree.
Letters: G images, N = H · W pixels, K length of an order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.units import Box
from cytofm_cli.views import draws

_BITS: Final = 4  # left as they are: at most 8 tables an octave, and at most n / 8 left over


def deal_box(word_HW: Tensor, outside_HW: Tensor, key_1: draws.Keys, box: Box) -> Tensor:
    """Shuffle what lies outside and return only a box of it: int32 words (h, w).

    The k-th outside pixel of the box takes the k-th of the order, from all of the image.

    Args:
        word_HW: int32, contiguous, on the host.
        outside_HW: bool, likewise.
        key_1: decides the order.
        box: the whole image, or less of it.
    """
    window = (slice(box.y, box.y + box.h), slice(box.x, box.x + box.w))
    dealt_HW = word_HW[window].clone(memory_format=torch.contiguous_format)
    # NumPy takes and sets by masks that hold in runs several times as fast as torch.
    target_T = outside_HW[window].reshape(-1).numpy()
    n_targets = int(np.count_nonzero(target_T))
    if n_targets:
        pool_P = word_HW.view(-1).numpy()[outside_HW.view(-1).numpy()]
        dealt_HW.view(-1).numpy()[target_T] = deal(pool_P, key_1, n_targets)
    return dealt_HW


def deal(pool_P: NDArray[np.int32], key_1: draws.Keys, length: int) -> NDArray[np.int32]:
    """Return the first `length` of a pool of at least one, shuffled."""
    n = len(pool_P)
    m = _rounded(n)
    a, b, c = (int(u * size) for u, size in zip(draws.uniform(key_1, 3)[0], (m, n, m), strict=True))
    pool_P = np.concatenate([pool_P[b:], pool_P[:b]])
    pool, table_M = torch.from_numpy(pool_P), torch.from_numpy(_table(m))
    dealt_K = np.empty(max(length, m), np.int32)  # what is swapped behind `length` is cut off
    head = min(length, m)
    before = min(head, m - a)
    out = torch.from_numpy(dealt_K)
    torch.index_select(pool, 0, table_M[a : a + before], out=out[:before])
    torch.index_select(pool, 0, table_M[: head - before], out=out[before:head])
    swapped = _table(m).take(np.arange(c, c + n - m), mode="wrap")
    if length > m:
        dealt_K[m:] = pool_P[_table(m)[(swapped[: length - m] + a) % m]]
    dealt_K[swapped] = pool_P[m:]
    return dealt_K[:length]


def shuffle_outside(
    word_GN: Tensor, outside_GN: Tensor, key_G: draws.Keys, within_GN: Tensor | None = None
) -> Tensor:
    """Shuffle the outside pixels of each image; the rest stays: int32 (G, N).

    No step has a shape that depends on data, so a batch runs on a GPU without a synchronisation.

    Args:
        word_GN: int32 words.
        outside_GN: bool.
        key_G: decides the orders.
        within_GN: bool; if given, pixels are dealt only where it is true, in this order, from all
            of the outside: what `deal_box` does for one image.
    """
    n_pixels = word_GN.shape[1]
    slot_GN = outside_GN.cumsum(1).mul_(outside_GN)  # 1, 2, … and 0 for the inside
    pool = word_GN.new_zeros(len(word_GN), n_pixels + 1).scatter_(1, slot_GN, word_GN)
    target_GN = outside_GN if within_GN is None else outside_GN & within_GN
    rank_GN = target_GN.cumsum(1).sub_(1).clamp_(min=0)
    source_GN = orders(slot_GN.amax(1), key_G, n_pixels).gather(1, rank_GN).add_(1)
    return torch.where(target_GN, pool.gather(1, source_GN), word_GN)


def orders(n_G: Tensor, key_G: draws.Keys, length: int) -> Tensor:
    """Return int64 (G, K): which of n ≤ K `deal` takes, in order; anything behind the n-th."""
    device = n_G.device
    levels, starts, tables = _tables(length, device)
    n_G1 = n_G.view(-1, 1).clamp(min=1)
    level_G1 = torch.searchsorted(levels, n_G1, right=True).sub_(1)
    m_G1, start_G1 = levels[level_G1], starts[level_G1]
    u_G3 = torch.from_numpy(draws.uniform(key_G, 3)).to(device)
    a, b, c = ((u_G3[:, i : i + 1] * size).long() for i, size in enumerate((m_G1, n_G1, m_G1)))

    def turned(position_GK: Tensor) -> Tensor:
        return tables[start_G1 + position_GK % m_G1].long()

    index_K = torch.arange(length, device=device)
    late_L = index_K[: length // 8 + 1]
    swapped_GL, late_GL = turned(late_L + c), m_G1 + late_L
    # Room behind the end takes what is swapped no more.
    order_GK = torch.nn.functional.pad(turned(index_K + a), (0, 1))
    swaps_GL = late_L < n_G1 - m_G1
    order_GK.scatter_(1, late_GL.where(swaps_GL, length), turned(swapped_GL + a))
    order_GK.scatter_(1, swapped_GL.where(swaps_GL, length), late_GL)
    return order_GK[:, :length].add(b).remainder_(n_G1)


def _rounded(n: int) -> int:
    """Return n with all but its highest bits cleared."""
    cleared = max(0, n.bit_length() - _BITS)
    return n >> cleared << cleared


@lru_cache(maxsize=64)
def _table(m: int) -> NDArray[np.int32]:
    """A fixed permutation of 0 … m - 1."""
    return draws.permutation(m, 1).astype(np.int32)


@lru_cache(maxsize=8)
def _tables(most: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return all m up to `most`, where in a row of all tables theirs start, and that row."""
    levels = sorted({_rounded(n) for n in range(1, min(most, 16) + 1)})
    while (larger := levels[-1] + (1 << max(0, levels[-1].bit_length() - _BITS))) <= most:
        levels.append(larger)
    starts = np.cumsum([0, *levels[:-1]])
    row = np.concatenate([_table(m) for m in levels])
    on_device = (torch.tensor(levels), torch.from_numpy(starts), torch.from_numpy(row))
    levels_on, starts_on, row_on = (part.to(device) for part in on_device)
    return levels_on, starts_on, row_on
