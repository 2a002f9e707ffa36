"""Settings of the tile step, and what it is told about one slide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from cytofm_cli.config import option
from cytofm_cli.errors import UsageError
from cytofm_cli.regions.config import TileRegions
from cytofm_cli.tiles.focal_word import number_of
from cytofm_cli.tiles.quality_config import QualityLimits

if TYPE_CHECKING:
    from cytofm_cli.regions.files import RegionFile

# 40×, the resolution at which cytology is scanned and read.
DEFAULT_MPP: Final = 0.25
DEFAULT_TILE_PX: Final = 512


@dataclass(frozen=True, kw_only=True)
class TileConfig(QualityLimits, TileRegions):
    """How slides are cut into tiles."""

    SECTION: ClassVar[str] = "tile"

    tile_px: int | None = option(
        None,
        "Side of a tile, px at --mpp [default: 512; with --cells, what the largest cell needs].",
        low=16,
        high=8192,
    )
    mpp: float | None = option(
        None, "Resolution of the tiles, µm/px [default: 0.25, 40×].", low=0.05, high=5.0
    )
    slide_mpp: float | None = option(
        None,
        "Resolution of slides whose file states none, µm/px: 0.25 for 40×, 0.5 for 20×. For "
        "several, --manifest.",
        low=0.05,
        high=5.0,
    )
    mpp_tolerance: float = option(
        0.05, "A level this close to --mpp (relative) is read as it is.", low=0.0, high=0.2
    )
    stride_px: int | None = option(
        None, "Step of the grid, px at --mpp [default: the tile, no overlap].", low=1
    )
    foreground: Literal["auto", "none"] = option(
        "auto", "Keep tiles with cells (auto) or all (none)."
    )
    min_foreground: float = option(
        0.05,
        "Smallest foreground fraction of a tile that is kept; 0.1 suits small tiles.",
        low=0.0,
        high=1.0,
    )
    select: Literal["all", "random", "densest"] = option(
        "all", "Which of the kept tiles, with --max-tiles."
    )
    max_tiles: int | None = option(None, "At most so many tiles a slide.", low=1)
    pixels: Literal["source", "lossless", "jpeg", "none"] = option(
        "source", "Pixels in the store: the slide's own JPEG bytes where possible, else lossless."
    )
    jpeg_quality: int = option(90, "Quality with --pixels jpeg.", low=1, high=100)
    focus: str = option(
        "best",
        "Of slides with several focal planes: the sharpest of each tile (best), all fused (fuse), "
        "or one (plane:K, from 0).",
    )
    reader: str = option("auto", "Reader: auto, vips, openslide or tiffslide.")
    seed: int = option(0, "Seed of --select random.", low=0)

    def check(self) -> None:
        """Refuse a number of tiles without a way to choose them, and an unknown focus."""
        super().check()
        try:
            number_of(self.focus)
        except ValueError as error:
            raise UsageError(
                f"{self.said('focus')}: choose best, fuse or plane:K.",
                hint="planes count from 0; `cytofm info SLIDE` says how many there are.",
            ) from error
        if self.max_tiles is not None and self.select == "all":
            raise UsageError(
                f"{self.said('max_tiles')} needs a way to choose.",
                hint="--select random, or densest.",
            )

    @property
    def target_mpp(self) -> float:
        """Resolution of the tiles, µm/px."""
        return DEFAULT_MPP if self.mpp is None else self.mpp

    @property
    def side_px(self) -> int:
        """Side of a tile of a slide, px at the tiles' resolution."""
        return DEFAULT_TILE_PX if self.tile_px is None else self.tile_px

    @property
    def step_px(self) -> int:
        """Step of the grid, px at the tiles' resolution."""
        return self.side_px if self.stride_px is None else self.stride_px


@dataclass(frozen=True, kw_only=True)
class TileJob:
    """What to do with one slide.

    Attributes:
        slide_id: name of the store.
        path: path or URL of the slide.
        mpp: µm/px stated by the manifest.
        stores: folder of the stores.
        config: the settings.
        overwrite: replace a finished store.
        dry_run: decide everything, write nothing.
        preview: folder for pictures of the choice, or None.
        threads: threads for this slide.
        regions: the file of its regions, if it has one.
    """

    slide_id: str
    path: str
    mpp: float | None
    stores: Path
    config: TileConfig
    overwrite: bool = False
    dry_run: bool = False
    preview: Path | None = None
    threads: int = 1
    regions: RegionFile | None = None
