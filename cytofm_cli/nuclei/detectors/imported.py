"""Nuclei that another program found: GeoJSON (QuPath), a label image, or a CSV of points.

The file describes the whole slide in pixels of level 0, unless `scale` says otherwise.

    .geojson .json     polygons or points, classes and probabilities as QuPath exports them
    .png .tif .tiff    integers, 0 background, one value a nucleus (8, 16 or 32 bits)
    .csv .tsv          columns x, y; optional label (class), probability, area_um2
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import option
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.nuclei import geojson
from cytofm_cli.nuclei.base import (
    MAX_CLASSES,
    NUCLEUS,
    NucleusTable,
    check_mpp,
    empty_table,
    make_table,
)
from cytofm_cli.nuclei.polygons import label_table
from cytofm_cli.registry import Plugin
from cytofm_cli.units import PLAUSIBLE_MPP

GEOJSON: Final = (".geojson", ".json")
LABELS: Final = (".png", ".tif", ".tiff")
TABLES: Final = (".csv", ".tsv", ".txt")
X_NAMES: Final = ("x", "x_px", "x_px0", "centroid_x", "centroid x px")
Y_NAMES: Final = ("y", "y_px", "y_px0", "centroid_y", "centroid y px")
CLASS_NAMES: Final = ("label", "class", "classification")


@dataclass(frozen=True, kw_only=True)
class ImportedConfig:
    """Settings of the import."""

    weights: Path | None = option(None, "file with nuclei: .geojson, .png, .tif or .csv")
    scale: float = option(
        1.0, "level-0 pixels to a pixel of the file, e.g. 2 for a half-size label image", low=1e-3
    )


class ImportedNuclei:
    """The nuclei of one file; see the module's text."""

    def __init__(self, config: ImportedConfig | None = None) -> None:
        self.config = config or ImportedConfig()
        if self.config.weights is None:
            raise UsageError(
                "detector 'import' needs a file with nuclei.", hint="--weights nuclei.geojson"
            )
        self.path = self.config.weights
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file.")

    def read(self, mpp: float) -> NucleusTable:
        """Return all nuclei of the slide; see `NucleusSource.read`."""
        check_mpp(mpp, *PLAUSIBLE_MPP, "import")
        file_mpp = mpp * self.config.scale
        suffix = self.path.suffix.lower()
        if suffix in GEOJSON:
            table = geojson.read(self.path, file_mpp)
        elif suffix in LABELS:
            table = label_table(read_labels(self.path), file_mpp)
        elif suffix in TABLES:
            table = read_points(self.path)
        else:
            raise InputError(
                f"{self.path}: nuclei cannot be read from {suffix or 'a file without suffix'}.",
                hint=f"one of {', '.join(GEOJSON + LABELS + TABLES)}",
            )
        return table.moved(scale=self.config.scale).sorted().validate(str(self.path))


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


def read_points(path: Path) -> NucleusTable:
    """Read a table of points; coordinates in pixels of the file.

    Raises:
        InputError: no columns x and y, or a line that is no point; the message names it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.DictReader(handle, delimiter=delimiter)
            header = {name.strip().lower(): name for name in reader.fieldnames or ()}
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}).") from error
    x_name, y_name = _column(header, X_NAMES), _column(header, Y_NAMES)
    if x_name is None or y_name is None:
        raise InputError(
            f"{path}: no columns x and y; found {', '.join(header) or 'none'}.",
            hint="the first line must be: x,y or x,y,label",
        )
    if not lines:
        return empty_table()
    class_name = _column(header, CLASS_NAMES)
    names = [(line[class_name] or NUCLEUS) if class_name else NUCLEUS for line in lines]
    classes = tuple(sorted(set(names)))
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{path}: {len(classes)} classes; a table holds {MAX_CLASSES}.")
    index = {name: i for i, name in enumerate(classes)}

    def column(name: str | None, default: float) -> NDArray[np.float64]:
        if name is None:
            return np.full(len(lines), default)
        return np.array([_number(path, i, name, line[name]) for i, line in enumerate(lines, 2)])

    return make_table(
        np.stack([column(x_name, 0), column(y_name, 0)], axis=1),
        column(header.get("area_um2"), float("nan")),
        probability=column(header.get("probability"), 1.0),
        class_id=np.array([index[name] for name in names]),
        classes=classes,
    ).validate(str(path))


def _column(header: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((header[name] for name in names if name in header), None)


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise InputError(f"{path}: line {line}: {name} = {text!r} is not a number.") from error


PLUGIN = Plugin(
    make=ImportedNuclei,
    config=ImportedConfig,
    summary="nuclei from a file: GeoJSON (QuPath), label image, CSV of points",
)
