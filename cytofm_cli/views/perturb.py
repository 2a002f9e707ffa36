"""Nuclei-Centred Perturbation: keep nuclei and what surrounds them, shuffle the rest.

Algorithm 1 of Cyto-SSL (AAAI 2026) in two presets. `paper` is the algorithm as printed; `safe`
removes the shortcuts that it leaves open. The text is ambiguous in places; these are the
readings of its words, each a setting of `NcpConfig`:

| the paper's words | `paper` | `safe` | other readings |
|---|---|---|---|
| "randomly retain part of the nucleus" | `keep="subset"`: a random non-empty subset of the nuclei | same | `all` (Algorithm 1 to the letter), `single` (one nucleus a view), `piece` (half the disk of one nucleus) |
| "outside radius r" | `region="disk"`: disks of 12.5 µm (50 px at 40×) around centroids, united with the nucleus masks where given | same | `boundary`: 12.5 µm from the mask's edge |
| "shuffle pixels" | `fill="pixels"`: one permutation of whole RGB triplets over everything outside | same | `blocks`, `window` (shuffled within windows), `mean`, `blur` |
| same noise for all views? | `redraw="image"`: once an image | `redraw="view"`: subset and noise anew for each view | `noise`: one subset an image, noise anew for each view |
| no nucleus found | `without_nuclei="plain"`: ordinary multi-crop, nothing perturbed, counted | same | `drop` |

`safe` further moves each centre by up to `centre_jitter` of the view's side, feathers the hard
edge over `feather_um`, and leaves a view unperturbed with `clean_probability`. Feathering gives
each row of a disk radii of its own, so that a pixel is kept with a probability that falls
linearly across the edge; nothing is blended, so the shuffle stays an exact permutation.

Perturb before crop and resize, at the tile's own resolution: radii are physical.

Letters: B tiles, V views, G anything batched, M nuclei, N = H · W pixels, K length of an order.
"""  # noqa: E501 - a table cannot be wrapped

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.units import Box
from cytofm_cli.views import draws, masks, pixels
from cytofm_cli.views.config import Fill, Keep, Redraw, Region, WithoutNuclei
from cytofm_cli.views.draws import Stream


@dataclass(frozen=True, kw_only=True)
class NcpConfig(Settings):
    """How nuclei guide the views. The defaults are the `safe` preset."""

    keep: Keep = option("subset", "which nuclei survive")
    keep_fraction: float = option(
        0.5, "probability that a nucleus survives (at least one does)", low=0, high=1
    )
    region: Region = option("disk", "from where the radius counts")
    radius_um: float = option(12.5, "what is kept around a nucleus, µm", low=0)
    fill: Fill = option("pixels", "what replaces the rest")
    block_px: int = option(16, "side of blocks and windows, tile pixels", low=2)
    redraw: Redraw = option("view", "what is drawn anew for each view")
    feather_um: float = option(2.0, "width of the feathered edge, µm", low=0)
    clean_probability: float = option(0.25, "share of unperturbed views", low=0, high=1)
    centred: bool = option(True, "centre views on kept nuclei")
    centre_jitter: float = option(
        0.1, "largest shift of a centre, as a share of the view's side", low=0, high=1
    )
    without_nuclei: WithoutNuclei = option("plain", "what a tile without nuclei becomes")


PRESETS: Final[dict[str, NcpConfig]] = {
    "paper": NcpConfig(redraw="image", feather_um=0.0, clean_probability=0.0, centre_jitter=0.0),
    "safe": NcpConfig(),
    "none": NcpConfig(keep="all", fill="none", centred=False),
}


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
                one[y : y + height, x : x + width]
                for one, (x, y) in zip(image_BHW, corners, strict=True)
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
    """Return int32 (G, N), -1 where a pixel is perturbed and 0 where it is kept.

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


def perturb(
    scene: Scene,
    outside_GN: Tensor,
    key_G: draws.Keys,
    config: NcpConfig,
    within_GN: Tensor | None = None,
) -> Tensor:
    """Replace what lies outside ("shuffle pixels"); the rest stays bit for bit: int32 (G, H, W).

    Args:
        scene: G tiles.
        outside_GN: int32, -1 outside and 0 inside, from `outside_mask`.
        key_G: one key per noise.
        config: its `fill` and `block_px` matter here.
        within_GN: int32; if given, shuffled pixels are dealt only where it is -1, in this
            order, from all of the outside: what `perturb_box` does for one tile.
    """
    word_GN = scene.word_BN
    shape = (-1, scene.height, scene.width)
    word_GHW, outside_GHW = word_GN.view(shape), outside_GN.view(shape)
    if config.fill == "none":
        return word_GHW
    if config.fill == "window":
        return _shuffle_windows(word_GHW, outside_GHW, key_G, config.block_px)
    if config.fill == "blocks":
        return _shuffle_blocks(word_GHW, outside_GHW, key_G, config.block_px)
    if config.fill in ("mean", "blur"):
        fill = _mean_fill if config.fill == "mean" else _blur_fill
        return _blend(word_GHW, fill(word_GHW, outside_GHW), outside_GHW)
    target_outside_GN = outside_GN if within_GN is None else outside_GN & within_GN
    return shuffle_outside(word_GN, target_outside_GN, word_GN, outside_GN, key_G).view(shape)


def perturb_box(
    scene: Scene, outside_1N: Tensor, key_1: draws.Keys, config: NcpConfig, box: Box
) -> Tensor:
    """Perturb one tile and return only a box of it: int32 words (h, w).

    A crop shows a part of the permutation only, so only that part is drawn.
    """
    window = (0, slice(box.y, box.y + box.h), slice(box.x, box.x + box.w))
    if config.fill != "pixels":
        return perturb(scene, outside_1N, key_1, config)[window]
    shape = (-1, scene.height, scene.width)
    seen_1T = scene.word_BN.view(shape)[window].reshape(1, -1)
    seen_outside_1T = outside_1N.view(shape)[window].reshape(1, -1)
    pool = _draw_enough(scene.word_BN, outside_1N, key_1, seen_outside_1T)
    return _deal(seen_1T, seen_outside_1T, pool).view(box.h, box.w)


def shuffle_outside(
    target_GT: Tensor,
    target_outside_GT: Tensor,
    source_GN: Tensor,
    source_outside_GN: Tensor,
    key_G: draws.Keys,
) -> Tensor:
    """Deal source pixels, shuffled, to the outside pixels of a target.

    Goes through all source pixels in a random order, skips those that are
    inside, and hands the k-th of the others to the k-th outside pixel of the target. With
    target = source the outside set is permuted exactly. No step has a shape that depends on
    data, so a batch runs on a GPU without a synchronisation.

    Args:
        target_GT: int32 words.
        target_outside_GT: int32, -1 outside and 0 inside; at most as many outside as below.
        source_GN: int32, negative (top bit set).
        source_outside_GN: as above.
        key_G: decides the order.
    """
    pool, _ = _draw(source_GN, source_outside_GN, key_G, source_GN.shape[1])
    return _deal(target_GT, target_outside_GT, pool)


def _draw(
    source_GN: Tensor, outside_GN: Tensor, key_G: draws.Keys, length: int
) -> tuple[Tensor, Tensor]:
    """Return the outside ones of the first `length` sources, from slot 1 on, and how many.

    The order is k → T(k + a) + b modulo N, with T a fixed random permutation and shifts a, b
    from the key: N² orders, each two shifted reads and one gather instead of a sort.
    """
    n_pixels = source_GN.shape[1]
    shifts = (draws.uniform(key_G, 2) * n_pixels).astype(int).tolist()
    # Inside sources become 0, outside ones stay negative: one gather brings pixel and flag.
    flagged_GN = torch.empty_like(source_GN)
    for g, (_, b) in enumerate(shifts):
        rest = n_pixels - b
        torch.bitwise_and(source_GN[g, b:], outside_GN[g, b:], out=flagged_GN[g, :rest])
        torch.bitwise_and(source_GN[g, :b], outside_GN[g, :b], out=flagged_GN[g, rest:])
    table = _table(n_pixels, source_GN.device)
    drawn_GK = _take(flagged_GN, [table[a : a + length] for a, _ in shifts])
    taken_GK = drawn_GK >> 31
    slot_GK = taken_GK.cumsum(1, dtype=torch.int32)  # -1, -2, …
    count_G = -slot_GK[:, -1]
    slot_GK = slot_GK.mul_(taken_GK)  # 1, 2, … or 0 if skipped
    pool = drawn_GK.new_empty(len(drawn_GK), length + 1)
    return pool.scatter_(1, slot_GK.long(), drawn_GK), count_G


def _deal(target_GT: Tensor, outside_GT: Tensor, pool: Tensor) -> Tensor:
    rank_GT = outside_GT.cumsum(1, dtype=torch.int32).mul_(outside_GT)
    return _blend(target_GT, _take(pool, list(rank_GT)), outside_GT)


def _draw_enough(
    word_1N: Tensor, outside_1N: Tensor, key_1: draws.Keys, needed_1T: Tensor
) -> Tensor:
    """Draw as many outside pixels as `needed_1T` has, and a few more."""
    n_pixels = outside_1N.shape[1]
    needed = -int(needed_1T.sum(dtype=torch.int32))
    share = max(1, -int(outside_1N.sum(dtype=torch.int32))) / n_pixels
    # Six standard deviations for the luck of the draw; if that fails, all of them.
    likely = int((needed + 6 * math.sqrt(needed)) / share) + 64
    for length in (min(likely, n_pixels), n_pixels):
        pool, count_1 = _draw(word_1N, outside_1N, key_1, length)
        if int(count_1) >= needed:
            break
    return pool


def _shuffle_windows(word_GHW: Tensor, outside_GHW: Tensor, key_G: draws.Keys, side: int) -> Tensor:
    n_tiles, height, width = word_GHW.shape
    word, outside = _to_blocks(word_GHW, side), _to_blocks(outside_GHW, side)
    per_tile = len(word) // n_tiles
    keys = draws.fold(key_G[:, None], np.arange(per_tile)).ravel()
    mixed = shuffle_outside(word, outside, word, outside, keys)
    return _from_blocks(mixed, n_tiles, height, width, side)


def _shuffle_blocks(word_GHW: Tensor, outside_GHW: Tensor, key_G: draws.Keys, side: int) -> Tensor:
    """Permute the blocks that lie outside entirely; blocks across an edge stay."""
    n_tiles, height, width = word_GHW.shape
    word = _to_blocks(word_GHW, side)
    n_blocks = len(word) // n_tiles
    free = _to_blocks(outside_GHW, side).amax(1).view(n_tiles, n_blocks)
    number = torch.arange(n_blocks, dtype=torch.int32, device=word.device)
    number = (number | -(1 << 24)).expand(n_tiles, -1)  # negative, as shuffle_outside asks
    moved = shuffle_outside(number, free, number, free, key_G) & 0xFFFFFF
    start = torch.arange(n_tiles, device=word.device).unsqueeze(1) * n_blocks
    mixed = word[(moved + start).view(-1)]
    return _from_blocks(mixed, n_tiles, height, width, side)


def _to_blocks(image_GHW: Tensor, side: int) -> Tensor:
    """Cut images into (G · blocks, side²); what hangs over is padded with 0, that is inside."""
    n_images, height, width = image_GHW.shape
    rows, columns = -(-height // side), -(-width // side)
    over = (0, columns * side - width, 0, rows * side - height)
    padded = torch.nn.functional.pad(image_GHW, over)
    cut = padded.view(n_images, rows, side, columns, side).transpose(2, 3)
    return cut.reshape(-1, side * side)


def _from_blocks(block: Tensor, n_images: int, height: int, width: int, side: int) -> Tensor:
    rows, columns = -(-height // side), -(-width // side)
    image = block.view(n_images, rows, columns, side, side).transpose(2, 3)
    return image.reshape(n_images, rows * side, columns * side)[:, :height, :width].contiguous()


def _mean_fill(word_GHW: Tensor, outside_GHW: Tensor) -> Tensor:
    weight = -outside_GHW.unsqueeze(1).float()
    total = (pixels.unpack(word_GHW).float() * weight).sum((2, 3), keepdim=True)
    mean = total / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return pixels.pack(mean.round().to(torch.uint8)).expand_as(word_GHW)


def _blur_fill(word_GHW: Tensor, _outside_GHW: Tensor) -> Tensor:
    """Blur so much (down to a sixteenth and up) that no nucleus can be told."""
    size = word_GHW.shape[-2:]
    small = (max(1, size[0] // 16), max(1, size[1] // 16))
    resize = torch.nn.functional.interpolate
    rgb = resize(pixels.unpack(word_GHW).float(), small, mode="area")
    rgb = resize(rgb, size, mode="bicubic", align_corners=False)
    return pixels.pack(rgb.round_().clamp_(0, 255).to(torch.uint8))


def _blend(base: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Take `other` where the mask is -1 and `base` where it is 0, without a branch."""
    # torch.where costs ten times as much on a CPU when the mask is noise.
    return (base ^ other).bitwise_and_(mask).bitwise_xor_(base)


def _take(table_GN: Tensor, index_GK: list[Tensor]) -> Tensor:
    """Gather words, row by row of both."""
    if len(index_GK) == 1:
        return table_GN[0].index_select(0, index_GK[0]).unsqueeze(0)
    start = torch.arange(len(table_GN), dtype=torch.int32, device=table_GN.device)
    flat = torch.stack(index_GK).add_(start.unsqueeze(1) * table_GN.shape[1])
    return table_GN.reshape(-1).index_select(0, flat.view(-1)).view(flat.shape)


@lru_cache(maxsize=8)
def _table(n_pixels: int, device: torch.device) -> Tensor:
    """A fixed permutation, written twice so that a shifted read never wraps."""
    order = np.tile(draws.permutation(n_pixels, 1), 2).astype(np.int32)
    return torch.from_numpy(order).to(device)
