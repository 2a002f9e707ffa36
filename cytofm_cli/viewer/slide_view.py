"""One slide as the viewer has it open: pixels, layers, orders of the gallery.

Everything that is read of the store is read when it is first asked for, once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import CytofmError, UsageError
from cytofm_cli.nuclei.place import BOUNDS, place_of
from cytofm_cli.pictures import colours
from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import schema
from cytofm_cli.store.blocks import nuclei_columns
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.origin import find_slide
from cytofm_cli.tiles.settings import focus_of_record
from cytofm_cli.tiles.shown import shown
from cytofm_cli.units import Size
from cytofm_cli.viewer import draw, maps, nuclei
from cytofm_cli.viewer.places import Places, find_places
from cytofm_cli.viewer.zoom import SQUARE_PX, Region, Thumbnail, Zooms, read_region
from cytofm_cli.work.closing import Closes

T = TypeVar("T")

_CELL_SHOWN_UM: Final = 30.0  # side of a cell in the gallery
_SNAP_UM: Final = 9.0  # how near the pointer must be to the middle of a nucleus
_FRAMED_PX: Final = 6  # on the screen; smaller tiles are filled


@dataclass(frozen=True, eq=False)
class Ranking:
    """An order of the cells or tiles of a slide, highest first.

    Attributes:
        title: as a page names it.
        unit: "cell" or "tile".
        read: gives the middles (N, 2) in level-0 pixels, and the values (N,).
    """

    title: str
    unit: str
    read: Callable[[], tuple[NDArray[np.float32], NDArray[np.floating[Any]]]]


class SlideView(Closes):
    """A slide and its store, open. Any thread may call its methods.

    Args:
        path: of the store.
        slides: folder where the slides lie now, if they were moved.

    Raises:
        StoreError: the store cannot be used.
    """

    def __init__(self, path: Path, slides: Path | None = None) -> None:
        self.store = open_store(path)
        record = self.store.tile
        self.zooms = Zooms(Size(*self.store.slide.size_px0))
        self.thumbnail = Thumbnail(self.store.read(schema.THUMBNAIL.path), self.zooms.size_px0)
        self.fill = record.fill
        self.tile_px0 = float(record.tile_px0)
        self.nuclei_kinds, notes = nuclei.kinds_of(self.store)
        self.map_kinds, more = maps.kinds_of(self.store)
        self.notes = [*notes, *more]
        self._file = self._open_slide(slides)
        self.reader = self._as_tiled()
        self._lock = threading.RLock()
        self._kept: dict[object, Any] = {}
        self.rankings = self._rankings()

    def close(self) -> None:
        """Close the slide."""
        if self._file is not None:
            self._file.close()
        self._kept.clear()

    def square(
        self, zoom: int, column: int, row: int, plane: int | None = None
    ) -> NDArray[np.uint8]:
        """Return a square of the slide; see `zoom.read_region`.

        Args:
            zoom, column, row: which one.
            plane: of a slide with several focal planes; None: what its tiles show.

        Raises:
            UsageError: no such square or plane.
        """
        region = self.zooms.region(zoom, column, row)
        if plane is None or self._file is None:
            return self.region(region)
        reader = self._file.at_plane(plane)
        return read_region(reader, self.thumbnail, region, fill=self.fill)

    def region(self, region: Region) -> NDArray[np.uint8]:
        """Return any square part of the slide."""
        return read_region(self.reader, self.thumbnail, region, fill=self.fill)

    def layer(self, name: str, region: Region, number: int = 0, column: int = 0) -> draw.Canvas:
        """Draw a square of a layer.

        Args:
            name: "foreground", "tiles", "nuclei" or "map".
            region: the square.
            number: of the nuclei or the map, as `facts` lists them.
            column: of the map.

        Raises:
            UsageError: no such layer.
        """
        if name == "foreground":
            return self._foreground(region)
        if name == "tiles":
            return self._tiles(region)
        if name == "nuclei":
            kind = _at(self.nuclei_kinds, number, "nuclei")
            rgb_N3 = self._once(("rgb", kind), lambda: nuclei.colours_of(self.classes(kind)[1]))
            return nuclei.draw_nuclei(region, self.shapes(kind.detector), rgb_N3)
        if name != "map":
            raise UsageError(f"no layer is called {name!r}.")
        map_kind = _at(self.map_kinds, number, "map")
        of, share_N, rgb_N3 = self._coloured(map_kind, column)
        return maps.draw_map(region, of, rgb_N3, share_N, self.store.slide.mpp)

    def shapes(self, detector: str) -> nuclei.Shapes:
        """Return the nuclei of a detector."""
        return self._once(("shapes", detector), lambda: nuclei.read_shapes(self.store, detector))

    def classes(self, kind: nuclei.NucleiKind) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
        """Return the names of classes, and the class of each nucleus."""
        return self._once(("classes", kind), lambda: nuclei.read_class_names(self.store, kind))

    def map(self, kind: maps.MapKind) -> maps.Map:
        """Return what a RUN has said."""
        return self._once(("map", kind), lambda: maps.read_map(self.store, kind))

    def top(self, number: int, count: int, *, lowest: bool = False) -> list[dict[str, float]]:
        """List the first cells or tiles of an order: their middles, values and ranks.

        Raises:
            UsageError: no such order.
        """
        ranking = _at(self.rankings, number, "order")
        xy_px0, values_N = ranking.read()
        known = np.flatnonzero(np.isfinite(values_N))
        signed = values_N[known] if lowest else -values_N[known]
        rows = known[np.argsort(signed, kind="stable")[:count]]
        return [
            {"x": round(x, 2), "y": round(y, 2), "value": value}
            for (x, y), value in zip(
                xy_px0[rows].astype(np.float64).tolist(),
                values_N[rows].astype(np.float64).tolist(),
                strict=True,
            )
        ]

    def crop(self, x_px0: float, y_px0: float, unit: str, side_px: int) -> NDArray[np.uint8]:
        """Return the picture of a cell or tile around its middle.

        Raises:
            UsageError: the middle is not on the slide.
        """
        width, height = self.zooms.size_px0
        if not (0 <= x_px0 <= width and 0 <= y_px0 <= height):
            raise UsageError(f"({x_px0:g}, {y_px0:g}) is not on the slide.")
        side = self.shown_px0(unit)
        return self.region(Region(x_px0 - side / 2, y_px0 - side / 2, side, side_px))

    def shown_px0(self, unit: str) -> float:
        """Return the side of what the gallery shows of a cell or tile."""
        cell = _CELL_SHOWN_UM / self.store.slide.mpp
        return self.tile_px0 if unit == "tile" else min(cell, float(max(self.zooms.size_px0)))

    def snap(self, x_px0: float, y_px0: float, number: int = 0) -> tuple[float, float]:
        """Return the middle of the nucleus under a point, or the point itself."""
        if self.nuclei_kinds:
            kind = _at(self.nuclei_kinds, number, "nuclei")
            places = self.shapes(kind.detector).places
            row = places.nearest(x_px0, y_px0, _SNAP_UM / self.store.slide.mpp)
            if row is not None:
                x, y = places.xy_px0[row].astype(np.float64).tolist()
                return x, y
        return x_px0, y_px0

    def origin_px0(self) -> tuple[float, float]:
        """Return the point of level 0 where QuPath begins to count."""
        return place_of(self.store, lambda _: None).frame(BOUNDS)[:2]

    def facts(self) -> dict[str, Any]:
        """Return what a page needs to know, as JSON values."""
        slide, record = self.store.slide, self.store.tile
        return {
            "slide_id": self.store.slide_id,
            "size_px0": list(slide.size_px0),
            "mpp": slide.mpp,
            "square_px": SQUARE_PX,
            "deepest": self.zooms.deepest,
            "n_tiles": record.n_tiles,
            "tile_px0": self.tile_px0,
            "cell_px0": self.shown_px0("cell"),
            "planes": self._planes_facts(),
            "has_foreground": self.store.has(schema.FOREGROUND.path),
            "dark": record.fill < 128,
            "nuclei": [self._nuclei_facts(kind) for kind in self.nuclei_kinds],
            "maps": [
                {
                    "run": kind.run,
                    "unit": kind.unit,
                    "columns": kind.titles,
                    "predicted": kind.predicted,
                    "basis": kind.basis,
                }
                for kind in self.map_kinds
            ],
            "rankings": [{"title": r.title, "unit": r.unit} for r in self.rankings],
            "notes": self._told(),
        }

    def _planes_facts(self) -> dict[str, Any] | None:
        """Return what there is to choose of focal planes; None: nothing."""
        info = None if self._file is None else self._file.info
        if info is None or not info.reads_planes or info.n_focal_planes == 1:
            return None
        heights = info.planes_um
        return {
            "n": info.n_focal_planes,
            "um": None if heights is None else [round(height, 3) for height in heights],
            "middle": info.focal_plane,
            "tiles": focus_of_record(self.store.tile, self.store.slide),
        }

    def _nuclei_facts(self, kind: nuclei.NucleiKind) -> dict[str, Any]:
        names, class_N = self.classes(kind)
        counts = np.bincount(class_N, minlength=len(names))
        return {
            "title": kind.title,
            "n": len(class_N),
            "classes": [
                {"name": name, "n": int(counts[c]), "colour": _css(c)}
                for c, name in enumerate(names)
            ],
        }

    def _told(self) -> list[str]:
        slide = self.store.slide
        told = list(self.notes)
        if slide.n_focal_planes > 1 and self._planes_facts() is None:
            told.append(
                f"The slide has {slide.n_focal_planes} focal planes; number {slide.focal_plane} "
                "is shown."
            )
        if not self.nuclei_kinds:
            told.append("No nuclei: `cytofm detect` finds them.")
        return told

    def _open_slide(self, slides: Path | None) -> SlideReader | None:
        """Open the slide; where that cannot be, the thumbnail is shown, and a note says why."""
        if self.store.tile.apart is not None:
            self.notes.append("The store holds images of single cells: an overview is shown.")
            return None
        try:
            path = find_slide(self.store, slides)
            return open_slide(path, reader=self.store.slide.reader)
        except (CytofmError, OSError) as error:
            why = error.message if isinstance(error, CytofmError) else str(error)
            why = why.replace(", and the store holds no pixels", "")
            self.notes.insert(0, f"Only the thumbnail is shown. {why} --slides DIR finds it.")
            return None

    def _as_tiled(self) -> SlideReader | None:
        """Return the slide as its tiles show it, or as it is where the store does not say."""
        if self._file is None:
            return None
        try:
            return shown(self._file, self.store)
        except CytofmError as error:
            self.notes.append(f"Shown at one focal plane. {error.message}")
            return self._file

    def _foreground(self, region: Region) -> draw.Canvas:
        path = schema.FOREGROUND.path
        if not self.store.has(path):
            raise UsageError("the store holds no foreground.")
        mask_HW = self._once(path, lambda: self.store.read(path))
        width, height = self.zooms.size_px0
        per_px0 = (mask_HW.shape[1] / width, mask_HW.shape[0] / height)
        return draw.mask(region, mask_HW, per_px0, colours.GREEN)

    def _tiles(self, region: Region) -> draw.Canvas:
        places = self._once("tiles", self._tile_places)
        rows = places.inside(
            region.x_px0 - self.tile_px0,
            region.y_px0 - self.tile_px0,
            region.x_px0 + region.side_px0,
            region.y_px0 + region.side_px0,
        )
        rgb_N3 = np.broadcast_to(np.array(colours.BLUE, np.uint8), (len(rows), 3))
        return draw.squares(
            region,
            places.xy_px0[rows],
            self.tile_px0,
            rgb_N3,
            filled=self.tile_px0 / region.scale < _FRAMED_PX,
        )

    def _tile_places(self) -> Places:
        return find_places(self.store.tile_xy_px0, self.zooms.size_px0)

    def _coloured(
        self, kind: maps.MapKind, column: int
    ) -> tuple[maps.Map, NDArray[np.float64], NDArray[np.uint8]]:
        of = self.map(kind)
        _at(kind.columns, column, "column")
        share_N = self._once(("share", kind, column), lambda: maps.shares(of.values_NK[:, column]))
        rgb_N3 = self._once(("colour", kind, column), lambda: colours.shade(share_N))
        return of, share_N, rgb_N3

    def _rankings(self) -> list[Ranking]:
        rankings = [
            Ranking(f"{kind.run}: {title}", kind.unit, self._of_map(kind, k))
            for kind in self.map_kinds
            for k, title in enumerate(kind.titles)
        ]
        for kind in self.nuclei_kinds:
            if kind.classes_by is not None:
                names = self.store.classes_record(kind.classes_by).classes
                rankings += [
                    Ranking(
                        f"{kind.classes_by}: probability of {name}", "cell", self._of_class(kind, c)
                    )
                    for c, name in enumerate(names)
                ]
                continue
            columns = ("area_um2", "probability", *nuclei_columns(self.store, kind.detector))
            rankings += [
                Ranking(f"{kind.detector}: {_words(name)}", "cell", self._of_nuclei(kind, name))
                for name in columns
            ]
        return rankings

    def _of_map(self, kind: maps.MapKind, column: int) -> Callable[[], Any]:
        def read() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            of = self.map(kind)
            return of.centres(), of.values_NK[:, column]

        return read

    def _of_nuclei(self, kind: nuclei.NucleiKind, name: str) -> Callable[[], Any]:
        array = f"{schema.nuclei_step(kind.detector)}/{name}"

        def read() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return self.shapes(kind.detector).places.xy_px0, self.store.read(array)

        return read

    def _of_class(self, kind: nuclei.NucleiKind, number: int) -> Callable[[], Any]:
        array = f"{schema.classes_step(kind.classes_by or '')}/probability"

        def read() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return self.shapes(kind.detector).places.xy_px0, self.store.read(array)[:, number]

        return read

    def _once(self, key: object, make: Callable[[], T]) -> T:
        """Make something the first time it is asked for; other threads wait for it."""
        if key not in self._kept:
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = make()
        kept: T = self._kept[key]
        return kept


def _at(items: Any, number: int, what: str) -> Any:
    """Return one of what `facts` lists.

    Raises:
        UsageError: there is none of this number.
    """
    if not 0 <= number < len(items):
        raise UsageError(f"no {what} of number {number}.")
    return items[number]


def _css(number: int) -> str:
    """Return the colour of a class as a page takes it."""
    return colours.hex_of(colours.class_colour(number))


def _words(column: str) -> str:
    """Return a column of nuclei as a page names it."""
    kind = schema.NUCLEI_COLUMNS.get(column)
    names = {"area_um2": "area, µm²", "probability": "probability of the detector"}
    return names.get(column, column.replace("_", " ") if kind else column)
