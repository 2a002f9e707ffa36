"""Detect over a slide tile by tile, as if it were one image.

Each tile is read with a margin (halo), so that a nucleus on its border is seen whole, and
keeps only the nuclei whose centroid lies in its own box. Boxes are half-open, so every point
belongs to at most one of them. What a centroid that jitters across a seam could still double
is found by looking at close pairs from different tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import OutOfMemoryError, UsageError
from cytofm_cli.nuclei.base import NucleusDetector, NucleusTable, concatenate, empty_table
from cytofm_cli.units import Box, Size

ReadBox = Callable[[Box], NDArray[np.uint8]]

# Two nuclei from different tiles are one if their centroids are closer than this share of the
# smaller one's radius. Real neighbours are at least a radius apart.
SAME_RADIUS_SHARE = 0.5
# The detectors' working grids: a halo box that starts at a multiple of these has the same
# pixel phase in every tile, so the numbers are the same to the last bit.
ALIGN_PX = 8
# Of an outline that was seen: with less than this it is half a nucleus and half its mirror image.
MIN_KNOWN_SHARE = 0.75
MIN_PART_PX = 64  # below this a tile is mostly margin, and quarters save nothing


def detect_tiles(
    detector: NucleusDetector,
    read: ReadBox,
    boxes: Iterable[Box],
    *,
    size_px: Size,
    mpp: float,
    downsample: float = 1.0,
) -> NucleusTable:
    """Detect the nuclei of the union of `boxes`.

    Args:
        detector: finds nuclei in one image.
        read: returns the pixels of a box of the level that is read, uint8 (box.h, box.w, 3).
            It is never asked for pixels outside the level.
        boxes: parts of the level, in any order; where they overlap, a nucleus counts once.
        size_px: size of the level.
        mpp: µm/px of the level.
        downsample: level-0 pixels to a pixel of the level.

    Returns:
        Nuclei in level-0 pixels, in canonical order, whatever the order of `boxes`.

    Raises:
        UsageError: a box is empty or does not lie inside the level.
        InputError: as the detector raises it.
    """
    parts = [
        detect_tile(detector, read, box, size_px=size_px, mpp=mpp) for box in sorted(set(boxes))
    ]
    return merge_tiles(parts, mpp=mpp, classes=detector.classes).moved(scale=downsample)


def detect_tile(
    detector: NucleusDetector, read: ReadBox, box: Box, *, size_px: Size, mpp: float
) -> NucleusTable:
    """Detect the nuclei whose centroid lies in one box; see `detect_tiles`.

    Returns:
        Coordinates in pixels of the level; polygons may reach over the box.
    """
    if box.w < 1 or box.h < 1 or box.x < 0 or box.y < 0:
        raise UsageError(f"{box} is not a part of an image.")
    if box.x + box.w > size_px.w or box.y + box.h > size_px.h:
        raise UsageError(f"{box} does not lie inside {size_px.w} x {size_px.h} pixels.")
    outer = with_halo(box, round(detector.halo_um / mpp), size_px)
    found = detector.detect(read(outer), mpp).moved(shift_px=(outer.x, outer.y))
    x, y = found.xy_px0.T
    # A centroid on the far border of the level has no next box to belong to.
    right = box.x + box.w + (box.x + box.w == size_px.w)
    below = box.y + box.h + (box.y + box.h == size_px.h)
    own = (x >= box.x) & (x < right) & (y >= box.y) & (y < below)
    return found.take(np.nonzero(own)[0])


def detect_tile_in_parts(
    detector: NucleusDetector, read: ReadBox, box: Box, *, size_px: Size, mpp: float
) -> tuple[NucleusTable, int]:
    """Detect as `detect_tile` does; a tile that memory cannot hold is done in quarters.

    Returns:
        The nuclei, and how many boxes had to be quartered: 0 if all went well. A network may
        give slightly other numbers for another crop, so the count belongs in a report.

    Raises:
        OutOfMemoryError: not even a box of less than 2 `MIN_PART_PX` fits.
    """
    try:
        return detect_tile(detector, read, box, size_px=size_px, mpp=mpp), 0
    except OutOfMemoryError:
        if min(box.w, box.h) < 2 * MIN_PART_PX:
            raise
    w, h = box.w // 2, box.h // 2
    found = [
        detect_tile_in_parts(detector, read, part, size_px=size_px, mpp=mpp)
        for part in (
            Box(box.x, box.y, w, h),
            Box(box.x + w, box.y, box.w - w, h),
            Box(box.x, box.y + h, w, box.h - h),
            Box(box.x + w, box.y + h, box.w - w, box.h - h),
        )
    ]
    table = merge_tiles([part for part, _ in found], mpp=mpp, classes=detector.classes)
    return table, 1 + sum(count for _, count in found)


def without_cut(table: NucleusTable, known_HW: NDArray[np.bool_], corner: Box) -> NucleusTable:
    """Leave out nuclei of whose outline less than `MIN_KNOWN_SHARE` lies where pixels are known.

    Args:
        table: in pixels of the level; bare points stay.
        known_HW: False where pixels were made up.
        corner: the box of `known_HW`.
    """
    lengths = np.diff(table.contour_start)
    if known_HW.all() or not lengths.any():
        return table
    index = np.floor(table.contour_px0 - np.array([corner.x, corner.y])).astype(np.int64)
    x, y = np.clip(index, 0, np.array(known_HW.shape)[::-1] - 1).T
    total = np.concatenate([[0], np.cumsum(known_HW[y, x])])
    seen = total[table.contour_start[1:]] - total[table.contour_start[:-1]]
    return table.take(np.flatnonzero(seen >= MIN_KNOWN_SHARE * lengths))


def merge_tiles(parts: list[NucleusTable], *, mpp: float, classes: tuple[str, ...]) -> NucleusTable:
    """Join the nuclei of tiles, in canonical order, each nucleus once.

    Args:
        parts: one table a tile, all in pixels of one level.
        mpp: µm/px of that level.
        classes: names of the classes when there is no nucleus at all.
    """
    tile = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if not len(tile):
        return empty_table(classes)
    table = concatenate(parts)
    twice = _seen_twice(table, tile, mpp)
    return table.take(np.nonzero(~twice)[0]).sorted()


def joined(boxes: Iterable[Box], most_px: int) -> list[Box]:
    """Join boxes that share whole sides to rectangles of at most `most_px` a side.

    Detecting in one rectangle is as good as tile by tile, and its margin is read only once.

    Args:
        boxes: tiles; repeated ones count once.
        most_px: a tile that is larger alone stays as it is.

    Returns:
        Rectangles that cover what the tiles cover, whatever their order.
    """
    free = {(box.y, box.x): box for box in sorted(set(boxes), key=lambda b: (b.w, b.h))}
    found = []
    for key in sorted(free):
        if key not in free:
            continue
        first = free.pop(key)
        row, right = [first], first.x + first.w
        while (after := free.get((first.y, right))) and after.h == first.h:
            if right + after.w - first.x > most_px:
                break
            row.append(free.pop((first.y, right)))
            right += after.w
        below = first.y + first.h
        while below - first.y < most_px:
            under = [free.get((below, box.x)) for box in row]
            height = under[0].h if under[0] else 0
            whole = all(b and (b.w, b.h) == (a.w, height) for a, b in zip(row, under, strict=True))
            if not whole or below + height - first.y > most_px:
                break
            for box in row:
                del free[(below, box.x)]
            below += height
        found.append(Box(first.x, first.y, right - first.x, below - first.y))
    return found


def with_halo(box: Box, halo_px: int, size_px: Size) -> Box:
    """Grow a box by `halo_px`, to multiples of `ALIGN_PX`, inside the level."""
    x = max(0, (box.x - halo_px) // ALIGN_PX * ALIGN_PX)
    y = max(0, (box.y - halo_px) // ALIGN_PX * ALIGN_PX)
    right = min(size_px.w, -(-(box.x + box.w + halo_px) // ALIGN_PX) * ALIGN_PX)
    below = min(size_px.h, -(-(box.y + box.h + halo_px) // ALIGN_PX) * ALIGN_PX)
    return Box(x, y, right - x, below - y)


def _seen_twice(table: NucleusTable, tile: NDArray[np.intp], mpp: float) -> NDArray[np.bool_]:
    """Mark the worse of two rows from different tiles that are the same nucleus."""
    from scipy.spatial import cKDTree

    drop = np.zeros(len(table), bool)
    # A bare point has no area: half a pixel tells it from its copy.
    area = np.nan_to_num(table.area_um2, nan=0.0)
    radius_px = np.maximum(np.sqrt(area / np.pi) / mpp, 1.0)
    reach = SAME_RADIUS_SHARE * float(radius_px.max())
    pairs = cKDTree(table.xy_px0).query_pairs(reach, output_type="ndarray")
    pairs = pairs[tile[pairs[:, 0]] != tile[pairs[:, 1]]]
    gap = np.linalg.norm(table.xy_px0[pairs[:, 0]] - table.xy_px0[pairs[:, 1]], axis=1)
    same = pairs[gap < SAME_RADIUS_SHARE * radius_px[pairs].min(axis=1)]
    if not len(same):
        return drop
    # The better one stays; ties by position and never by the order of tiles.
    x, y = table.xy_px0.T
    rank = np.empty(len(table), np.int64)
    rank[np.lexsort((x, y, -area, -table.probability))] = np.arange(len(table))
    for i, j in same[np.lexsort(np.sort(rank[same], axis=1).T[::-1])]:
        worse, better = (i, j) if rank[i] > rank[j] else (j, i)
        if not drop[better]:
            drop[worse] = True
    return drop
