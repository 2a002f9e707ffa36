"""What a store says of its slide and of its steps, typed.

A record is stored as flat JSON (see `Record`). Nothing outside `cytofm_cli.store` reads a raw key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from cytofm_cli.errors import StoreError
from cytofm_cli.store.record import LAST, Record, if_said


@dataclass(frozen=True, kw_only=True)
class LevelRecord(Record):
    """A level of the slide: (w, h) in its pixels, and level-0 pixels to one of its own."""

    size_px: tuple[int, int]
    downsample: float


@dataclass(frozen=True, kw_only=True)
class SlideRecord(Record):
    """Facts of the slide.

    Attributes:
        slide_id: its name.
        path: where it lay when it was tiled, or its URL.
        reader: name of the reader that opened it.
        format: of the file, e.g. "aperio".
        size_px0: (w, h) of level 0.
        levels: finest first.
        mpp: µm/px of level 0.
        mpp_source: who states it: "file", "objective", "manifest", "--slide-mpp", "--mpp".
        codec: of its pixels.
        objective: magnification; None where the file tells none.
        n_focal_planes, focal_plane: planes in z, and which one is read where none is chosen.
        planes_um: their heights, µm; None where the file does not say, or with one plane.
        has_icc_profile: it holds a colour profile.
        bounds_px0: (x, y, w, h) of the scanned part; None where that is all of it, or where an
            old store does not say (`says_bounds`).
        centre_nm: how far the middle of level 0 lies from that of the glass, (x, y) in
            nanometres, where the file states it (Hamamatsu).
        notes: what is odd about the file.
        fingerprint: what it is known by, wherever it lies.
        synthetic: what made its pixels where no microscope did: the tool, its weights, its
            settings; None: they are real, as far as is known.
    """

    slide_id: str
    path: str
    reader: str = "auto"
    format: str = "unknown"
    size_px0: tuple[int, int]
    levels: tuple[LevelRecord, ...]
    mpp: float
    mpp_source: str = "file"
    codec: str = "unknown"
    objective: float | None = None
    n_focal_planes: int = 1
    focal_plane: int = 0
    planes_um: tuple[float, ...] | None = if_said()
    has_icc_profile: bool = False
    bounds_px0: tuple[int, int, int, int] | None = None
    centre_nm: tuple[float, float] | None = if_said()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    synthetic: Mapping[str, Any] | None = if_said()

    @property
    def says_bounds(self) -> bool:
        """Tell whether the store knows which part of the slide was scanned."""
        return not self.keys or "bounds_px0" in self.keys

    @property
    def is_remote(self) -> bool:
        """Tell whether the slide lies behind a URL."""
        return "://" in self.path

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: str = "record") -> Self:
        """Read the facts; see `_Record.from_json`."""
        record = super().from_json(stored, where)
        levels: Any = record.levels  # JSON objects until here
        typed = tuple(LevelRecord.from_json(level, where) for level in levels)
        return replace(record, levels=typed)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as they are stored."""
        return super().to_json() | {"levels": [level.to_json() for level in self.levels]}


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """Where any step's arrays come from.

    Attributes:
        made_from: ids of the steps that it read, by name; None: of a version that did not say.
        tool: the version of cytofm.
        config: settings that can change a stored number.
        config_hash: their digest.
        input_fingerprint: what it read: of the slide, or the marks of the steps before.
        time_utc: when it ended, ISO 8601.
        id: changes exactly when the content does; None: of a version that gave none.
    """

    _other_before: ClassVar[str | None] = LAST[0]

    made_from: Mapping[str, str] | None = if_said()
    tool: str = ""
    config: Mapping[str, Any]
    config_hash: str
    input_fingerprint: str
    time_utc: str = ""
    id: str | None = if_said()

    @property
    def mark(self) -> str:
        """What a step is known by where it has no id: its settings and its input."""
        return f"{self.config_hash}-{self.input_fingerprint}"

    @property
    def identity(self) -> str:
        """What a step is known by: its id, else its mark."""
        return self.id or self.mark


@dataclass(frozen=True, kw_only=True)
class TileRecord(StepRecord):
    """Where the tiles come from.

    Attributes:
        asked: the settings as typed; None: of a version that kept only `config`.
        n_tiles: tiles taken.
        n_grid: tiles of the whole grid.
        n_foreground: those of them with foreground, before a selection; None: not said.
        n_candidates: those of them that regions and quality leave, before a selection; None: all.
        tile_px: side, pixels at `mpp`.
        tile_px0: side, level-0 pixels.
        mpp: µm/px of the tiles.
        level: of the slide, that they were read from.
        scale: pixels of that level to one of a tile.
        thumbnail_downsample: level-0 pixels to one of the thumbnail; one number, or (x, y).
        fill: grey level of what lies beyond the slide's edge.
        source_codec, store_codec: of the slide's pixels, and of those kept; "none" for none.
        pixel_bytes: that the kept pixels take.
        n_damaged: tiles of which the file has lost a part.
        seed: of a random selection.
        illumination: "bright-field" or "dark-field"; None if nobody looked.
        background_rgb: colour of the empty glass.
        foreground_unsure: why the foreground may be wrong.
        focus: of a slide with several focal planes "best", "fuse" or "plane:K"; None: it has one,
            or the version read `SlideRecord.focal_plane`.
        apart: what surrounds the image of one cell in its tile: "cut-out" (its known background,
            `fill`) or "border" (the colour of its own border); None: the tiles of a slide, which
            lie beside each other.
        regions: what was applied of marked regions: `file`, `sha256`, `rule`, `classes` and how
            many regions of each, `include`, `exclude`, `label`, how many tiles lay `n_outside` or
            were `n_excluded`, and `labelled`: tiles of each class; None: no regions.
        quality: the thresholds that were asked for, by column, as `limits`, and how many tiles
            each took away, as `removed`; None: none were.
    """

    asked: Mapping[str, Any] | None = if_said()
    n_tiles: int
    n_grid: int = 0
    n_foreground: int | None = None
    n_candidates: int | None = if_said()
    tile_px: int
    tile_px0: float
    mpp: float
    level: int
    scale: float = 1.0
    thumbnail_downsample: float | tuple[float, float] = 1.0
    fill: int = 255
    source_codec: str = "unknown"
    store_codec: str = "none"
    pixel_bytes: int = 0
    n_damaged: int = 0
    seed: int = 0
    illumination: str | None = None
    background_rgb: tuple[int, int, int] | None = None
    foreground_unsure: str | None = None
    focus: str | None = if_said()
    apart: str | None = if_said()
    regions: Mapping[str, Any] | None = if_said()
    quality: Mapping[str, Any] | None = if_said()


@dataclass(frozen=True, kw_only=True)
class NucleiRecord(StepRecord):
    """Where the nuclei come from; `other` holds what the detector found out about the slide.

    Attributes:
        n: nuclei; None: not said.
        n_quartered: tiles that were too large for memory; None: not said.
        n_cut: nuclei left out, cut by pixels that are not at hand; None: not said.
        beyond_tiles: where pixels past the tiles came from: "slide", "mirror"; None: not said.
        detector: name of the plug-in.
        classes: names of the classes.
        weights_sha256: digest of its weights, or of `nuclei_file`.
        nuclei_file: name of the file they were read from.
        regions: what was applied of marked regions, as of a `TileRecord`, and how many nuclei
            lay `n_outside` or were `n_excluded`; None: no regions.
    """

    _other_before: ClassVar[str | None] = "n_quartered"

    n: int | None = None
    n_quartered: int | None = if_said()
    n_cut: int | None = if_said()
    beyond_tiles: tuple[str, ...] | None = if_said()
    detector: str = ""
    classes: tuple[str, ...]
    weights_sha256: str | None = None
    nuclei_file: str | None = None
    regions: Mapping[str, Any] | None = if_said()


@dataclass(frozen=True, kw_only=True)
class EmbeddingRecord(StepRecord):
    """Where a bag comes from.

    Attributes:
        encoder: its name.
        dim: numbers in a row.
        n: rows; None: not said.
        unit: "tile" or "cell".
        seen_mpp: µm/px at which the encoder sees them; None: not said.
        cell_um: side of a cell's crop, µm; None for tiles.
        input_px, resize_px, mean, std, interpolation, pooling: how images become its input, and
            its output a vector.
        licence: of the weights.
        weights_sha256: digest of the weights; None without a file.
        network: prefix of the entries that were taken from the file; None: they have none.
        pos_embed: how absolute positions were resized, "16x16 → 37x37"; None: not.
        assumed: what nobody stated of foreign weights; None: of a version that did not look.
        batch_size: that fitted.
        store_codec, source_codec: of the pixels that it saw.
        seed: of random weights.
        regions: what was applied of marked regions, as of a `TileRecord`, and how many rows lay
            `n_outside` or were `n_excluded`; None: no regions.
    """

    encoder: str = ""
    dim: int
    n: int | None = None
    unit: str = "tile"
    seen_mpp: float | None = None
    cell_um: float | None = None
    input_px: int | None = None
    resize_px: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    pooling: str | None = None
    licence: str | None = None
    weights_sha256: str | None = None
    network: str | None = None
    pos_embed: str | None = None
    assumed: tuple[str, ...] | None = None
    batch_size: int | None = None
    store_codec: str = "unknown"
    source_codec: str = "unknown"
    seed: int = 0
    regions: Mapping[str, Any] | None = if_said()


def is_part(regions: Mapping[str, Any] | None) -> bool:
    """Tell whether regions, as a record says, have left something out."""
    return regions is not None and regions["n_outside"] + regions["n_excluded"] > 0


# What a model knew of a slide that it judged: nothing; other slides of the same cross-validation,
# but never it or its patient; the slide or its patient itself.
NEW, OUT_OF_FOLD, TRAINING = "new", "out-of-fold", "training"


@dataclass(frozen=True, kw_only=True)
class ClassesRecord(StepRecord):
    """Where the classes of nuclei come from.

    Attributes:
        run_folder: of the RUN.
        run_sha256: digest of its classifiers.
        n: nuclei.
        classes: names of the classes.
        model: kind of classifier; one-class has scores.
        detector: whose nuclei they are.
        encoder: what made the features.
        cell_um: side of a cell's crop, µm.
        basis: "new": the RUN does not know the slide; "out-of-fold": the classifier had not seen
            cells of its patient; "training": it had, so do not judge by it.
        n_abstained: nuclei that were too unsure.
    """

    run_folder: str = ""
    run_sha256: str = ""
    n: int | None = None
    classes: tuple[str, ...]
    model: str = ""
    detector: str = ""
    encoder: str = ""
    cell_um: float | None = None
    basis: str = "new"
    n_abstained: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionRecord(StepRecord):
    """Where attention and scores of instances come from.

    Attributes:
        run_folder: of the RUN.
        n: rows; None: not said.
        dim: columns; None: not said. `config["columns"]` names them: `columns`.
        basis: which models of the RUN were asked.
        predicted: class of the slide.
        differs: in what the bag differs from those that the RUN has learnt from.
    """

    run_folder: str = ""
    n: int | None = None
    dim: int | None = None
    basis: str | None = None
    predicted: str | None = None
    differs: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns.

        Raises:
            StoreError: it does not say.
        """
        columns = self.config.get("columns")
        if not isinstance(columns, list | tuple):
            raise StoreError(
                f"the attention of {self.run_folder or 'a RUN'} does not name its columns.",
                hint="make it again with `cytofm mil score`.",
            )
        return tuple(columns)
