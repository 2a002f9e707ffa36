"""Packages with the interface of openslide-python: KFB and TMAP.

They give a corner in level-0 pixels, round it down to the level, and leave blank what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cytofm_cli.slides.base import SlideInfo, mean_mpp, parse_float, slide_error
from cytofm_cli.slides.foreign import ForeignReader, corner_px0, levels_of, with_notes
from cytofm_cli.slides.jpeg_check import is_sound
from cytofm_cli.units import Box, Size

# As for TIFF (see `tiff.verify`): with fewer of its tiles a slide is broken, not sparse.
_MIN_STORED = 200


# (level of the package, column, row) → the JPEG stream of a tile; None where there is none.
Stream = Callable[[int, int, int], bytes | None]


class SoundTiles:
    """The JPEG tiles of a slide, each looked at when it is first read.

    The packages decode with Pillow, which shows the rest of a tile grey where its data are damaged.

    Args:
        path: of the slide.
        tile_px: side of its tiles.
        stream: reads one.
    """

    def __init__(self, path: str, tile_px: int, stream: Stream) -> None:
        self._path, self._tile_px, self._stream = path, tile_px, stream
        self._seen: set[tuple[int, int, int]] = set()

    def refuse_broken(self, level: int, box: Box) -> None:
        """Refuse a box if data under it are damaged.

        Raises:
            SlideError: they are.
        """
        side = self._tile_px
        for row in range(box.y // side, -(-(box.y + box.h) // side)):
            for column in range(box.x // side, -(-(box.x + box.w) // side)):
                tile = (level, column, row)
                if tile in self._seen:
                    continue
                stream = self._stream(*tile)
                # Another beginning is no tile; the packages mend such indexes, or fail.
                if stream and stream[:2] == b"\xff\xd8" and not is_sound(stream):
                    where = f"column {column}, row {row} of level {level}"
                    raise slide_error(self._path, f"damaged JPEG tile at {where}.")
                self._seen.add(tile)


def reader_of(slide: Any, info: SlideInfo, tiles: SoundTiles) -> ForeignReader:
    """Wrap an open slide.

    Args:
        slide: an object like `openslide.OpenSlide`.
        info: its facts; `levels` is filled in here.
        tiles: its tiles as they lie in the file.
    """
    levels, places = levels_of(slide.level_dimensions)
    info = SlideInfo(**{**vars(info), "levels": levels})
    scales = slide.level_downsamples

    def read(level: int, box: Box, _plane: int) -> Any:
        place = places[level]
        tiles.refuse_broken(place, box)
        return slide.read_region(corner_px0(box.x, box.y, scales[place]), place, (box.w, box.h))

    return ForeignReader(info, read, slide.close)


def resolution(info: SlideInfo, properties: Mapping[str, str], source: str) -> SlideInfo:
    """Add µm/px and objective as such packages state them; 0 is no statement."""
    um = [parse_float(properties.get(f"openslide.mpp-{axis}")) or None for axis in "xy"]
    mpp, note = mean_mpp(um[0], um[1])
    objective = parse_float(properties.get("openslide.objective-power")) or None
    info = SlideInfo(
        **{
            **vars(info),
            "mpp": mpp,
            "mpp_source": source if mpp else None,
            "objective": objective,
        }
    )
    return with_notes(info, [note])


def refuse_hollow(path: str, size: Size, tile_px: int, n_tiles: int) -> None:
    """Refuse a slide that holds next to none of the tiles that its size needs.

    Raises:
        SlideError: it does.
    """
    if min(size) < 1 or tile_px < 1:
        raise slide_error(path, f"claims {size.w} x {size.h} px in tiles of {tile_px} px.")
    expected = -(-size.w // tile_px) * -(-size.h // tile_px)
    if n_tiles * _MIN_STORED < expected:
        raise slide_error(
            path, f"claims {size.w} x {size.h} px but holds {n_tiles} of {expected} tiles."
        )
