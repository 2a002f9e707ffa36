"""What bag files say about their features: our own record, or the attributes of other tools.

Our h5 files keep the record (JSON) in an attribute of the features. A `.pt` file is a zip archive
in which `torch.load` reads only what it knows: ours hold the record as one more member.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.mil.origin import UNKNOWN, Origin, from_record
from cytofm_cli.work.zips import ZIP_DAMAGE

if TYPE_CHECKING:
    import h5py

RECORD = "cytofm"  # attribute of an h5 dataset
MEMBER = "cytofm.json"  # of the zip archive
_ENCODER_WORDS = ("encoder", "extractor", "encoder_name", "model_name")
OBJECTIVE_UM = 10.0  # 40× is 0.25 µm/px
_MOST_BYTES = 1 << 20
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # equal exports are equal files


def h5_origin(file: h5py.File, key: str) -> Origin:
    """Read the origin of the features `key`: ours, else what TRIDENT or STAMP note.

    TRIDENT names the encoder at the features and tile and objective at the coordinates, STAMP
    notes all three at the file; others name an encoder at either place.
    """
    own = file[key].attrs.get(RECORD)
    if own is not None:
        return _parsed(own)
    named = (of.get(word) for of in (file[key].attrs, file.attrs) for word in _ENCODER_WORDS)
    encoder = next((str(word) for word in named if word is not None), "")
    record: dict[str, Any] = {"encoder": "" if encoder == "None" else encoder}
    link = file.get("coords", getlink=True) if "coords" in set(file) else None
    # A link out of the file is not followed, nor asked whether it leads anywhere.
    notes = file["coords"].attrs if type(link).__name__ == "HardLink" else {}
    tile_px = _number(notes.get("patch_size", file.attrs.get("tile_size_px")))
    objective, tile_um = (
        _number(notes.get("target_magnification")),
        _number(file.attrs.get("tile_size_um")),
    )
    if tile_px:
        record |= {"unit": "tile", "tile_px": tile_px}
    if objective:
        record["mpp"] = OBJECTIVE_UM / objective
    elif tile_um and tile_px:
        record["mpp"] = tile_um / tile_px
    return from_record(record)


def _number(value: Any) -> float | None:
    """Return a positive number, None for what is not."""
    try:
        return float(value) if value is not None and float(value) > 0 else None
    except (TypeError, ValueError):
        return None


def pt_origin(path: Path) -> Origin:
    """Read the origin of a `.pt` file; nothing is known of one that other tools wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                named = member.filename.rpartition("/")[2] == MEMBER
                if named and member.file_size <= _MOST_BYTES:
                    return _parsed(archive.read(member))
    except ZIP_DAMAGE:  # torch's older format is no zip archive
        pass
    return UNKNOWN


def to_text(origin: Origin) -> str:
    """Write an origin as a file of ours keeps it."""
    return json.dumps(origin.record(), sort_keys=True)


def add_to_pt(path: Path, origin: Origin) -> None:
    """Put the record into a file that `torch.save` wrote."""
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{folder}/{MEMBER}", _LONG_AGO), to_text(origin))


def _parsed(text: str | bytes) -> Origin:
    try:
        record = json.loads(text)
        return from_record(record) if isinstance(record, Mapping) else UNKNOWN
    except (TypeError, ValueError):
        return UNKNOWN
