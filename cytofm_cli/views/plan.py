"""What is drawn for a batch of tiles, on the host, before any pixel is touched.

Letters: B tiles, V views, M nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.units import Box
from cytofm_cli.views import crops, draws
from cytofm_cli.views.draws import Stream
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.recipes import Recipe
from cytofm_cli.views.scene import keep_nuclei


@dataclass(frozen=True)
class ViewPlan:
    """Everything that was drawn, as arrays on the host.

    Attributes:
        keys_B: one key per tile.
        boxes_BV4: int64, the crops x, y, w, h in pixels of the canvas: the tile with its margin.
        centre_BV2: the chosen nucleus of each view, NaN where there is none.
        kept_BVM: bool, the nuclei that survive in each view.
        clean_BV: bool, views that are not perturbed.
        has_nuclei_B: bool.
    """

    keys_B: draws.Keys
    boxes_BV4: NDArray[np.int64]
    centre_BV2: NDArray[np.float64]
    kept_BVM: NDArray[np.bool_]
    clean_BV: NDArray[np.bool_]
    has_nuclei_B: NDArray[np.bool_]

    def part(self, rows: slice, n_nuclei: int | None = None) -> ViewPlan:
        """Return the plan of some tiles, with their first nuclei only."""
        return ViewPlan(
            self.keys_B[rows],
            self.boxes_BV4[rows],
            self.centre_BV2[rows],
            np.ascontiguousarray(self.kept_BVM[rows, :, :n_nuclei]),
            self.clean_BV[rows],
            self.has_nuclei_B[rows],
        )

    def box(self, b: int, v: int) -> Box:
        """Return one crop."""
        x, y, w, h = self.boxes_BV4[b, v].tolist()
        return Box(x, y, w, h)


def draw_plan(
    xy_BM2: NDArray[np.float64],
    valid_BM: NDArray[np.bool_],
    recipe: Recipe,
    ncp: NcpConfig,
    keys_B: draws.Keys,
    height: int,
    width: int,
    margin: int = 0,
) -> ViewPlan:
    """Draw kept nuclei, centres, crops and clean views.

    Views are centred on nuclei in the tile; those in its margin only survive or not. Nuclei
    outside the canvas take no part.

    Args:
        xy_BM2: centroids (x, y) in pixels of the canvas: the tile with its margin.
        valid_BM: bool, False for padding.
        recipe: the set of views.
        ncp: how nuclei guide them.
        keys_B: one key per tile.
        height: of the tiles, px.
        width: of the tiles, px.
        margin: px around the tiles.
    """
    n_views = len(recipe.views)
    size = np.array([width, height])
    with np.errstate(invalid="ignore"):
        on_canvas = ((xy_BM2 >= -0.5) & (xy_BM2 < size + 2 * margin - 0.5)).all(-1)
        in_tile = ((xy_BM2 >= margin - 0.5) & (xy_BM2 < size + margin - 0.5)).all(-1)
    around_BM = valid_BM & on_canvas & ~in_tile
    valid_BM = valid_BM & in_tile
    keys_BV = draws.fold(keys_B[:, None], Stream.VIEW + np.arange(n_views))
    each_view = ncp.redraw == "view" or ncp.keep == "single"
    keep_keys = keys_BV if each_view else np.repeat(keys_B[:, None], n_views, 1)
    valid_BVM = np.repeat(valid_BM[:, None], n_views, 1)
    around_BVM = np.repeat(around_BM[:, None], n_views, 1)
    kept_BVM = keep_nuclei(draws.fold(keep_keys, Stream.KEEP), valid_BVM, ncp, around_BVM)
    xy_BVM2 = np.broadcast_to(xy_BM2[:, None], (*kept_BVM.shape, 2))
    centre_BV2 = crops.draw_centres(
        draws.fold(keys_BV, Stream.CENTRE), xy_BVM2, kept_BVM & valid_BVM
    )
    if not ncp.centred:
        centre_BV2 = np.full_like(centre_BV2, np.nan)
    boxes = np.empty((len(keys_B), n_views, 4), np.int64)
    size_keys, place_keys = draws.fold(keys_BV, Stream.SIZE), draws.fold(keys_BV, Stream.PLACE)
    for spec in set(recipe.views):
        v = [number for number, other in enumerate(recipe.views) if other == spec]
        sides = crops.draw_sizes(size_keys[:, v], spec.scale, spec.aspect, height, width)
        boxes[:, v] = crops.place_boxes(
            place_keys[:, v], centre_BV2[:, v], sides, height, width, ncp.centre_jitter, margin
        )
    has_nuclei_B = np.asarray(valid_BM.any(1))
    u_BV = draws.uniform(draws.fold(keys_BV, Stream.CLEAN), 1)[..., 0]
    clean_BV = (u_BV < ncp.clean_probability) | ~has_nuclei_B[:, None]
    clean_BV |= ncp.fill == "none"
    for number, spec in enumerate(recipe.views):
        if spec.crop_of is not None:
            for drawn in (boxes, centre_BV2, kept_BVM, clean_BV):
                drawn[:, number] = drawn[:, spec.crop_of]
        clean_BV[:, number] |= spec.untouched
    return ViewPlan(keys_B, boxes, centre_BV2, kept_BVM, clean_BV, has_nuclei_B)
