"""Nuclei that another program found: GeoJSON (QuPath), a label image, or a table of points.

A file describes one slide in pixels of level 0, unless `scale` says otherwise; a table with a
column that names the slide may describe several.

    .geojson .json     polygons or points, classes and probabilities as QuPath exports them
    .png .tif .tiff    integers, 0 background, one value a nucleus (8, 16 or 32 bits); a
                       mask of one value is cut into its connected parts (said)
    .csv .tsv .txt     columns x, y; optional label (class), probability, area_um2, slide_id; or
                       QuPath's measurements (Image, Classification, Centroid X µm, …)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.named_files import absent
from cytofm_cli.nuclei import geojson_reader
from cytofm_cli.nuclei.base import NucleusTable, check_mpp
from cytofm_cli.nuclei.files import GEOJSON, LABELS, SUFFIXES, TABLES
from cytofm_cli.nuclei.place import BOUNDS, SLIDE, Note, SlidePlace, on_slide
from cytofm_cli.nuclei.plausible import as_instances, say_doubts
from cytofm_cli.nuclei.point_tables import read_points
from cytofm_cli.nuclei.polygons import label_table
from cytofm_cli.regions.geojson_stream import hint_for
from cytofm_cli.registry import DetectorPlugin
from cytofm_cli.units import PLAUSIBLE_MPP, Size

# A label image may be a pixel or so off the slide's size, where a pyramid level was rounded.
SIZE_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class ImportedConfig(Settings):
    """Settings of the import."""

    nuclei: Path | None = option(None, "file with nuclei: .geojson, .png, .tif or .csv")
    scale: float = option(
        1.0, "level-0 pixels to a pixel of the file, e.g. 2 for a half-size label image", low=1e-3
    )
    origin: Literal["auto", "slide", "bounds"] = option(
        "auto",
        "where its (0, 0) is: slide: the corner of level 0; bounds: that of the scanned part, as "
        "in QuPath (MIRAX, SCN); auto: bounds for GeoJSON and tables of QuPath, else slide",
    )
    annotations: bool = option(False, "take QuPath's annotations as nuclei too")


def _silent(_: str) -> None:
    return


class ImportedNuclei:
    """The nuclei of one file; see the module's text."""

    def __init__(self, config: ImportedConfig | None = None) -> None:
        self.config = config or ImportedConfig()
        if self.config.nuclei is None:
            raise UsageError(
                "detector 'import' needs a file with nuclei.", hint="--nuclei nuclei.geojson"
            )
        self.path = self.config.nuclei
        if not self.path.is_file():
            raise InputError(f"{self.path}: {absent(self.path)}.")

    def read(
        self, mpp: float, place: SlidePlace | None = None, note: Note = _silent
    ) -> NucleusTable:
        """Return all nuclei of the slide; see `NucleusSource.read`."""
        check_mpp(mpp, *PLAUSIBLE_MPP, "import")
        table, origin_px0 = self._read(mpp, place, note)
        table = table.moved(scale=self.config.scale, shift_px=origin_px0)
        if place is not None and len(table):
            framed = origin_px0 != (0, 0)
            frame = place.frame(BOUNDS if framed else SLIDE)
            table = on_slide(table, frame, str(self.path), note)
            say_doubts(table, frame, str(self.path), note)
        return table.sorted().validate(str(self.path))

    def _read(
        self, mpp: float, place: SlidePlace | None, note: Note
    ) -> tuple[NucleusTable, tuple[float, float]]:
        """Return the nuclei in pixels of the file, and where on level 0 its (0, 0) is."""
        file_mpp = mpp * self.config.scale
        suffix = self.path.suffix.lower()
        if suffix in GEOJSON:
            contents = geojson_reader.read(
                self.path, file_mpp, note, annotations=self.config.annotations
            )
            if contents.origin_px0 is not None and self.config.origin == "auto":
                return contents.table, contents.origin_px0
            return contents.table, self._origin(BOUNDS, place, note)
        if suffix in LABELS:
            labels = read_labels(self.path)
            origin = self._origin(SLIDE, place, note)
            if place is not None:
                self._check_size(labels, place.frame(BOUNDS if any(origin) else SLIDE)[2:], note)
            labels = as_instances(labels, str(self.path), note)
            return label_table(labels, file_mpp), origin
        if suffix in TABLES:
            points = read_points(self.path, mpp, place.slide_id if place else None, note)
            if points.in_um and self.config.scale != 1:
                raise UsageError(
                    f"{self.path}: is in micrometres; the setting scale is for pixels.",
                    hint="leave --set scale away",
                )
            return points.table, self._origin(BOUNDS if points.by_qupath else SLIDE, place, note)
        raise InputError(
            f"{self.path}: nuclei cannot be read from {suffix or 'a file without suffix'}.",
            hint=hint_for(suffix, SUFFIXES),
        )

    def _origin(self, auto: str, place: SlidePlace | None, note: Note) -> tuple[float, float]:
        origin = auto if self.config.origin == "auto" else self.config.origin
        if place is None or place.bounds_px0 is None:
            return 0, 0
        corner = place.frame(origin)[:2]
        whose = "the scanned part, as in QuPath" if origin == BOUNDS else "level 0"
        note(
            f"{self.path}: coordinates are counted from the corner of {whose} "
            f"({corner[0]}, {corner[1]}); --set origin={SLIDE if origin == BOUNDS else BOUNDS} "
            "for the other"
        )
        return corner

    def _check_size(
        self, labels: NDArray[np.integer[Any]], size: tuple[int, ...], note: Note
    ) -> None:
        """Refuse a label image of another scale; say where it covers another part.

        Raises:
            InputError: of the slide's shape, but not of its size.
        """
        height, width = labels.shape
        slide = Size(*size)
        share = (width * self.config.scale / slide.w, height * self.config.scale / slide.h)
        if all(abs(s - 1) <= SIZE_TOLERANCE for s in share):
            return
        told = f"{self.path}: {width} x {height} px"
        if self.config.scale != 1:
            told += f" at scale {self.config.scale:g}"
        if abs(share[0] / share[1] - 1) <= SIZE_TOLERANCE:
            raise InputError(
                f"{told}, but the slide has {slide.w} x {slide.h}.",
                hint=f"--set scale={slide.w / width:.6g} if it is the whole slide",
            )
        note(f"warning: {told}, the slide has {slide.w} x {slide.h}: taken as its top left corner")


def read_labels(path: Path) -> NDArray[np.integer[Any]]:
    """Read a label image of one channel as integers (H, W).

    Raises:
        InputError: not an image, several channels, or values that are not labels.
    """
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
        labels = image.numpy()
    except pyvips.Error as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path}: not a readable image ({reason}).") from error
    if labels.ndim == 3 and labels.shape[2] == 1:
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise InputError(
            f"{path}: {labels.shape[2]} channels; a label image has one.",
            hint="save the labels themselves, not a coloured picture of them",
        )
    if labels.dtype.kind == "f":
        if not np.array_equal(labels, np.round(labels)):
            raise InputError(f"{path}: its values are not whole numbers.")
        labels = labels.astype(np.int64)
    if labels.min(initial=0) < 0:
        raise InputError(f"{path}: negative labels.")
    values: NDArray[np.integer[Any]] = labels
    return values


PLUGIN = DetectorPlugin(
    make=ImportedNuclei,
    config=ImportedConfig,
    summary="nuclei from a file: GeoJSON (QuPath), label image, table of points",
    from_files=True,
    typed="import",  # one of Python's own words
    sample="cytofm_cli.testing.samples.detectors:imported",
)
