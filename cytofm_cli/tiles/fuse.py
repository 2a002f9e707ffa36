"""Fuse focal planes: one picture in which everything is as sharp as in its sharpest plane.

Extended depth of field by selection: at each place the plane with the most detail is taken, as in
Forster et al., "Complex wavelets for extended depth-of-field" (2004), with a Laplacian in place of
wavelets, since cells are larger than what a wavelet would tell apart and it is ten times cheaper.

1. Detail of a plane: |Laplacian| of its grey at about `SEEN_UM` µm/px, less what noise and JPEG
   give, summed over two boxes of `WINDOW_UM` one after the other (a triangle of about 3.5 µm).
2. The plane with the most of it; the middle one unless another has clearly more: where nothing is
   to be seen no plane is better, and the middle one stands.
3. Consistency: the median of the chosen planes within `AGREE_UM`; a pixel does not differ alone.
4. Planes are mixed over `BLEND_UM` where the choice changes.

All sums are of whole numbers and all windows end: a pixel depends on what lies within `halo_px` of
it and on nothing else, so tiles of any grid show the same pixels. Cells of the reduced picture lie
on multiples of its step from the slide's corner.

H, W: pixels. P: planes. h, w: cells of the reduced picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.work.opencv import opencv

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEN_UM: Final = 0.5
WINDOW_UM: Final = 1.5  # half a side
AGREE_UM: Final = 1.0
BLEND_UM: Final = 1.0
# Nothing that a focal plane changes is seen at pixels larger than this.
COARSEST_MPP: Final = 2.0

_NOISE: Final = 4  # grey levels of |Laplacian| at SEEN_UM
# What another plane must have beside the middle one, as a ratio, and in mean grey levels on top.
_MORE: Final = (21, 20)
_LEAST: Final = 0.3
# The mean of so many pixels a side, and how far planes differ in it: more than defocus makes.
ODD_PX: Final = 32
_ODD: Final = 16
_EVERY: Final = 4  # so many samples are enough
_BLOCK: Final = 64  # side of what is mixed at a time, cells: few planes are used in it


@dataclass(frozen=True)
class Windows:
    """Sides of what is looked at, for pixels of one size.

    Attributes:
        step: pixels to a cell of the reduced picture.
        window, agree, blend: half a side, cells.
    """

    step: int
    window: int
    agree: int
    blend: int

    @property
    def halo_px(self) -> int:
        """How far what a pixel depends on reaches, pixels: a multiple of `step`."""
        return self.step * (1 + 2 * self.window + self.agree + self.blend)


def windows_for(mpp: float) -> Windows:
    """Return what is looked at, for pixels of `mpp` µm."""
    step = max(1, round(SEEN_UM / mpp))
    cell_um = mpp * step
    window, agree, blend = (max(1, round(um / cell_um)) for um in (WINDOW_UM, AGREE_UM, BLEND_UM))
    return Windows(step, window, agree, blend)


def fuse(planes: Sequence[NDArray[np.uint8]], middle: int, windows: Windows) -> NDArray[np.uint8]:
    """Fuse planes of one part of a slide, uint8 (H, W, 3).

    Right where `windows.halo_px` of the slide lie around a pixel, or where the slide ends before.

    Args:
        planes: uint8 (H, W, 3) each, lowest first; corners on multiples of `windows.step`.
        middle: the plane that stands where no other is sharper.
        windows: what is looked at.
    """
    chosen_hw = choose([detail(plane, windows) for plane in planes], middle, windows)
    return blend(planes, chosen_hw, windows)


def detail(plane_HWC: NDArray[np.uint8], windows: Windows) -> NDArray[np.int32]:
    """Return how much detail a plane has around each cell, int32 (h, w)."""
    cv2 = opencv()
    grey = cv2.cvtColor(_reduced(plane_HWC, windows.step), cv2.COLOR_RGB2GRAY)
    edges = cv2.convertScaleAbs(cv2.Laplacian(grey, cv2.CV_16S, borderType=cv2.BORDER_REPLICATE))
    edges = cv2.subtract(edges, np.full(1, _NOISE, np.uint8))
    side = (2 * windows.window + 1,) * 2
    how = {"normalize": False, "borderType": cv2.BORDER_REFLECT_101}
    sums: NDArray[np.int32] = cv2.boxFilter(
        cv2.boxFilter(edges, cv2.CV_32S, side, **how), cv2.CV_32S, side, **how
    )
    return sums


def at_odds(planes: Sequence[NDArray[np.uint8]]) -> dict[int, NDArray[np.bool_]]:
    """Tell where a plane is of another brightness than most, as focus does not make it.

    Returns:
        By plane, if there are such places: bool, squares of `ODD_PX` from the corner.
    """
    few = (np.ascontiguousarray(plane[::_EVERY, ::_EVERY]) for plane in planes)
    coarse_PhwC = np.stack([_reduced(plane, ODD_PX // _EVERY) for plane in few]).astype(np.int16)
    middle_hwC = np.median(coarse_PhwC, axis=0)
    limit = _ODD if len(planes) > 2 else _ODD / 2
    odd_Phw = (np.abs(coarse_PhwC - middle_hwC) >= limit).any(3)
    return {plane: odd_Phw[plane] for plane in np.flatnonzero(odd_Phw.any((1, 2))).tolist()}


def choose(
    details: Sequence[NDArray[np.int32]], middle: int, windows: Windows
) -> NDArray[np.uint8]:
    """Return the number of the sharpest plane of each cell, uint8 (h, w)."""
    more, than = _MORE
    least = int(_LEAST * (2 * windows.window + 1) ** 4)  # two boxes
    most_hw = details[middle] // than * more + least
    chosen_hw = np.full(most_hw.shape, middle, np.uint8)
    for number, detail_hw in enumerate(details):
        if number != middle:
            better = detail_hw > most_hw
            chosen_hw[better] = number
            np.copyto(most_hw, detail_hw, where=better)
    smooth: NDArray[np.uint8] = opencv().medianBlur(chosen_hw, 2 * windows.agree + 1)
    return smooth


def blend(
    planes: Sequence[NDArray[np.uint8]], chosen_hw: NDArray[np.uint8], windows: Windows
) -> NDArray[np.uint8]:
    """Put a picture together from the chosen planes, mixed where the choice changes."""
    cv2 = opencv()
    used = np.flatnonzero(np.bincount(chosen_hw.ravel())).tolist()
    if len(used) == 1:
        return planes[used[0]]
    side, how = 2 * windows.blend + 1, {"normalize": False, "borderType": cv2.BORDER_REPLICATE}
    shares = {
        number: cv2.boxFilter((chosen_hw == number).view(np.uint8), cv2.CV_8U, (side, side), **how)
        for number in used
    }
    out = np.empty_like(planes[0])
    for top in range(0, chosen_hw.shape[0], _BLOCK):
        for left in range(0, chosen_hw.shape[1], _BLOCK):
            cells = (slice(top, top + _BLOCK), slice(left, left + _BLOCK))
            y, x = (slice(at.start * windows.step, at.stop * windows.step) for at in cells)
            of_block = {n: share[cells] for n, share in shares.items() if share[cells].any()}
            out[y, x] = _mixed({n: planes[n][y, x] for n in of_block}, of_block, windows)
    return out


def _mixed(
    parts: dict[int, NDArray[np.uint8]], shares: dict[int, NDArray[np.uint8]], windows: Windows
) -> NDArray[np.uint8]:
    """Mix planes of one block by their shares of the cells in a window."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    cv2, total = opencv(), None
    for number, part in parts.items():
        height, width = part.shape[:2]
        share = shares[number].repeat(windows.step, 0).repeat(windows.step, 1)[:height, :width]
        weighed = cv2.multiply(part, cv2.merge([share] * 3), dtype=cv2.CV_16U)
        total = weighed if total is None else cv2.add(total, weighed, dst=total)
    # An odd number of cells: no half to round.
    mixed: NDArray[np.uint8] = cv2.convertScaleAbs(total, alpha=1 / (2 * windows.blend + 1) ** 2)
    return mixed


def _reduced(plane_HWC: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Return means of cells; those at the edge of the slide hold what is left of them."""
    if step == 1:
        return plane_HWC
    height, width = plane_HWC.shape[:2]
    down, right = -height % step, -width % step
    cv2 = opencv()
    if down or right:
        plane_HWC = cv2.copyMakeBorder(plane_HWC, 0, down, 0, right, cv2.BORDER_REPLICATE)
    size = (plane_HWC.shape[1] // step, plane_HWC.shape[0] // step)
    small: NDArray[np.uint8] = cv2.resize(plane_HWC, size, interpolation=cv2.INTER_AREA)
    return small
