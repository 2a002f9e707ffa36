"""Put the pixels of tiles into the store: the slide's own JPEG bytes, lossless, or JPEG.

Copying bytes decodes nothing and loses nothing beyond the scanner's own compression. It needs
a grid that follows the file's tiles; a tile of the store is then k × k JPEG streams, one zarr
chunk each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import NativeJpeg, SlideReader
from cytofm_cli.store import arrays, schema
from cytofm_cli.store.checksum import Codec
from cytofm_cli.store.zarr3 import (
    BYTES,
    JPEG,
    ZSTD,
    jpeg_decode,
    jpeg_encode,
    zstd_encode,
)
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.tiles.damage import Damage, LenientReader
from cytofm_cli.tiles.focal import TileViews
from cytofm_cli.tiles.focal_word import BEST, FUSE
from cytofm_cli.tiles.read import ReadPlan, ordered_map, read_tile
from cytofm_cli.units import Box

Layout = tuple[int, list[Codec], str]  # side, codecs and name of the chunks
_SAMPLE = 12  # tiles that the forecast of the size encodes


@dataclass(frozen=True, kw_only=True)
class SourceTiles:
    """The file's own JPEG tiles, checked to decode to what the reader shows.

    Attributes:
        side_px: side of a native tile, px of the level.
        align_px0: the grid must lie on multiples of this, level-0 px.
    """

    side_px: int
    align_px0: int


def find_source_tiles(
    reader: SlideReader, plan: ReadPlan, config: TileConfig, focus: str | None = None
) -> tuple[SourceTiles | None, str]:
    """Tell whether the file's own JPEG tiles can be copied, and why not.

    Args:
        reader: the open slide, at the plane of "plane:K".
        plan: level and scale.
        config: the settings.
        focus: of a slide with several focal planes; see `focal.focus_of`.

    Returns:
        (the tiles, "") or (None, one clause that says why not; "" if the file has no JPEG
        tiles at all).
    """
    jpeg = reader.native_jpeg(plan.level)
    if jpeg is None:
        return None, ""
    side = jpeg.tile_px.w
    align = side * plan.downsample
    if plan.scale != 1:
        return None, "the tiles are resampled to --mpp"
    if jpeg.tile_px.h != side or abs(align - round(align)) > 1e-6:
        return None, "the file's tiles do not lie on a square grid of level-0 pixels"
    if config.side_px % side or config.step_px % side:
        return None, f"--tile-px and --stride-px are no multiples of the file's {side} px tiles"
    if min(reader.info.levels[plan.level].size_px) < config.side_px:
        return None, "the slide is smaller than one tile"
    if focus == FUSE:
        return None, "its focal planes are fused; --pixels jpeg takes less"
    if focus == BEST and not _alike_in_planes(reader, plan.level, jpeg):
        return None, "the focal planes have tiles of different kinds"
    if not _decodes_alike(reader, plan.level, jpeg):
        return None, "the file's JPEG tiles decode to other pixels than the reader shows"
    return SourceTiles(side_px=side, align_px0=round(align)), ""


def _alike_in_planes(reader: SlideReader, level: int, jpeg: NativeJpeg) -> bool:
    """Tell whether every focal plane has JPEG tiles on the same grid."""
    planes = (reader.at_plane(plane) for plane in range(reader.info.n_focal_planes))
    jpegs = [plane.native_jpeg(level) for plane in planes]
    return all(each and (each.tile_px, each.grid) == (jpeg.tile_px, jpeg.grid) for each in jpegs)


def _decodes_alike(reader: SlideReader, level: int, jpeg: NativeJpeg) -> bool:
    """Check the middle tile: right tables, right colours."""
    side = jpeg.tile_px.w
    size = reader.info.levels[level].size_px
    column, row = (size.w // side) // 2, (size.h // side) // 2
    try:
        stream = jpeg.stream(column, row)
        if stream is None:
            return True
        box = Box(column * side, row * side, side, side)
        inside = box.x + side <= size.w and box.y + side <= size.h
        return inside and np.array_equal(jpeg_decode(stream), reader.read(level, box))
    except (SlideError, RuntimeError, ValueError):
        return False


def forecast_bytes(
    views: TileViews,
    plan: ReadPlan,
    xy_px0: NDArray[np.int32],
    *,
    config: TileConfig,
    source: SourceTiles | None,
    fill: int,
) -> int:
    """Forecast the size of the pixels on disk, from a dozen tiles that are encoded for it.

    Arguments as `write_pixels`. What a tile takes differs tenfold between glass and cells.
    """
    if config.pixels == "none":
        return 0
    encode, _ = _encoder(views, plan, xy_px0, config, source, fill, Damage())
    rows = np.unique(np.linspace(0, len(xy_px0) - 1, _SAMPLE).round().astype(int)).tolist()
    sizes = [sum(len(chunk or b"") for chunk in encode(row)) for row in rows]
    return round(float(np.mean(sizes)) * len(xy_px0))


def write_pixels(
    views: TileViews,
    plan: ReadPlan,
    xy_px0: NDArray[np.int32],
    folder: Path,
    *,
    config: TileConfig,
    source: SourceTiles | None,
    fill: int,
    threads: int,
    report: Callable[[int, int], None],
) -> tuple[str, int, int]:
    """Write `tiles/pixels` under `folder`. What is damaged in the file is blank.

    Returns:
        (the codec of the store, bytes written, tiles that are damaged in the file).

    Raises:
        SlideError: more than a tenth of the tiles are damaged.
    """
    damage = Damage()
    n = len(xy_px0)
    encode, layout = _encoder(views, plan, xy_px0, config, source, fill, damage)
    written = write_tiles(folder, encode, (n, config.side_px), layout, threads, report)
    damage.refuse_too_much(views.path, n)
    return layout[2], written, damage.n_tiles


def write_tiles(
    folder: Path,
    encode: Callable[[int], list[bytes | None]],
    size: tuple[int, int],
    layout: Layout,
    threads: int,
    report: Callable[[int, int], None],
) -> int:
    """Write `tiles/pixels` under `folder`; return how many bytes that took.

    Args:
        folder: where the step is staged.
        encode: makes the chunks of a tile, by its row; called by several threads.
        size: how many tiles there are, and their side.
        layout: of the chunks.
        threads: that encode.
        report: called with (tiles done, of how many).
    """
    (n, side), (chunk_side, codecs, _) = size, layout
    writer = arrays.open_shards(
        folder,
        schema.TILE_PIXELS,
        shape=(n, side, side, 3),
        rows_per_shard=(rows := schema.tiles_per_shard(n)),
        chunk=(1, chunk_side, chunk_side, 3),
        codecs=codecs,
    )
    written = 0
    with ThreadPoolExecutor(threads) as pool:
        for shard in range(writer.n_shards):
            tiles = range(shard * rows, min(n, (shard + 1) * rows))
            chunks = _flatten(
                ordered_map(pool, encode, tiles, window=4 * threads), report, tiles, n
            )
            written += writer.write_shard(shard, chunks)
    return written


def encode_pixels(pixels: NDArray[np.uint8], config: TileConfig) -> bytes:
    """Encode a tile of which nothing is copied."""
    if config.pixels == "jpeg":
        return jpeg_encode(pixels, config.jpeg_quality)
    return zstd_encode(pixels.tobytes())


def _encoder(
    views: TileViews,
    plan: ReadPlan,
    xy_px0: NDArray[np.int32],
    config: TileConfig,
    source: SourceTiles | None,
    fill: int,
    damage: Damage,
) -> tuple[Callable[[int], list[bytes | None]], Layout]:
    """Return what makes the chunks of a tile, and their layout."""
    layout = layout_of(config, config.side_px, source)
    if source is not None:
        per_side = config.side_px // layout[0]
        return partial(_copy_tile, views, source, plan, xy_px0, per_side, damage, fill), layout
    return partial(_encode_tile, views, plan, xy_px0, config, fill, damage), layout


def layout_of(config: TileConfig, side_px: int, source: SourceTiles | None = None) -> Layout:
    """Return how pixels lie in the store: side, codecs and name of the chunks."""
    if source is not None:
        return source.side_px, [BYTES, JPEG], "source jpeg"
    if config.pixels == "jpeg":
        return side_px, [BYTES, JPEG], f"jpeg quality {config.jpeg_quality} 4:4:4"
    return side_px, [BYTES, ZSTD], "zstd (lossless)"


def _flatten(
    tiles: Iterator[list[bytes | None]], report: Callable[[int, int], None], rows: range, n: int
) -> Iterator[bytes | None]:
    for row, chunks in zip(rows, tiles, strict=True):
        yield from chunks
        report(row + 1, n)


def _encode_tile(
    views: TileViews,
    plan: ReadPlan,
    xy_px0: NDArray[np.int32],
    config: TileConfig,
    fill: int,
    damage: Damage,
    row: int,
) -> list[bytes | None]:
    lenient = LenientReader(views.reader(row), damage, views.jpeg(row, plan.level), fill)
    pixels = read_tile(lenient, plan, int(xy_px0[row, 0]), int(xy_px0[row, 1]), fill=fill)
    if lenient.has_damage:
        damage.tell(row)
    return [encode_pixels(pixels, config)]


def _copy_tile(
    views: TileViews,
    source: SourceTiles,
    plan: ReadPlan,
    xy_px0: NDArray[np.int32],
    per_side: int,
    damage: Damage,
    fill: int,
    row: int,
) -> list[bytes | None]:
    column, line = (round(int(v) / plan.downsample) // source.side_px for v in xy_px0[row])
    jpeg = views.jpeg(row, plan.level)
    assert jpeg is not None  # `find_source_tiles` looked
    streams: list[bytes | None] = []
    for dy in range(per_side):
        for dx in range(per_side):
            # A tile that the scanner left out is blank glass, shown white like the readers do.
            blank = 255
            try:
                stream = damage.stream(jpeg, column + dx, line + dy)
            except SlideError:
                damage.tell(row)
                stream, blank = None, fill
            streams.append(_blank(source.side_px, blank) if stream is None else stream)
    return streams


def _blank(side_px: int, grey: int) -> bytes:
    return jpeg_encode(np.full((side_px, side_px, 3), grey, dtype=np.uint8), 90)
