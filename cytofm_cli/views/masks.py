"""What is kept: unions of disks, painted as row spans and summed once.

A disk meets each row in one span. Adding +1 where a span starts and -1 behind its end and
summing along the flattened image counts, at every pixel, the disks that cover it: exact,
for any number of disks and any overlap, batched, with no distance computed per pixel.

Pixel (row i, column j) lies at the point (x, y) = (j, i).
Letters: G images, P points, R rows of a disk, N = H · W pixels, M nuclei.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """The row spans of disks, as flat pixel numbers; empty spans have start = stop.

    Attributes:
        start_GPR: int32, first pixel of the span.
        stop_GPR: int32, the pixel behind its last.
        n_pixels: H · W.
    """

    start_GPR: Tensor
    stop_GPR: Tensor
    n_pixels: int

    def row(self, g: int) -> Spans:
        """Return the spans of one image, still batched."""
        one = slice(g, g + 1)
        return Spans(self.start_GPR[one], self.stop_GPR[one], self.n_pixels)


def disk_spans(
    xy_GP2: Tensor,
    radius_px: float,
    height: int,
    width: int,
    *,
    ragged_2GPR: Tensor | None = None,
    cut_GP: Tensor | None = None,
) -> Spans:
    """Cut disks into row spans, clipped to the image.

    Args:
        xy_GP2: float64 centres (x, y) in pixels; NaN is allowed and covers something
            arbitrary, so give such a point no weight in `paint`.
        radius_px: pixels at a distance of at most this belong to the disk.
        height: rows of the image.
        width: columns of the image.
        ragged_2GPR: pixels to add to the radius, for the left and the right end of each row;
            R is `n_rows(radius_px, …)`.
        cut_GP: angles in radians; if given, only the half of the disk on that side of a line
            through its centre is kept (`NcpConfig.keep` = "piece").
    """
    xy_GP2 = torch.nan_to_num(xy_GP2)
    x_GP1, y_GP1 = xy_GP2[..., :1], xy_GP2[..., 1:]
    rows = n_rows(radius_px) if ragged_2GPR is None else ragged_2GPR.shape[-1]
    row_GPR = y_GP1.floor() + torch.arange(rows, device=xy_GP2.device).sub_((rows - 1) // 2)
    dy_GPR = row_GPR - y_GP1
    # An end that its own radius does not reach falls back to the centre's column.
    if ragged_2GPR is None:
        reached = radius_px**2 - dy_GPR.square()
        half_GPR = reached.clamp(min=0).sqrt_()
        low, high = x_GP1 - half_GPR, x_GP1 + half_GPR
    else:
        left, right = (ragged_2GPR + radius_px).square_().sub_(dy_GPR.square())
        low, high = x_GP1 - left.clamp(min=0).sqrt_(), x_GP1 + right.clamp(min=0).sqrt_()
        reached = torch.maximum(left, right)
    if cut_GP is not None:
        cos, sin = torch.cos(cut_GP).unsqueeze(-1), torch.sin(cut_GP).unsqueeze(-1)
        edge_GPR = x_GP1 - dy_GPR * sin / torch.where(cos.abs() < 1e-9, 1e-9, cos)
        low = torch.where(cos > 0, torch.maximum(low, edge_GPR), low)
        high = torch.where(cos > 0, high, torch.minimum(high, edge_GPR))
    first = low.ceil_().clamp_(0, width)
    behind = high.floor_().add_(1).clamp_(0, width)
    inside_GPR = row_GPR.clamp(0, height - 1)
    real = (reached >= 0).logical_and_(behind > first).logical_and_(row_GPR == inside_GPR)
    base = inside_GPR.mul_(width)
    start = first.add_(base).mul_(real).to(torch.int32)
    stop = behind.add_(base).mul_(real).to(torch.int32)
    return Spans(start, stop, height * width)


def n_rows(radius_px: float) -> int:
    """Return how many rows of pixels to look at for a disk anywhere between pixels."""
    return 2 * math.ceil(radius_px) + 2


def paint(spans: Spans, weight_GP: Tensor) -> Tensor:
    """Count at every pixel the disks of weight 1 that cover it: int32 (G, N)."""
    n_images, stride = len(spans.start_GPR), spans.n_pixels + 1  # spans may close behind the end
    weight = weight_GP.to(torch.int32).unsqueeze(-1).expand(spans.start_GPR.shape).reshape(-1)
    first, behind = spans.start_GPR, spans.stop_GPR
    if n_images > 1:
        offset = torch.arange(n_images, dtype=torch.int32, device=first.device) * stride
        first, behind = first + offset.view(-1, 1, 1), behind + offset.view(-1, 1, 1)
    step = torch.zeros(n_images * stride, dtype=torch.int32, device=first.device)
    step.index_add_(0, first.reshape(-1), weight)
    step.index_add_(0, behind.reshape(-1), weight, alpha=-1)
    return step.view(n_images, stride)[:, :-1].cumsum(1, dtype=torch.int32)


def outside_disks(spans: Spans, weight_GP: Tensor) -> Tensor:
    """Return bool (G, N): true outside the union of the disks of weight 1."""
    if weight_GP.device.type != "cpu":
        return paint(spans, weight_GP) == 0
    outside_GN = np.empty((len(weight_GP), spans.n_pixels), bool)
    parts = zip(spans.start_GPR.numpy(), spans.stop_GPR.numpy(), weight_GP.numpy(), strict=True)
    for outside_N, (start_PR, stop_PR, weight_P) in zip(outside_GN, parts, strict=True):
        outside_N[:] = _outside_runs(start_PR[weight_P], stop_PR[weight_P], len(outside_N))
    return torch.from_numpy(outside_GN)


def _outside_runs(
    start: NDArray[np.int32], stop: NDArray[np.int32], n_pixels: int
) -> NDArray[np.bool_]:
    """Return what no span covers, run by run: on a CPU a fifth of the time of a sum."""
    # Where the i-th end lies before the start after the i-th, whatever started has ended.
    starts, stops = np.sort(start, axis=None), np.sort(stop, axis=None)
    gap = stops[:-1] < starts[1:]
    edges = np.empty(2 * (np.count_nonzero(gap) + (len(starts) > 0)) + 2, np.int64)
    edges[0], edges[-1] = 0, n_pixels
    if len(starts):
        edges[1], edges[3:-1:2] = starts[0], starts[1:][gap]
        edges[2:-2:2], edges[-2] = stops[:-1][gap], stops[-1]
    return np.repeat(np.arange(len(edges) - 1) % 2 == 0, np.diff(edges))


def rule_labels(
    outside_GN: Tensor, label_GN: Tensor, kept_GM: Tensor, *, unite: bool = True
) -> Tensor:
    """Let the nuclei of a label map overrule disks: kept ones are inside, all others outside.

    Args:
        outside_GN: bool, true outside the disks; changed in place.
        label_GN: int32, 0 for background, j + 1 for nucleus j, M + 1 for one that is not kept.
        kept_GM: bool.
        unite: False leaves kept nuclei as the disks have them.

    Returns:
        bool (G, N), the same tensor.
    """
    gone = torch.nn.functional.pad(~kept_GM, (0, 1), value=True)
    rule = torch.nn.functional.pad(gone, (1, 0)).to(torch.uint8)  # 1: outside
    if unite:
        rule += 2 * torch.nn.functional.pad(kept_GM, (1, 1))  # 2: inside
    rule_GN = _look_up(rule, label_GN)
    outside_GN |= rule_GN == 1
    outside_GN &= rule_GN != 2
    return outside_GN


def _look_up(table_GK: Tensor, label_GN: Tensor) -> Tensor:
    """Return the entries of each row's table at its labels."""
    if len(label_GN) == 1:
        return table_GK[0].index_select(0, label_GN[0]).unsqueeze(0)
    offset = torch.arange(len(label_GN), device=label_GN.device).unsqueeze(1) * table_GK.shape[1]
    flat = (label_GN + offset).reshape(-1)
    return table_GK.reshape(-1).index_select(0, flat).view(label_GN.shape)


def boundary_points(label_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Collect the boundary pixels of labelled nuclei, padded over the batch.

    Returns:
        `xy_BP2` float64, NaN where padded, and `owner_BP` int64, the nucleus (label - 1),
        -1 where padded.
    """
    label = torch.nn.functional.pad(label_BHW.long(), (1, 1, 1, 1), value=0)
    inner = label[:, 1:-1, 1:-1]
    same = (inner == label[:, :-2, 1:-1]) & (inner == label[:, 2:, 1:-1])
    same &= (inner == label[:, 1:-1, :-2]) & (inner == label[:, 1:-1, 2:])
    image, y, x = ((inner > 0) & ~same).nonzero(as_tuple=True)
    counts = torch.bincount(image, minlength=len(label_BHW))
    n_points = int(counts.max()) if len(counts) else 0
    slot = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    xy = torch.full(
        (len(label_BHW), n_points, 2), math.nan, dtype=torch.float64, device=image.device
    )
    owner = torch.full((len(label_BHW), n_points), -1, dtype=torch.int64, device=image.device)
    xy[image, slot] = torch.stack([x, y], -1).double()
    owner[image, slot] = inner[image, y, x] - 1
    return xy, owner


def label_map(contours: list[NDArray[np.floating]], height: int, width: int) -> NDArray[np.int32]:
    """Rasterise polygons by the even-odd rule: contour j becomes label j + 1.

    Args:
        contours: float (p, 2) corners (x, y) in the tile's pixels, closed or not; a contour
            of fewer than three corners paints nothing. Later ones paint over earlier ones.
        height: rows of the tile.
        width: columns of the tile.
    """
    label = np.zeros((height, width), np.int32)
    large = [(number, xy) for number, xy in enumerate(contours, start=1) if len(xy) >= 3]
    if not large:
        return label
    # Every edge of every contour at once: E edges, X crossings of an edge with a row.
    x0_E, y0_E = np.concatenate([xy for _, xy in large]).T.astype(np.float64)
    x1_E, y1_E = np.concatenate([np.roll(xy, -1, 0) for _, xy in large]).T.astype(np.float64)
    owner_E = np.repeat([number for number, _ in large], [len(xy) for _, xy in large])
    top_E = np.ceil(np.minimum(y0_E, y1_E)).clip(0, height).astype(np.int64)
    below_E = np.ceil(np.maximum(y0_E, y1_E)).clip(0, height).astype(np.int64)
    n_E = np.maximum(below_E - top_E, 0)
    edge_X = np.repeat(np.arange(len(n_E)), n_E)
    row_X = _count_up(n_E) + top_E[edge_X]
    x0, y0, x1, y1 = (corner[edge_X] for corner in (x0_E, y0_E, x1_E, y1_E))
    cross_X = x0 + (row_X - y0) * (x1 - x0) / (y1 - y0)
    order = np.lexsort((cross_X, row_X, owner_E[edge_X]))
    first, second = (
        order[::2],
        order[1::2],
    )  # a closed contour crosses a row an even number of times
    left = np.ceil(cross_X[first]).clip(0, width).astype(np.int64)
    n = np.ceil(cross_X[second]).clip(0, width).astype(np.int64) - left
    pixel = np.repeat(row_X[first] * width + left, n) + _count_up(n)
    label.reshape(-1)[pixel] = np.repeat(owner_E[edge_X[first]], n)  # the last one stays
    return label


def _count_up(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 … n_0 - 1, 0 … n_1 - 1, and so on, in a row."""
    return np.arange(n.sum()) - np.repeat(n.cumsum() - n, n)
