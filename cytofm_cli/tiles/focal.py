"""Slides of several focal planes: which plane each tile is of, and the slide as its tiles show it.

The sharpest plane of a tile is the one with the most energy of differences between neighbours at
1 µm/px (`focus.FocusMap.near_HW`) over its foreground: the planes show the same cells on the same
glass, so what differs is focus alone. The score of `focus` does not do for it: it is the slope of
a structure function, which does not know contrast, so that the noise of a blurred plane counts as
detail (docs/focus.md has the numbers). Planes within `TIE` of the sharpest are as sharp as it; of
those the nearest to the middle is taken, then the lower one. A blank tile is such a tie.

N: tiles. P: planes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import NativeJpeg, SlideInfo, SlideReader
from cytofm_cli.tiles.focal_word import PLANE, number_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cytofm_cli.tiles.focus import FocusMap

# Relative; what noise changes in a blank tile, and focus in less than the step of a stack.
TIE: Final = 0.03


@dataclass(frozen=True, eq=False, kw_only=True)
class TilePlanes:
    """The planes of tiles.

    Attributes:
        plane_N: int16, of each tile; with "fuse" the sharpest one.
        focus_NP: float32, focus score of each plane of each tile, 0 to 1.
        detail_NP: float32, energy of detail of each plane beside the tile's sharpest, 0 to 1; all
            1 where the tile is blank. The choice follows it.
    """

    plane_N: NDArray[np.int16]
    focus_NP: NDArray[np.float32]
    detail_NP: NDArray[np.float32]

    def scores(self) -> NDArray[np.float32]:
        """Focus score of each tile in its plane."""
        rows = np.arange(len(self.plane_N))
        focus: NDArray[np.float32] = self.focus_NP[rows, self.plane_N]
        return focus

    def take(self, rows: NDArray[np.int64]) -> TilePlanes:
        """Return some tiles."""
        return TilePlanes(
            plane_N=self.plane_N[rows],
            focus_NP=self.focus_NP[rows],
            detail_NP=self.detail_NP[rows],
        )


def focus_of(info: SlideInfo, focus: str) -> str | None:
    """Return what "best", "fuse" or "plane:K" comes to for a slide; None if it has one plane.

    A slide of which the reader shows one plane only is read at that one.

    Raises:
        SlideError: it has no plane of this number, or the reader cannot show it.
    """
    if info.n_focal_planes == 1:
        return None
    wanted = number_of(focus)
    if wanted is None:
        return focus if info.reads_planes else f"{PLANE}{info.focal_plane}"
    if wanted >= info.n_focal_planes:
        raise SlideError(
            f"{info.path}: no focal plane {wanted}; it has {info.n_focal_planes}.",
            hint=f"planes count from 0 to {info.n_focal_planes - 1}; --focus best takes the "
            "sharpest of each tile.",
        )
    return f"{PLANE}{wanted}"


def at_focus(reader: SlideReader, focus: str | None) -> SlideReader:
    """Return the slide at the plane of "plane:K"; else as it is.

    Raises:
        SlideError: the reader cannot show it.
    """
    wanted = None if focus is None else number_of(focus)
    return reader if wanted is None else reader.at_plane(wanted)


def find_planes(
    reader: SlideReader,
    measure: Callable[[SlideReader], FocusMap],
    xy_px0: NDArray[np.int32],
    tile_px0: float,
) -> TilePlanes:
    """Find the sharpest plane of each tile.

    Args:
        reader: of a slide whose planes it reads.
        measure: measures the energies of one plane.
        xy_px0: (N, 2) top-left corners.
        tile_px0: side of a tile.
    """
    n_planes = reader.info.n_focal_planes
    focus_NP = np.zeros((len(xy_px0), n_planes), np.float32)
    energy_NP = np.zeros((len(xy_px0), n_planes))
    for plane in range(n_planes):  # one map at a time: they are as large as the slide
        energies = measure(reader.at_plane(plane))
        focus_NP[:, plane] = energies.score(xy_px0, tile_px0)
        energy_NP[:, plane] = energies.detail(xy_px0, tile_px0)
    most_N1 = energy_NP.max(1, keepdims=True)
    detail_NP = np.divide(energy_NP, most_N1, out=np.ones_like(energy_NP), where=most_N1 > 0)
    return TilePlanes(
        plane_N=sharpest(detail_NP, reader.info.focal_plane),
        focus_NP=focus_NP,
        detail_NP=detail_NP.astype(np.float32),
    )


def sharpest(detail_NP: NDArray[np.floating], middle: int) -> NDArray[np.int16]:
    """Return the plane of the most detail; of about equal ones the nearest to the middle.

    Args:
        detail_NP: of each plane beside the best, 0 to 1.
        middle: the plane that is read where none is better.
    """
    far_P = np.abs(np.arange(detail_NP.shape[1]) - middle)
    far_NP = np.where(detail_NP >= 1 - TIE, far_P, len(far_P))
    planes: NDArray[np.int16] = far_NP.argmin(1).astype(np.int16)
    return planes


class TileViews:
    """The reader of each tile, for those who read tiles by their row.

    Args:
        readers: one, or one a plane.
        plane_N: of each tile; None where there is one reader.
    """

    def __init__(
        self, readers: Sequence[SlideReader], plane_N: NDArray[np.int16] | None = None
    ) -> None:
        self._readers, self._plane_N = readers, plane_N
        self._jpegs: dict[tuple[int, int], NativeJpeg | None] = {}

    @property
    def path(self) -> str:
        """Path of the slide."""
        return self._readers[0].info.path

    def reader(self, row: int) -> SlideReader:
        """Return the slide at the plane of a tile."""
        return self._readers[self._number(row)]

    def jpeg(self, row: int, level: int) -> NativeJpeg | None:
        """Return the file's own JPEG tiles of a level at the plane of a tile."""
        key = (self._number(row), level)
        if key not in self._jpegs:  # two threads may open one twice; either will do
            self._jpegs[key] = self._readers[key[0]].native_jpeg(level)
        return self._jpegs[key]

    def _number(self, row: int) -> int:
        return 0 if self._plane_N is None else int(self._plane_N[row])
