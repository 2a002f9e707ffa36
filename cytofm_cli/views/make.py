"""From tiles and nuclei to a set of views: draw a plan on the host, render it on the device.

Letters: B tiles, V views, M nuclei, C colours, H rows, W columns, S side of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import UsageError
from cytofm_cli.units import is_plausible_mpp
from cytofm_cli.views import draws
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.plan import ViewPlan, draw_plan
from cytofm_cli.views.recipes import Recipe
from cytofm_cli.views.render import Source, render_batch, render_tiles


@dataclass(frozen=True)
class ViewSet:
    """Views of a batch.

    Attributes:
        views: one float32 (B, 3, S, S) per view of the recipe, global ones first, normalised.
        plan: what was drawn for them.
        row_B: int64, the input row of each output row; all of them, unless
            `without_nuclei="drop"` left some out.
        n_without_nuclei: tiles of the input that have no nucleus.
    """

    views: list[Tensor]
    plan: ViewPlan
    row_B: NDArray[np.int64]
    n_without_nuclei: int


def pad_nuclei(
    xy: Sequence[NDArray[np.floating]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Pad lists of nuclei to (B, M, 2) with NaN, and say what is real: bool (B, M)."""
    most = max((len(points) for points in xy), default=0)
    padded = np.full((len(xy), most, 2), np.nan)
    for row, points in enumerate(xy):
        padded[row, : len(points)] = points
    return padded, ~np.isnan(padded).any(-1)


def make_views(
    tile_BCHW: Tensor,
    xy_BM2: NDArray[np.float64],
    valid_BM: NDArray[np.bool_],
    *,
    recipe: Recipe,
    ncp: NcpConfig,
    mpp: float,
    keys_B: draws.Keys,
    label_BHW: Tensor | None = None,
    margin_px: int = 0,
    sliced: bool | None = None,
) -> ViewSet:
    """Make the views of a batch of tiles.

    A tile's views depend on the tile, its nuclei, its key and the settings only: neither on
    the batch nor on its order, and twice the same on one machine.

    Args:
        tile_BCHW: uint8 RGB (B, 3, H, W), any strides, on any device; the views stay there.
            Tiles with their margins.
        xy_BM2: float64 centroids (x, y) in pixels of these, on the host, padded (`pad_nuclei`).
        valid_BM: bool, False for padding.
        recipe: the set of views.
        ncp: how nuclei guide them.
        mpp: µm per tile pixel; the radius that is kept is physical.
        keys_B: one key per tile (`draws.sample_keys`).
        label_BHW: integer label maps of the nuclei, 0 for background and j + 1 for nucleus j,
            on the tiles' device, if the detector gives masks.
        margin_px: how much of `tile_BCHW` on every side lies around the tile (`crops.margin_of`).
        sliced: make one view after the other (default on a CPU, and only there) or all of a
            batch at once (default elsewhere). Same draws, views equal but for rounding.

    Raises:
        UsageError: tiles of another type or shape, implausible `mpp`, missing label map.
    """
    _check(tile_BCHW, xy_BM2, valid_BM, mpp, keys_B, margin_px)
    n_tiles, height, width = (tile_BCHW.shape[axis] for axis in (0, 2, 3))
    height, width = height - 2 * margin_px, width - 2 * margin_px
    plan = draw_plan(xy_BM2, valid_BM, recipe, ncp, keys_B, height, width, margin_px)
    n_without = int((~plan.has_nuclei_B).sum())
    if ncp.without_nuclei == "drop" and n_without:
        row = np.flatnonzero(plan.has_nuclei_B)
        some = torch.from_numpy(row).to(tile_BCHW.device)
        label = None if label_BHW is None else label_BHW[some]
        left = make_views(
            tile_BCHW[some], xy_BM2[row], valid_BM[row], recipe=recipe, ncp=ncp, mpp=mpp,
            keys_B=keys_B[row], label_BHW=label, margin_px=margin_px, sliced=sliced,
        )  # fmt: skip
        return ViewSet(left.views, left.plan, row, n_without)
    sliced = tile_BCHW.device.type == "cpu" if sliced is None else sliced
    render = render_tiles if sliced else render_batch
    source = Source(tile_BCHW, xy_BM2, label_BHW, ncp, mpp, margin_px)
    return ViewSet(render(source, plan, recipe), plan, np.arange(n_tiles), n_without)


def _check(
    tile_BCHW: Tensor,
    xy_BM2: NDArray[np.float64],
    valid_BM: NDArray[np.bool_],
    mpp: float,
    keys_B: draws.Keys,
    margin_px: int,
) -> None:
    shape = tuple(tile_BCHW.shape)
    if tile_BCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
        raise UsageError(f"tiles are {tile_BCHW.dtype} {shape}; views need uint8 (B, 3, H, W).")
    if not 0 <= 2 * margin_px < min(shape[2:]):
        raise UsageError(f"a margin of {margin_px} px leaves nothing of {shape[2:]} pixels.")
    if xy_BM2.shape != (shape[0], valid_BM.shape[-1], 2) or valid_BM.shape[0] != shape[0]:
        raise UsageError(
            f"nuclei {xy_BM2.shape} and mask {valid_BM.shape} do not fit {shape[0]} tiles.",
            hint="make both with pad_nuclei",
        )
    if len(keys_B) != shape[0]:
        raise UsageError(f"{len(keys_B)} keys for {shape[0]} tiles.")
    if not is_plausible_mpp(mpp):
        raise UsageError(f"mpp = {mpp} is no microscope's resolution.", hint="0.05 … 5 µm/px")
