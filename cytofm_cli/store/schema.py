"""THE layout of a store. Nothing else in cytofm spells a path, dtype, axis or chunk of it.
`store.arrays` writes arrays as they stand here, and a commit refuses any other.

A store is one Zarr v3 directory a slide, `<STORES>/<slide_id>.zarr`. Coordinates are (x, y)
in level-0 pixels. Root attributes, under the key `cytofm`:

    schema   version of this layout (int)
    slide    facts of the slide: path, reader, size, mpp, codec, fingerprint, …
    steps    one provenance record per finished step, keyed by the step's name
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SCHEMA_VERSION: Final = 1
ATTRIBUTES_KEY: Final = "cytofm"
STORE_SUFFIX: Final = ".zarr"

TILE_STEP: Final = "tile"
# Whose nuclei stand for cells that came as images: one point each, as the user gave it.
GIVEN: Final = "given"
UNITS: Final = ("tile", "cell")
# A step of these kinds has a group of its own, so deep in the store; the tile step has the root.
_GROUP_DEPTH: Final = {"nuclei": 2, "classes": 2, "embeddings": 3, "attention": 3}
_PX0: Final = "pixel of level 0, counted from the outer corner of its first pixel"


@dataclass(frozen=True)
class ArrayKind:
    """What one array of the store holds.

    Attributes:
        path: path inside the store; `<name>` parts vary.
        dtype: NumPy dtypes allowed.
        axes: dimension names.
        unit: unit of the values; `px0` is a pixel of level 0, counted from the corner of the
            first one.
        doc: what a value is.
        anchor: which point of a tile, nucleus or cell a place names: `corner` or `centre`.
    """

    path: str
    dtype: tuple[str, ...]
    axes: tuple[str, ...]
    unit: str
    doc: str
    anchor: str = ""

    @property
    def attributes(self) -> dict[str, object]:
        """Return what the array says of itself, as attributes of its Zarr node."""
        told: dict[str, object] = {"description": self.doc}
        if self.unit:
            told["unit"] = _PX0 if self.unit == "px0" else self.unit
        if self.axes[-1] == "xy":
            told |= {"columns": ["x", "y"], "level": 0}
        return told | ({"anchor": self.anchor} if self.anchor else {})

    @property
    def in_step(self) -> str:
        """Path inside the folder in which its step is staged."""
        parts = self.path.split("/")
        return "/".join(parts[_GROUP_DEPTH.get(parts[0], 0) :])

    def names(self, path: str) -> bool:
        """Tell whether a path inside a store is one of this kind."""
        units = self.path.replace("<unit>", f"({'|'.join(UNITS)})")
        return re.fullmatch(re.sub(r"<\w+>", "[^/]+", units), path) is not None

    def check(self, dtype: str, axes: Sequence[str]) -> None:
        """Refuse an array of this kind that is not as the layout has it.

        Raises:
            ValueError: another dtype or other axes.
        """
        if dtype not in self.dtype:
            raise ValueError(f"{self.path} is {dtype}; the layout has {' or '.join(self.dtype)}")
        if tuple(axes) != self.axes:
            raise ValueError(f"{self.path} has the axes {tuple(axes)}; the layout has {self.axes}")


THUMBNAIL: Final = ArrayKind(
    "thumbnail", ("uint8",), ("y", "x", "c"), "RGB", "overview of the slide"
)
FOREGROUND: Final = ArrayKind(
    "foreground", ("uint8",), ("y", "x"), "0 or 1", "foreground mask at the thumbnail's scale"
)
TILE_XY: Final = ArrayKind(
    "tiles/xy_px0", ("int32",), ("tile", "xy"), "px0", "top-left corner of each tile", "corner"
)
TILE_FOREGROUND: Final = ArrayKind(
    "tiles/foreground", ("float32",), ("tile",), "0..1", "foreground fraction of each tile"
)
TILE_FOCUS: Final = ArrayKind("tiles/focus", ("float32",), ("tile",), "0..1", "focus score")
TILE_PLANE: Final = ArrayKind(
    "tiles/plane", ("int16",), ("tile",), "index", "focal plane of each tile; fused: the sharpest"
)
TILE_PLANE_FOCUS: Final = ArrayKind(
    "tiles/plane_focus", ("float32",), ("tile", "plane"), "0..1", "focus score of each plane"
)
TILE_PLANE_DETAIL: Final = ArrayKind(
    "tiles/plane_detail",
    ("float32",),
    ("tile", "plane"),
    "0..1",
    "energy of detail of each plane beside the tile's sharpest",
)
TILE_REGION: Final = ArrayKind(
    "tiles/region",
    ("int16",),
    ("tile",),
    "index",
    "class of the region that labels each tile, index into `regions.label` of the step; -1: none",
)
# What is measured of each tile's quality; stores of earlier versions have none of them.
TILE_QUALITY: Final = {
    name: ArrayKind(f"tiles/{name}", ("float32",), ("tile",), "0..1", text)
    for name, text in (
        ("pen", "share of the tile under ink: dark, smooth and long"),
        ("edge", "share of the tile on long thin rims: bubbles, coverslip edges, scratches"),
        ("clump", "share of the tile in dark groups that hold a square of 40 µm"),
        ("saturation", "share of the tile's foreground that lets less than 5 % of the light pass"),
        ("blank", "share of the tile that is empty glass"),
    )
}
TILE_PIXELS: Final = ArrayKind(
    "tiles/pixels", ("uint8",), ("tile", "y", "x", "c"), "RGB", "pixels of each tile"
)
TILE_FILE: Final = ArrayKind(
    "tiles/file", ("uint8",), ("byte",), "UTF-8", "names of the images of cells, end to end"
)
TILE_FILE_START: Final = ArrayKind(
    "tiles/file_start", ("int64",), ("tile+1",), "index", "start of each tile's name"
)
TILE_POINT: Final = ArrayKind(
    "tiles/point_px",
    ("float32",),
    ("tile", "xy"),
    "px",
    "where the cell lies on the tile that was made of its image",
    "centre",
)
NUCLEI_XY: Final = ArrayKind(
    "nuclei/<detector>/xy_px0",
    ("float32",),
    ("nucleus", "xy"),
    "px0",
    "centroid of each nucleus",
    "centre",
)
NUCLEI_AREA: Final = ArrayKind(
    "nuclei/<detector>/area_um2", ("float32",), ("nucleus",), "µm²", "area"
)
NUCLEI_PROBABILITY: Final = ArrayKind(
    "nuclei/<detector>/probability", ("float32",), ("nucleus",), "0..1", "detector's confidence"
)
NUCLEI_CLASS: Final = ArrayKind(
    "nuclei/<detector>/class", ("uint8",), ("nucleus",), "index", "class; names in the attributes"
)
NUCLEI_CONTOUR: Final = ArrayKind(
    "nuclei/<detector>/contour_px0", ("float32",), ("point", "xy"), "px0", "polygon points"
)
NUCLEI_CONTOUR_START: Final = ArrayKind(
    "nuclei/<detector>/contour_start", ("int64",), ("nucleus+1",), "index", "start of each polygon"
)
# What a detector measured of each nucleus; a detector may have some, all or none of them.
NUCLEI_COLUMNS: Final = {
    name: ArrayKind(f"nuclei/<detector>/{name}", ("float32",), ("nucleus",), unit, text)
    for name, unit, text in (
        ("circularity", "0..1", "4π · area / perimeter², 1 for a disk"),
        ("optical_density", "log10", "mean optical density inside"),
        ("density_std", "log10", "its standard deviation inside: coarse chromatin is high"),
        ("hue_blue", "log10", "optical density of red minus that of blue, mean inside"),
        ("ring_density", "log10", "mean optical density 0.75 to 2.25 µm around the nucleus"),
        ("sharpness", "0..1", "share of the contrast lost within 1 µm across the outline"),
    )
}
EMBEDDINGS: Final = ArrayKind(
    "embeddings/<encoder>/<unit>/values",
    ("float16", "float32"),
    ("instance", "feature"),
    "",
    "one row an instance",
)
EMBEDDINGS_XY: Final = ArrayKind(
    "embeddings/<encoder>/tile/xy_px0",
    ("int32",),
    ("instance", "xy"),
    "px0",
    "top-left corner of each tile",
    "corner",
)
CELL_EMBEDDINGS_XY: Final = ArrayKind(
    "embeddings/<encoder>/cell/xy_px0",
    ("int32",),
    ("instance", "xy"),
    "px0",
    "centre of each cell, rounded",
    "centre",
)
ATTENTION: Final = ArrayKind(
    "attention/<run>/<unit>/values", ("float32",), ("instance", "map"), "", "attention of a head"
)

CLASSES_ID: Final = ArrayKind(
    "classes/<run>/class",
    ("uint8",),
    ("nucleus",),
    "index",
    "most probable class; names in the attributes",
)
CLASSES_PROBABILITY: Final = ArrayKind(
    "classes/<run>/probability",
    ("float32",),
    ("nucleus", "class"),
    "0..1",
    "probability of each class; rows sum to 1",
)
CLASSES_ABSTAINED: Final = ArrayKind(
    "classes/<run>/abstained", ("uint8",), ("nucleus",), "0 or 1", "1: too unsure to say a class"
)
CLASSES_SCORE: Final = ArrayKind(
    "classes/<run>/score",
    ("float32",),
    ("nucleus",),
    "standard deviations",
    "distance from normal cells, in standard deviations of theirs",
)

ARRAYS: Final = (
    THUMBNAIL,
    FOREGROUND,
    TILE_XY,
    TILE_FOREGROUND,
    TILE_FOCUS,
    TILE_PLANE,
    TILE_PLANE_FOCUS,
    TILE_PLANE_DETAIL,
    TILE_REGION,
    *TILE_QUALITY.values(),
    TILE_PIXELS,
    TILE_FILE,
    TILE_FILE_START,
    TILE_POINT,
    NUCLEI_XY,
    NUCLEI_AREA,
    NUCLEI_PROBABILITY,
    NUCLEI_CLASS,
    NUCLEI_CONTOUR,
    NUCLEI_CONTOUR_START,
    *NUCLEI_COLUMNS.values(),
    EMBEDDINGS,
    EMBEDDINGS_XY,
    CELL_EMBEDDINGS_XY,
    ATTENTION,
    CLASSES_ID,
    CLASSES_PROBABILITY,
    CLASSES_ABSTAINED,
    CLASSES_SCORE,
)


def kind_of(path: str) -> ArrayKind:
    """Return what an array of a store is, by its path inside the store.

    Raises:
        ValueError: the layout has no such array.
    """
    for kind in ARRAYS:
        if kind.names(path):
            return kind
    raise ValueError(f"the layout of a store has no array {path}")


# A shard holds 64 tiles: 3 × less CPU than one file a tile, and few files. Slides with very
# many tiles take larger shards instead of more files (inode quotas on clusters).
TILES_PER_SHARD: Final = 64
MOST_SHARDS: Final = 40
ROWS_PER_CHUNK: Final = 1024
# Tables up to here are one chunk in one file; the 160 million points of five million outlines
# are many, so that they can be read in blocks.
ROWS_PER_FILE: Final = 2**21
_NAME_BYTES: Final = 200


def tiles_per_shard(n_tiles: int) -> int:
    """Return how many tiles a shard holds: a multiple of 64 that gives at most 40 shards."""
    return TILES_PER_SHARD * max(1, -(-n_tiles // (TILES_PER_SHARD * MOST_SHARDS)))


def node_name(text: str) -> str:
    """Return a name of an encoder, detector or RUN as that of one group of a store.

    `timm/x` becomes `timm.x`. What Zarr or a file system does not take (control characters,
    a leading dot or two underscores, more bytes than a file's name may have) is replaced.
    """
    name = re.sub(r"[/\x00-\x1f\x7f]", ".", text)
    if not name or name.startswith((".", "__")) or name == "zarr.json":
        name = f"x{name}"
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > _NAME_BYTES:
        digest = hashlib.sha256(raw).hexdigest()[:8]
        name = f"{raw[: _NAME_BYTES - 9].decode('utf-8', 'ignore')}~{digest}"
    return name


def embedding_step(encoder: str, unit: str) -> str:
    """Return the name of an embedding step, which is also the path of its group."""
    return f"embeddings/{node_name(encoder)}/{unit}"


def nuclei_step(detector: str) -> str:
    """Return the name of a detection step, which is also the path of its group."""
    return f"nuclei/{node_name(detector)}"


def classes_step(run: str) -> str:
    """Return the name of a step of classes of nuclei, which is also the path of its group."""
    return f"classes/{node_name(run)}"


def attention_step(run: str, unit: str) -> str:
    """Return the name of an attention step, which is also the path of its group."""
    return f"attention/{node_name(run)}/{unit}"
