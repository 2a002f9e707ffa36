"""tmapslide: UNIC's .tmap (versions 6 and 7), JPEG tiles, in pure Python."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides.base import SlideInfo, parse_float, slide_error
from cytofm_cli.slides.foreign import ForeignReader, open_with, with_notes
from cytofm_cli.slides.like_openslide import SoundTiles, reader_of, resolution
from cytofm_cli.slides.packages import Package

NAME: Final = "tmap"
PACKAGE: Final = Package(
    module="tmapslide",
    project="tmapslide",
    at_least="0.2.3",
    install="pip install 'cytofm[tmap]'",
)
# Version 7: a table of levels, and for each a block of records of its tiles.
_LEVELS_AT: Final = 560
_N_LEVELS: Final = 16
_LEVEL: Final = np.dtype(
    [
        ("number", "<u4"), ("scale", "<f4"), ("w", "<u4"), ("h", "<u4"), ("rows", "<u4"),
        ("columns", "<u4"), ("place", "<u4"), ("first", "<u4"),
    ]
)  # fmt: skip
_RECORD: Final = np.dtype(
    [("facts", "<u4", 6), ("place", "<u8"), ("n_bytes", "<u4"), ("pad", "<u4")]
)


class TmapPlugin:
    """Opens UNIC slides."""

    def probe(self, path: str) -> str | None:
        """Say why tmapslide should not read `path`; None if it should."""
        return "reads local files only" if "://" in path else None

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        package = PACKAGE.load()
        table = _table(path)
        slide = open_with(path, package.OpenSlide)
        properties = dict(slide.properties)
        notes = []
        if properties.get("tmap.mpp_source") == "derived":
            # The package's guess from the objective; what follows from that is said elsewhere.
            stated = parse_float(properties.get("tmap.pixel_size_mm"))
            notes.append(
                f"The resolution in the file ({1000 * (stated or 0):g} µm/px) contradicts its "
                "objective and is not used."
            )
            properties = {k: v for k, v in properties.items() if "openslide.mpp" not in k}
        n_planes = int(properties.get("tmap.focus_nums", "1"))
        if n_planes > 1:
            notes.append(f"Of {n_planes} focal planes tmapslide reads the first.")
        info = SlideInfo(
            path=path,
            reader=NAME,
            format="unic",
            levels=(),
            codec="jpeg",
            n_focal_planes=max(1, n_planes),
        )
        info = resolution(info, properties, "tmap.pixel_size")
        side, table = _square(table)
        tiles = SoundTiles(path, side, lambda *tile: _stream(path, table, *tile))
        return reader_of(slide, with_notes(info, notes), tiles)


def _square(table: list[NDArray[np.void]]) -> tuple[int, list[NDArray[np.void]]]:
    """Return the side of all tiles, and the table; none where their sides differ."""
    stored = [level["facts"][level["n_bytes"] > 0][:, 4:].ravel() for level in table]
    sides = np.unique(np.concatenate([np.empty(0, np.uint32), *stored]))
    return (int(sides[0]), table) if sides.size == 1 and sides[0] > 0 else (1, [])


def _stream(
    path: str, table: list[NDArray[np.void]], level: int, column: int, row: int
) -> bytes | None:
    """Read a tile of version 7."""
    if not (level < len(table) and row < table[level].shape[0] and column < table[level].shape[1]):
        return None
    record = table[level][row, column]
    with Path(path).open("rb") as handle:
        handle.seek(int(record["place"]))
        return handle.read(int(record["n_bytes"]))


def _table(path: str) -> list[NDArray[np.void]]:
    """Return the records of version 7, (rows, columns) a level; none of others.

    Raises:
        SlideError: records name tiles beyond the end, which tmapslide takes for blank ones.
    """
    table = []
    size_bytes = Path(path).stat().st_size
    with Path(path).open("rb") as handle:
        if handle.read(6) != b"TMAP07":
            return []
        handle.seek(_LEVELS_AT)
        levels = np.frombuffer(handle.read(_N_LEVELS * _LEVEL.itemsize), _LEVEL)
        for level in levels[(levels["w"] > 0) & (levels["h"] > 0)]:
            handle.seek(int(level["place"]))
            n_tiles = int(level["rows"]) * int(level["columns"])
            raw = handle.read(n_tiles * _RECORD.itemsize)
            records = np.frombuffer(raw[: len(raw) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
            beyond = int((records["place"] + records["n_bytes"] > size_bytes).sum())
            if beyond or len(records) < n_tiles:
                what = f"is truncated: {beyond + n_tiles - len(records)} of {n_tiles} tiles"
                raise slide_error(path, f"{what} of a level lie beyond its end.")
            table.append(records.reshape(int(level["rows"]), int(level["columns"])))
    return table


PLUGIN = ReaderPlugin(
    make=TmapPlugin,
    summary="UNIC TMAP",
    needs=("tmapslide",),
    extra="tmap",
    suffixes=(".tmap",),
    only=True,
    turn=30,
    sample="cytofm_cli.testing.samples.scanners:tmap",
)
