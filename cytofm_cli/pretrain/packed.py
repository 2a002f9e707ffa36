"""The slides of a pack (`store.pack_file`), as `tile_index` has those of stores.

A pack of tiles holds each with the margin that centred views may show, or without where all around
it is its own mirror image, as with tiles of single cells; a pack of cells holds the squares.

Letters: S slides, N tiles, M nuclei, P points of outlines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, StoreError, UsageError
from cytofm_cli.nuclei.base import NucleusTable, make_table
from cytofm_cli.pretrain.indexed import IndexedSlide
from cytofm_cli.store.pack_file import Pack, open_pack
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.views.stored import TileNuclei


@dataclass(frozen=True, kw_only=True)
class PackedSlide:
    """What the header of a pack says of a slide.

    Attributes:
        slide_id: name of the slide.
        group: patient or other group that it belongs to; None: not said.
        plan: how its tiles were read.
        marks: digests of its tiles and of its nuclei, of these only where they are packed.
        margin_px: around each image.
        mirrored: the images have no margin, for around them is nothing but their mirror image.
        tiles: its images and rows of the tables of tiles, the first and behind the last.
        nuclei: likewise, rows of its nuclei.
        points: likewise, of the points of all outlines.
    """

    slide_id: str
    group: str | None
    plan: ReadPlan
    marks: tuple[str, ...]
    margin_px: int
    mirrored: bool
    tiles: tuple[int, int]
    nuclei: tuple[int, int]
    points: tuple[int, int]

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> PackedSlide:
        """Rebuild from what `to_record` gave, read back from JSON."""
        pairs = {name: tuple(record[name]) for name in ("marks", "tiles", "nuclei", "points")}
        return PackedSlide(**{**record, **pairs, "plan": ReadPlan(**record["plan"])})


class PackedTiles:
    """The images of one slide as `tiles.canvas.Canvases`; any thread may read."""

    def __init__(self, pack: Pack, slide: PackedSlide) -> None:
        self._pack, self._slide, self.n_mirrored = pack, slide, 0

    def read(self, index: int, margin_px: int = 0) -> NDArray[np.uint8]:
        """Return a tile with a margin on every side.

        Raises:
            UsageError: it was packed with a smaller margin.
        """
        image_HWC, own_px = self._pack.image(self._slide.tiles[0] + index), self._slide.margin_px
        if self._slide.mirrored and margin_px:
            return mirrored_around(image_HWC, margin_px)
        if margin_px > own_px:
            raise UsageError(
                f"{self._pack.path}: tiles have a margin of {own_px} px, and views centred on "
                f"nuclei take {margin_px}.",
                hint="--no-ncp, or `cytofm pack` without --no-margin.",
            )
        cut = own_px - margin_px
        return image_HWC[cut : len(image_HWC) - cut, cut : image_HWC.shape[1] - cut]


def mirrored_around(tile_HWC: NDArray[np.uint8], margin_px: int) -> NDArray[np.uint8]:
    """Return a tile with its mirror image on every side."""
    around = ((margin_px, margin_px), (margin_px, margin_px), (0, 0))
    return np.pad(tile_HWC, around, mode="symmetric")


def read_packed(
    path: Path, detector: str | None, cell_um: float | None, *, need_nuclei: bool
) -> tuple[str | None, list[IndexedSlide]]:
    """Return whose nuclei a pack holds, and its slides; arguments as `tile_index.open_index`.

    Raises:
        InputError: the pack holds tiles and cells are wanted, or otherwise.
        StoreError: it is damaged, or without the nuclei that are needed.
    """
    pack = open_pack(path)
    _check_unit(path, pack.header["cell_um"], cell_um)
    own = pack.header["detector"]
    if need_nuclei and (own is None or detector not in (None, own)):
        there = "no nuclei" if own is None else f"nuclei of {own!r}"
        raise StoreError(f"{path}: holds {there}.", hint="pack the stores with those needed.")
    slides = [
        _slide(pack, PackedSlide.from_record(record), need_nuclei=need_nuclei)
        for record in pack.header["slides"]
    ]
    return own if need_nuclei else None, slides


def _check_unit(path: Path, packed_um: float | None, wanted_um: float | None) -> None:
    if packed_um == wanted_um:
        return
    if packed_um is None:
        raise InputError(f"{path}: holds tiles, not cells.", hint="--unit tile")
    raise InputError(
        f"{path}: holds cells of {packed_um:g} µm.", hint=f"--unit cell --cell-um {packed_um:g}"
    )


def _slide(pack: Pack, packed: PackedSlide, *, need_nuclei: bool) -> IndexedSlide:
    rows = slice(*packed.tiles)
    table = make_table(np.zeros((0, 2)), np.zeros(0))
    bare_N, marks = np.zeros(packed.tiles[1] - packed.tiles[0], bool), packed.marks[:1]
    if need_nuclei:
        table, bare_N = _nuclei(pack, packed), pack.arrays["bare"][rows].astype(bool)
        marks = packed.marks
    # Pixels that were compressed with loss are other data; the same pixels are the same.
    loss = () if pack.header["codec"] == "png" else (f"jpeg{pack.header['quality']}",)
    return IndexedSlide(
        slide_id=packed.slide_id,
        path=pack.path,
        plan=packed.plan,
        nuclei=TileNuclei(table, pack.arrays["tile_xy_px0"][rows], packed.plan),
        bare_N=bare_N,
        marks=(*marks, *loss),
        opened=lambda _: contextlib.nullcontext(PackedTiles(pack, packed)),
        packed_px=pack.header["tile_px"],
    )


def _nuclei(pack: Pack, packed: PackedSlide) -> NucleusTable:
    (first, last), (start, stop) = packed.nuclei, packed.points
    a = pack.arrays
    n_points = a["nucleus_points"][first:last]
    return NucleusTable(
        xy_px0=a["nucleus_xy_px0"][first:last],
        area_um2=a["nucleus_area_um2"][first:last],
        probability=np.ones(last - first, np.float32),
        class_id=np.zeros(last - first, np.uint8),
        contour_px0=a["contour_px0"][start:stop],
        contour_start=np.concatenate([[0], np.cumsum(n_points)]).astype(np.int64),
    )
