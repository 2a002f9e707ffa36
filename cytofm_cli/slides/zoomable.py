"""Pictures cut into tiles for viewers in browsers: Deep Zoom, Google Maps, Zoomify, IIIF.

Made from slides, compressed once more, without µm/px: neither they nor their tiles are slides. They
are known by how folders and files are called, and only where the whole pattern is there: numbers
alone are names of patients and of fields, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

HINT: Final = "give the slide that it was made from."
_GROUP: Final = re.compile(r"TileGroup\d+")
_REGION: Final = re.compile(r"\d+,\d+,\d+,\d+")
_PICTURE: Final = r"\.(?:jpe?g|png|webp)"
_FIRST: Final = re.compile("0_0" + _PICTURE)
_SECOND: Final = re.compile("[01]_[01]" + _PICTURE)
_TILE: Final = re.compile(r"(\d+)" + _PICTURE)
_BESIDE: Final = frozenset(("vips-properties.xml",))
# What stands in the files that describe such pictures.
_WORDS: Final = (
    (b"schemas.microsoft.com/deepzoom", "Deep Zoom"),
    (b"<IMAGE_PROPERTIES", "Zoomify"),
    (b"iiif.io/api/image", "IIIF"),
)


def described(path: str, head: bytes) -> str | None:
    """Return the kind of zoomable picture that a file describes; None: it describes none."""
    if path.lower().endswith(".dzi"):
        return "Deep Zoom"
    return next((kind for word, kind in _WORDS if word in head), None)


def tiles_in(
    folder: Path, folders: Collection[str], files: Collection[str]
) -> tuple[str, frozenset[str]]:
    """Return which names in a folder are tiles, or folders of tiles, and of what kind of picture.

    Args:
        folder: path.
        folders: names of the folders in it, without hidden ones.
        files: names of the files in it, without hidden ones.

    Returns:
        "" and no names where there is no zoomable picture.
    """
    if groups := {name for name in folders if _GROUP.fullmatch(name)}:
        return "Zoomify", frozenset(groups)
    regions = {name for name in folders if _REGION.fullmatch(name)}
    if regions and "info.json" in files:
        return "IIIF", frozenset(regions | {"full"})
    levels = frozenset(name for name in folders if name.isdecimal())
    if levels and _is_deep_zoom(folder, levels, {*folders, *files}):
        return "Deep Zoom", levels
    if levels and _is_google_maps(folder, levels):
        return "Google Maps", levels | {"blank.png"}
    return "", frozenset()


def _is_deep_zoom(folder: Path, levels: frozenset[str], names: set[str]) -> bool:
    """Tell whether levels are LEVEL/COLUMN_ROW.jpeg, or in a folder that is called as theirs."""
    path = folder.absolute()
    stem = path.name.removesuffix("_files")
    alone = "0" in levels and names <= levels | _BESIDE
    if stem != path.name and (alone or path.with_name(f"{stem}.dzi").exists()):
        return True
    return (
        _is_pyramid(levels)
        and _all_match(_FIRST, _names(folder / "0"), 1)
        and _all_match(_SECOND, _names(folder / "1"), 4)
    )


def _is_google_maps(folder: Path, levels: frozenset[str]) -> bool:
    """Tell whether levels are LEVEL/ROW/COLUMN.jpg, with at most 2^LEVEL rows and columns."""
    return _is_pyramid(levels) and all(
        _is_square(folder / level, 2 ** int(level)) for level in sorted(levels, key=int)
    )


def _is_square(level: Path, side: int) -> bool:
    """Tell whether a folder holds ROW/COLUMN.jpg, each number below `side`, and nothing else."""
    rows = _names(level)
    if not rows or not all(row.isdecimal() and int(row) < side for row in rows):
        return False
    tiles = [_TILE.fullmatch(name) for row in rows for name in _names(level / row)]
    return bool(tiles) and all(tile and int(tile[1]) < side for tile in tiles)


def _is_pyramid(levels: frozenset[str]) -> bool:
    """Tell whether levels are numbered from 0 without a gap, and there are more than two."""
    return len(levels) > 2 and levels == {str(level) for level in range(len(levels))}


def _all_match(pattern: re.Pattern[str], names: list[str], most: int) -> bool:
    return 0 < len(names) <= most and all(pattern.fullmatch(name) for name in names)


def _names(folder: Path) -> list[str]:
    """List what is in a folder, without what is hidden; nothing where it cannot be listed."""
    try:
        return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
