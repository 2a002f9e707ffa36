"""Tiles and their nuclei: which nuclei survive, and what lies outside of all that is kept.

Letters: B tiles, G anything batched, M nuclei, P points, R rows of a disk, N = H · W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import UsageError
from cytofm_cli.views import draws, masks, pixels
from cytofm_cli.views.draws import Stream
from cytofm_cli.views.ncp import NcpConfig


@dataclass(frozen=True)
class Scene:
    """Tiles and where their nuclei are: what every perturbation of them starts from.

    Attributes:
        word_BN: int32 packed pixels.
        height: rows of a tile.
        width: columns of a tile.
        mpp: µm per pixel.
        xy_BP2: float64 points (x, y) from which the radius counts.
        owner_BP: the nucleus that a point belongs to, -1 for padding; None: point j is nucleus j.
        label_BN: label map of the nuclei, if there are masks.
        unite: kept nuclei are kept whole, not only what lies in their disks.
    """

    word_BN: Tensor
    height: int
    width: int
    mpp: float
    xy_BP2: Tensor
    owner_BP: Tensor | None = None
    label_BN: Tensor | None = None
    unite: bool = True

    def windows(self, corner_B2: NDArray[np.int64], height: int, width: int) -> Scene:
        """Cut one window out of each tile.

        Args:
            corner_B2: (x, y) of the windows, which lie inside.
            height: of the windows.
            width: of the windows.
        """
        if (height, width) == (self.height, self.width):
            return self
        corners = corner_B2.tolist()

        def cut(image_BN: Tensor) -> Tensor:
            image_BHW = image_BN.view(-1, self.height, self.width)
            parts = [
                image_HW[y : y + height, x : x + width]
                for image_HW, (x, y) in zip(image_BHW, corners, strict=True)
            ]
            return torch.stack(parts).flatten(1)

        shift = torch.from_numpy(corner_B2).to(self.xy_BP2)
        return replace(
            self,
            word_BN=cut(self.word_BN),
            height=height,
            width=width,
            xy_BP2=self.xy_BP2 - shift.unsqueeze(1),
            label_BN=None if self.label_BN is None else cut(self.label_BN),
        )


def build_scene(
    tile_BCHW: Tensor,
    xy_BM2: Tensor,
    config: NcpConfig,
    mpp: float,
    label_BHW: Tensor | None = None,
) -> Scene:
    """Pack tiles and find the points from which the radius counts ("outside radius r").

    Args:
        tile_BCHW: uint8 RGB.
        xy_BM2: float64 centroids in tile pixels, on the tiles' device; padding is anything.
        config: its `region` and `keep` matter here.
        mpp: µm per tile pixel.
        label_BHW: 0 for background, j + 1 for nucleus j; larger numbers are not kept.

    Raises:
        UsageError: `region="boundary"` without a label map.
    """
    height, width = tile_BCHW.shape[-2:]
    points_BP2, owner_BP = xy_BM2, None
    if label_BHW is not None:  # nuclei that are not among the centroids are all one, not kept
        label_BHW = label_BHW.to(torch.int32).clamp(max=xy_BM2.shape[1] + 1)
    if config.region == "boundary":
        if label_BHW is None:
            raise UsageError(
                "region = 'boundary' measures from nucleus outlines and there are none.",
                hint="use a detector with contours, or region = 'disk'",
            )
        points_BP2, owner_BP = masks.boundary_points(label_BHW)
    label = None if label_BHW is None else label_BHW.flatten(1)
    words_BN = pixels.pack(tile_BCHW).flatten(1)
    whole = config.keep != "piece"
    return Scene(words_BN, height, width, mpp, points_BP2, owner_BP, label, whole)


def keep_nuclei(
    keys_G: draws.Keys,
    valid_GM: NDArray[np.bool_],
    config: NcpConfig,
    around_GM: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Draw which nuclei survive; at least one where there is any ("randomly retain").

    Args:
        keys_G: one key per draw, any shape.
        valid_GM: bool, shape `keys_G.shape + (M,)`, False for padding.
        config: its `keep` and `keep_fraction` matter here.
        around_GM: bool, nuclei around the tile, which may survive but need not; not among
            `valid_GM`.
    """
    if around_GM is not None and around_GM.any():
        kept_GM = keep_nuclei(keys_G, valid_GM, config)
        if config.keep == "all":
            return kept_GM | around_GM
        if config.keep != "subset":
            return kept_GM
        u_GM = draws.uniform(keys_G, valid_GM.shape[-1])
        return kept_GM | (around_GM & (u_GM < config.keep_fraction))
    if config.keep == "all" or valid_GM.shape[-1] == 0:
        return valid_GM.copy()
    u_GM = np.where(valid_GM, draws.uniform(keys_G, valid_GM.shape[-1]), 2.0)
    # The nucleus with the smallest number survives in any case: a subset is never empty.
    first = np.zeros_like(valid_GM)
    np.put_along_axis(first, u_GM.argmin(-1, keepdims=True), True, -1)
    first &= valid_GM
    return first if config.keep in ("single", "piece") else first | (u_GM < config.keep_fraction)


def kept_spans(scene: Scene, config: NcpConfig, key_G: draws.Keys) -> masks.Spans:
    """Cut the disks of all nuclei into row spans, once per key.

    Args:
        scene: one tile for all keys, or a tile for each.
        config: its `radius_um`, `feather_um` and `keep` matter here.
        key_G: one key per perturbation; decides the feathered edge and the cut of a `piece`.
    """
    n_points, device = scene.xy_BP2.shape[1], scene.xy_BP2.device
    xy_GP2 = scene.xy_BP2.expand(len(key_G), -1, -1)
    radius, feather = config.radius_um / scene.mpp, config.feather_um / scene.mpp
    ragged = cut = None
    if feather > 0:
        rows = masks.n_rows(radius + feather / 2)
        # One key per point: padding must not change the numbers of the others.
        point_keys = draws.fold(draws.fold(key_G, Stream.EDGE)[:, None], np.arange(n_points))
        u_GPR2 = draws.uniform(point_keys, 2 * rows).reshape(*point_keys.shape, rows, 2)
        ragged = torch.from_numpy((u_GPR2 - 0.5) * feather).to(device).movedim(-1, 0)
        ragged = ragged.clamp_(min=-radius)
    if config.keep == "piece":
        turn = draws.uniform(draws.fold(key_G, Stream.CUT), n_points) * 2 * math.pi
        cut = torch.from_numpy(turn).to(device)
    return masks.disk_spans(
        xy_GP2, radius, scene.height, scene.width, ragged_2GPR=ragged, cut_GP=cut
    )


def outside_mask(scene: Scene, spans: masks.Spans, kept_GM: Tensor) -> Tensor:
    """Return bool (G, N): true where a pixel is perturbed, false where it is kept.

    Kept are the disks of the kept nuclei without the other nuclei, and the kept nuclei: a
    dropped nucleus is gone, also where it lies in the disk of a kept one. A pixel in two
    outlines belongs to the one that was painted last into the label map.

    Args:
        scene: G tiles.
        spans: of their disks.
        kept_GM: bool, the nuclei that survive, on the scene's device.
    """
    weight = kept_GM
    if scene.owner_BP is not None:
        known = torch.nn.functional.pad(kept_GM, (0, 1))  # and one that is not kept
        weight = known.gather(1, scene.owner_BP.clamp(min=0)) & (scene.owner_BP >= 0)
    outside_GN = masks.outside_disks(spans, weight)
    if scene.label_BN is None:
        return outside_GN
    return masks.rule_labels(outside_GN, scene.label_BN, kept_GM, unite=scene.unite)
