"""Units and frozen geometry: points and sizes are (x, y) and (w, h), arrays are (H, W).

A suffix names the unit everywhere: `_px0` level-0 pixels, `_px` output pixels, `_um`
micrometres, `_mpp` micrometres per pixel, `_s` seconds, `_bytes` bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# A microscope's pixels lie in this range; numbers outside it are print resolutions
# (72 or 300 dots per inch) or units misread, and are treated as missing.
PLAUSIBLE_MPP: Final = (0.05, 5.0)
# An objective of 10× has 1 µm/px on the cameras of slide scanners: 40× has 0.25.
UM_PX_AT_1X: Final = 10.0


class Size(NamedTuple):
    """Width and height in pixels."""

    w: int
    h: int


class Box(NamedTuple):
    """Top-left corner and size in pixels of one level."""

    x: int
    y: int
    w: int
    h: int


def is_plausible_mpp(mpp: float | None) -> bool:
    """Tell whether `mpp` (µm/px) can be a microscope's resolution."""
    return mpp is not None and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def human_bytes(n_bytes: float) -> str:
    """Format a byte count for people: `1.2 GB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
