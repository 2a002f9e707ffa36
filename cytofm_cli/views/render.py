"""Render a plan: perturb, crop, resize and augment, tile by tile on a CPU or a batch at once.

Letters: B tiles, V views, M nuclei, N = H · W pixels, C colours, H rows, W columns, S side of a
view.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.units import Box
from cytofm_cli.views import augment, crops, draws, perturb, pixels, recolour
from cytofm_cli.views.draws import Stream
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.plan import ViewPlan
from cytofm_cli.views.recipes import Recipe, ViewSpec
from cytofm_cli.views.scene import Scene, build_scene, kept_spans, outside_mask
from cytofm_cli.work.memory import keep_freed

_CHUNK: Final = 64  # tiles at a time on a GPU: one of 512 px takes about 15 MB while resized


@dataclass(frozen=True)
class Source:
    """What views are made from; see `make.make_views`, whose arguments these are."""

    tile_BCHW: Tensor
    xy_BM2: NDArray[np.float64]
    label_BHW: Tensor | None
    ncp: NcpConfig
    mpp: float
    margin_px: int

    def scene(self, rows: slice, plan: ViewPlan) -> tuple[Scene, ViewPlan]:
        """Return some of the tiles and their plan, without nuclei that none of them keeps."""
        # Padding costs time and memory: leave out what is padding in all tiles of the chunk.
        used = plan.kept_BVM[rows].any((0, 1))
        n_used = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0
        xy = torch.from_numpy(np.ascontiguousarray(self.xy_BM2[rows, :n_used], np.float64))
        label = None if self.label_BHW is None else self.label_BHW[rows]
        tile_BCHW = self.tile_BCHW[rows]
        scene = build_scene(tile_BCHW, xy.to(tile_BCHW.device), self.ncp, self.mpp, label)
        return scene, plan.part(rows, n_used)


def render_tiles(source: Source, plan: ViewPlan, recipe: Recipe) -> list[Tensor]:
    """Make one view after the other, on a CPU: a float32 (B, 3, S, S) for each of the recipe."""
    from cytofm_cli.views import recolour_host

    keep_freed()
    n_tiles = len(source.tile_BCHW)
    kinds = []
    for spec, views, drawn in _draw_augments(recipe, plan.keys_B):
        ready = recolour_host.prepare(drawn, recipe.mean, recipe.std)
        # NumPy asks for huge pages: touching fresh memory 4 KiB at a time costs more than a resize.
        room_VBCSS = np.empty((len(views), n_tiles, 3, spec.size_px, spec.size_px), np.float32)
        kinds.append((views, ready, room_VBCSS))
    with torch.inference_mode():  # twenty small calls a view set do without autograd
        for b in range(n_tiles):
            scene, its_plan = source.scene(slice(b, b + 1), plan)
            crop_V = _crops_of_tile(scene, its_plan, source.ncp, source.margin_px)
            small_V = [
                crops.resize_crop(crop_HWC, spec.size_px)
                for crop_HWC, spec in zip(crop_V, recipe.views, strict=True)
            ]
            for views, ready, room_VBCSS in kinds:
                of_kind = small_V[views[0] : views[-1] + 1]
                recolour_host.apply(of_kind, ready, b, n_tiles, room_VBCSS[:, b])
    return [torch.from_numpy(view_BCSS) for *_, room_VBCSS in kinds for view_BCSS in room_VBCSS]


def render_batch(source: Source, plan: ViewPlan, recipe: Recipe) -> list[Tensor]:
    """Make the views of many tiles at once, on any device; as `render_tiles` but for rounding."""
    n_tiles, device = len(source.tile_BCHW), source.tile_BCHW.device
    ready_V: list[tuple[recolour.Prepared, int]] = []
    views_BCSS: list[Tensor] = []
    for spec, views, drawn in _draw_augments(recipe, plan.keys_B):
        ready = recolour.prepare(drawn, spec.size_px, device, recipe.mean, recipe.std)
        ready_V += [(ready, nth * n_tiles) for nth in range(len(views))]
        shape = (n_tiles, 3, spec.size_px, spec.size_px)
        views_BCSS += [torch.empty(shape, dtype=torch.float32, device=device) for _ in views]
    for first in range(0, n_tiles, _CHUNK):
        rows = slice(first, min(first + _CHUNK, n_tiles))
        scene, its_plan = source.scene(rows, plan)
        canvases = _canvases_of_batch(scene, its_plan, source.ncp, source.margin_px)
        for (word_BHW, boxes), (ready, offset), view_BCSS in zip(
            canvases, ready_V, views_BCSS, strict=True
        ):
            small_BSS = crops.resize_boxes(word_BHW, boxes, view_BCSS.shape[-1])
            these = slice(offset + rows.start, offset + rows.stop)
            recolour.apply(small_BSS, ready, these, view_BCSS[rows])
    return views_BCSS


def perturbation_of(
    scene: Scene, plan: ViewPlan, ncp: NcpConfig, view: int
) -> tuple[Tensor, Tensor]:
    """Perturb whole tiles as one of their views has it, for drawing and for tests.

    Returns:
        words int32 (B, H, W), and bool (B, N), true where perturbed. Where each view has its
        own noise, the view deals the same pixels in the order of its box instead.
    """
    keys_B = _noise_keys(plan.keys_B, np.array([view]), ncp)
    spans = kept_spans(scene, ncp, keys_B)
    kept_BM = torch.from_numpy(plan.kept_BVM[:, view]).to(scene.word_BN.device)
    outside_BN = outside_mask(scene, spans, kept_BM)
    clean_B = torch.from_numpy(plan.clean_BV[:, view]).to(scene.word_BN.device)
    outside_BN = outside_BN & ~clean_B[:, None]
    return perturb.perturb(scene, outside_BN, keys_B, ncp), outside_BN


def _draw_augments(
    recipe: Recipe, keys_B: draws.Keys
) -> Iterator[tuple[ViewSpec, list[int], augment.AugmentDraw]]:
    """Draw for neighbouring views of one kind together: view by view, in each tile by tile."""
    for spec, numbered in itertools.groupby(enumerate(recipe.views), key=lambda item: item[1]):
        views = [number for number, _ in numbered]
        keys_VB = draws.fold(keys_B, Stream.VIEW + np.array(views)[:, None])
        drawn = augment.draw(draws.fold(keys_VB, Stream.AUGMENT).ravel(), spec.augment)
        yield spec, views, drawn


def _crops_of_tile(
    scene: Scene, plan: ViewPlan, ncp: NcpConfig, margin: int
) -> Iterator[NDArray[np.uint8]]:
    """Perturb one tile and cut out its views, one after the other: uint8 RGB (h, w, 3)."""
    word_HW = scene.word_BN.view(scene.height, scene.width)
    dirty = np.flatnonzero(~plan.clean_BV[0])
    clean_HW3 = None if len(dirty) == plan.clean_BV.shape[1] else pixels.rgb_on_host(word_HW)
    if _once(ncp):
        perturbed_HW3 = None
        if len(dirty):
            perturbed_HW3 = pixels.rgb_on_host(_perturb_tile(scene, plan, dirty[0], ncp))
        for v, clean in enumerate(plan.clean_BV[0]):
            yield _cut(clean_HW3 if clean else perturbed_HW3, plan.box(0, v))
        return
    corner_BV2 = _corners(scene, plan, margin)
    height, width = scene.height - 2 * margin, scene.width - 2 * margin
    if len(dirty):
        keys_G = _noise_keys(plan.keys_B, dirty, ncp)
        spans = kept_spans(_around(scene, corner_BV2[0, dirty], margin), ncp, keys_G)
        kept_VM = torch.from_numpy(plan.kept_BVM[0])
    row = 0
    for v, clean in enumerate(plan.clean_BV[0]):
        if clean:
            yield _cut(clean_HW3, plan.box(0, v))
            continue
        window = scene.windows(corner_BV2[:, v], height, width)
        outside = outside_mask(window, spans.row(row), kept_VM[v : v + 1])
        box = _moved(plan.box(0, v), corner_BV2[0, v])
        view_HW = perturb.perturb_box(window, outside, keys_G[row : row + 1], ncp, box)
        yield pixels.rgb_on_host(view_HW)
        row += 1


def _perturb_tile(scene: Scene, plan: ViewPlan, view: int, ncp: NcpConfig) -> Tensor:
    """Perturb one tile for all of its views: int32 words (H, W)."""
    keys_1 = _noise_keys(plan.keys_B, np.array([view]), ncp)
    spans = kept_spans(scene, ncp, keys_1)
    outside = outside_mask(scene, spans, torch.from_numpy(plan.kept_BVM[:1, view]))
    return perturb.perturb_box(scene, outside, keys_1, ncp, Box(0, 0, scene.width, scene.height))


def _canvases_of_batch(
    scene: Scene, plan: ViewPlan, ncp: NcpConfig, margin: int
) -> Iterator[tuple[Tensor, list[Box]]]:
    """Perturb all tiles at once, view by view: int32 words (B, H, W), and the crops to take."""
    n_tiles, device, once = len(scene.word_BN), scene.word_BN.device, _once(ncp)
    corner_BV2 = _corners(scene, plan, margin)
    height, width = scene.height - 2 * margin, scene.width - 2 * margin
    perturbed_BHW: Tensor | None = None
    for v in range(plan.clean_BV.shape[1]):
        boxes, part = [plan.box(b, v) for b in range(n_tiles)], scene
        if not once:
            part = scene.windows(corner_BV2[:, v], height, width)
            boxes = [_moved(*pair) for pair in zip(boxes, corner_BV2[:, v], strict=True)]
            perturbed_BHW = None
        word_BHW = part.word_BN.view(-1, part.height, part.width)
        if not plan.clean_BV[:, v].all():
            if perturbed_BHW is None:
                keys_B = _noise_keys(plan.keys_B, np.array([v]), ncp)
                spans = kept_spans(part, ncp, keys_B)
                kept_BM = torch.from_numpy(plan.kept_BVM[:, v]).to(device)
                within = None if once else _within(boxes, part, device)
                outside = outside_mask(part, spans, kept_BM)
                perturbed_BHW = perturb.perturb(part, outside, keys_B, ncp, within)
            clean = torch.from_numpy(plan.clean_BV[:, v]).to(device)
            word_BHW = torch.where(clean[:, None, None], word_BHW, perturbed_BHW)
        yield word_BHW, boxes


def _corners(scene: Scene, plan: ViewPlan, margin: int) -> NDArray[np.int64]:
    """Return the corner of the tile-sized window around each view, int64 (B, V, 2).

    A view with noise of its own is perturbed in such a window: pixels are dealt from as far
    around it as the tile is wide, and the cost is that of the tile, not of the canvas.
    """
    side = np.array([scene.width, scene.height]) - 2 * margin
    centred: NDArray[np.int64] = plan.boxes_BV4[..., :2] + (plan.boxes_BV4[..., 2:] - side) // 2
    return np.clip(centred, 0, 2 * margin)


def _around(scene: Scene, corner_V2: NDArray[np.int64], margin: int) -> Scene:
    """Return where the points of one tile lie in the windows around some of its views."""
    if not margin:
        return scene
    return replace(
        scene,
        height=scene.height - 2 * margin,
        width=scene.width - 2 * margin,
        xy_BP2=scene.xy_BP2 - torch.from_numpy(corner_V2).to(scene.xy_BP2).unsqueeze(1),
    )


def _cut(rgb_HW3: NDArray[np.uint8] | None, box: Box) -> NDArray[np.uint8]:
    assert rgb_HW3 is not None  # made where a view needs it
    return rgb_HW3[box.y : box.y + box.h, box.x : box.x + box.w]


def _moved(box: Box, corner_2: NDArray[np.int64]) -> Box:
    x, y = corner_2.tolist()
    return Box(box.x - x, box.y - y, box.w, box.h)


def _once(ncp: NcpConfig) -> bool:
    """Tell whether all views of a tile share one perturbation; with `single`, none do."""
    return ncp.redraw == "image" and ncp.keep != "single"


def _noise_keys(key_B: draws.Keys, views: NDArray[np.intp], ncp: NcpConfig) -> draws.Keys:
    """Return a key for each pair of tile and view, flat."""
    counter = np.zeros(1, np.intp) if _once(ncp) else Stream.VIEW + views
    return draws.fold(draws.fold(key_B[:, None], counter), Stream.NOISE).ravel()


def _within(boxes: list[Box], scene: Scene, device: torch.device) -> Tensor:
    """Return bool (B, N), true inside each tile's box."""
    x, y, w, h = (side.view(-1, 1) for side in torch.tensor(boxes, device=device).unbind(1))
    column = torch.arange(scene.width, device=device)
    row = torch.arange(scene.height, device=device)
    across, down = (column >= x) & (column < x + w), (row >= y) & (row < y + h)
    return (down[:, :, None] & across[:, None]).flatten(1)
