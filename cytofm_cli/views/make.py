"""From tiles and nuclei to a set of views: draw a plan on the host, render it on the device.

Letters: B tiles, V views, M nuclei, C colours, H rows, W columns, S side of a view.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import UsageError
from cytofm_cli.units import Box, is_plausible_mpp
from cytofm_cli.views import augment, crops, draws, perturb
from cytofm_cli.views.draws import Stream
from cytofm_cli.views.perturb import NcpConfig, Scene
from cytofm_cli.views.recipes import Recipe

_CHUNK: Final = 64  # tiles at a time on a GPU: one of 512 px takes about 15 MB while resized


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
    kept_BVM = perturb.keep_nuclei(draws.fold(keep_keys, Stream.KEEP), valid_BVM, ncp, around_BVM)
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
        sliced: cut one crop after the other (default on a CPU) or resize whole batches by
            matrix products (default elsewhere). Same draws, views equal but for rounding.

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
    device = tile_BCHW.device
    sliced = device.type == "cpu" if sliced is None else sliced
    groups = _groups(recipe, keys_B, device)
    step = 1 if sliced else _CHUNK
    for first in range(0, n_tiles, step):
        rows = slice(first, min(first + step, n_tiles))
        # Padding costs time and memory: leave out what is padding in all tiles of the chunk.
        used = plan.kept_BVM[rows].any((0, 1))
        n_used = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0
        xy = torch.from_numpy(np.ascontiguousarray(xy_BM2[rows, :n_used], np.float64))
        label = None if label_BHW is None else label_BHW[rows]
        scene = perturb.build_scene(tile_BCHW[rows], xy.to(device), ncp, mpp, label)
        words = [group.words(rows.stop - rows.start) for group in groups]
        cut = _cut_sliced if sliced else _cut_batched
        some_views = [view for some in words for view in some]
        cut(scene, plan.part(rows, n_used), ncp, margin_px, some_views)
        for group, word_VBSS in zip(groups, words, strict=True):
            group.finish(word_VBSS, rows)
    views = [view for group in groups for view in group.out_VBCSS]
    return ViewSet(views, plan, np.arange(n_tiles), n_without)


@dataclass(frozen=True)
class _Group:
    """Neighbouring views of one kind, augmented together.

    Attributes:
        ready: their draws, view by view and in each tile by tile.
        out_VBCSS: where the views go.
    """

    ready: augment.Prepared
    out_VBCSS: Tensor

    def words(self, n_tiles: int) -> Tensor:
        """Return room for the packed views of some tiles."""
        n_views, _, _, side, _ = self.out_VBCSS.shape
        shape = (n_views, n_tiles, side, side)
        return torch.empty(shape, dtype=torch.int32, device=self.out_VBCSS.device)

    def finish(self, word_VBSS: Tensor, rows: slice) -> None:
        """Augment the views of some tiles."""
        n_tiles, (n_views, n_some) = self.out_VBCSS.shape[1], word_VBSS.shape[:2]
        if n_some == 1:
            every = slice(rows.start, None, n_tiles)
            augment.apply(word_VBSS[:, 0], self.ready, every, self.out_VBCSS[:, rows.start])
            return
        for v in range(n_views):
            these = slice(v * n_tiles + rows.start, v * n_tiles + rows.stop)
            augment.apply(word_VBSS[v], self.ready, these, self.out_VBCSS[v, rows])


def _groups(recipe: Recipe, keys_B: draws.Keys, device: torch.device) -> list[_Group]:
    """Draw the augmentation of all views and make room for them."""
    groups = []
    for spec, run in itertools.groupby(enumerate(recipe.views), key=lambda item: item[1]):
        numbers = np.array([number for number, _ in run])
        keys_VB = draws.fold(draws.fold(keys_B, Stream.VIEW + numbers[:, None]), Stream.AUGMENT)
        drawn = augment.draw(keys_VB.ravel(), spec.augment)
        ready = augment.prepare(drawn, spec.size_px, device, recipe.mean, recipe.std)
        shape = (*keys_VB.shape, 3, spec.size_px, spec.size_px)
        groups.append(_Group(ready, _room(shape, device)))
    return groups


def _room(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return an empty float32 tensor for finished views."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.float32, device=device)
    # NumPy asks for huge pages: touching fresh memory 4 KiB at a time costs more than a resize.
    return torch.from_numpy(np.empty(shape, np.float32))


def _cut_sliced(
    scene: Scene, plan: ViewPlan, ncp: NcpConfig, margin: int, small: list[Tensor]
) -> None:
    """Perturb, crop and resize the views of one tile, one after the other."""
    once = _once(ncp)
    dirty = np.flatnonzero(~plan.clean_BV[0])
    perturbed_HW = word_HW = scene.word_BN.view(scene.height, scene.width)
    if len(dirty):
        turns = dirty[:1] if once else dirty
        keys_G = _noise_keys(plan.keys_B, turns, ncp)
        kept_VM = torch.from_numpy(plan.kept_BVM[0])
        row_of = {int(view): row for row, view in enumerate(turns)}
    if len(dirty) and once:
        spans = perturb.kept_spans(scene, ncp, keys_G)
        outside = perturb.outside_mask(scene, spans, kept_VM[:1])
        perturbed_HW = perturb.perturb(scene, outside, keys_G, ncp)[0]
    elif len(dirty):
        spans = perturb.kept_spans(_around(scene, plan, dirty, margin), ncp, keys_G)
    for v, out in enumerate(small):
        box = plan.box(0, v)
        if once or plan.clean_BV[0, v]:
            source = word_HW if plan.clean_BV[0, v] else perturbed_HW
            crop = source[box.y : box.y + box.h, box.x : box.x + box.w]
        else:
            row, corner_B2 = row_of[v], _corners(scene, plan, v, margin)
            part = scene.windows(corner_B2, scene.height - 2 * margin, scene.width - 2 * margin)
            outside = perturb.outside_mask(part, spans.row(row), kept_VM[v : v + 1])
            box = _moved(box, corner_B2[0])
            crop = perturb.perturb_box(part, outside, keys_G[row : row + 1], ncp, box)
        crops.resize_crop(crop, out[0])


def _cut_batched(
    scene: Scene, plan: ViewPlan, ncp: NcpConfig, margin: int, small: list[Tensor]
) -> None:
    """Perturb, crop and resize all tiles at once, one view number after the other."""
    n_tiles, device, once = len(scene.word_BN), scene.word_BN.device, _once(ncp)
    perturbed_BHW: Tensor | None = None
    for v, out in enumerate(small):
        boxes, part = [plan.box(row, v) for row in range(n_tiles)], scene
        if not once:
            corner_B2 = _corners(scene, plan, v, margin)
            part = scene.windows(corner_B2, scene.height - 2 * margin, scene.width - 2 * margin)
            boxes = [_moved(box, corner) for box, corner in zip(boxes, corner_B2, strict=True)]
            perturbed_BHW = None
        source_BHW = word_BHW = part.word_BN.view(-1, part.height, part.width)
        if not plan.clean_BV[:, v].all():
            if perturbed_BHW is None:
                keys_B = _noise_keys(plan.keys_B, np.array([v]), ncp)
                spans = perturb.kept_spans(part, ncp, keys_B)
                kept_BM = torch.from_numpy(plan.kept_BVM[:, v]).to(device)
                outside = perturb.outside_mask(part, spans, kept_BM)
                within = None if once else _within(boxes, part, device)
                perturbed_BHW = perturb.perturb(part, outside, keys_B, ncp, within)
            clean = torch.from_numpy(plan.clean_BV[:, v]).to(device)
            source_BHW = torch.where(clean[:, None, None], word_BHW, perturbed_BHW)
        out.copy_(crops.resize_boxes(source_BHW, boxes, out.shape[-1]))


def _corners(scene: Scene, plan: ViewPlan, view: int, margin: int) -> NDArray[np.int64]:
    """Return the corner of the tile-sized window around a view of each tile, int64 (B, 2).

    A view with noise of its own is perturbed in such a window: pixels are dealt from as far
    around it as the tile is wide, and the cost is that of the tile, not of the canvas.
    """
    boxes_B4 = plan.boxes_BV4[:, view]
    side = np.array([scene.width, scene.height]) - 2 * margin
    centred: NDArray[np.int64] = boxes_B4[:, :2] + (boxes_B4[:, 2:] - side) // 2
    return np.clip(centred, 0, 2 * margin)


def _around(scene: Scene, plan: ViewPlan, views: NDArray[np.intp], margin: int) -> Scene:
    """Return where the points of one tile lie in the windows around some of its views."""
    if not margin:
        return scene
    corner_V2 = np.concatenate([_corners(scene, plan, v, margin) for v in views.tolist()])
    return replace(
        scene,
        height=scene.height - 2 * margin,
        width=scene.width - 2 * margin,
        xy_BP2=scene.xy_BP2 - torch.from_numpy(corner_V2).to(scene.xy_BP2).unsqueeze(1),
    )


def _moved(box: Box, corner_2: NDArray[np.int64]) -> Box:
    x, y = corner_2.tolist()
    return Box(box.x - x, box.y - y, box.w, box.h)


def perturbation_of(
    scene: Scene, plan: ViewPlan, ncp: NcpConfig, view: int
) -> tuple[Tensor, Tensor]:
    """Perturb whole tiles as one of their views has it, for drawing and for tests.

    Returns:
        words int32 (B, H, W), and int32 (B, N), -1 where perturbed. Where each view has its
        own noise, the view deals the same pixels in the order of its box instead.
    """
    keys_B = _noise_keys(plan.keys_B, np.array([view]), ncp)
    spans = perturb.kept_spans(scene, ncp, keys_B)
    kept_BM = torch.from_numpy(plan.kept_BVM[:, view]).to(scene.word_BN.device)
    outside_BN = perturb.outside_mask(scene, spans, kept_BM)
    clean_B = torch.from_numpy(plan.clean_BV[:, view]).to(scene.word_BN.device)
    outside_BN = outside_BN * ~clean_B[:, None]
    return perturb.perturb(scene, outside_BN, keys_B, ncp), outside_BN


def _once(ncp: NcpConfig) -> bool:
    """Tell whether all views of a tile share one perturbation; with `single`, none do."""
    return ncp.redraw == "image" and ncp.keep != "single"


def _noise_keys(key_B: draws.Keys, views: NDArray[np.intp], ncp: NcpConfig) -> draws.Keys:
    """Return a key for each pair of tile and view, flat."""
    counter = np.zeros(1, np.intp) if _once(ncp) else Stream.VIEW + views
    return draws.fold(draws.fold(key_B[:, None], counter), Stream.NOISE).ravel()


def _within(boxes: list[Box], scene: Scene, device: torch.device) -> Tensor:
    """Return int32 (B, N), -1 inside each tile's box."""
    x, y, w, h = (side.view(-1, 1) for side in torch.tensor(boxes, device=device).unbind(1))
    column = torch.arange(scene.width, device=device)
    row = torch.arange(scene.height, device=device)
    across, down = (column >= x) & (column < x + w), (row >= y) & (row < y + h)
    return -(down[:, :, None] & across[:, None]).to(torch.int32).flatten(1)


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
