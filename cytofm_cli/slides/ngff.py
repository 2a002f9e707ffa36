"""OME-Zarr (NGFF 0.1 to 0.5): what the attributes of its groups say, and which image is the slide.

Images of several resolutions (`multiscales`), alone or as series below one group (the layout of
bioformats2raw); https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import DAMAGE
from cytofm_cli.slides import descriptions
from cytofm_cli.slides.base import slide_error
from cytofm_cli.work.budget import FREE_BYTES, refuse_size
from cytofm_cli.work.files import read_plain

# Metadata files: Zarr 3 has one, Zarr 2 one for the attributes.
_V3, _V2 = "zarr.json", ".zattrs"
_UM: Final = {
    "micrometer": 1.0, "micrometre": 1.0, "micron": 1.0, "um": 1.0, "µm": 1.0, "nanometer": 1e-3,
    "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6, "angstrom": 1e-4,
}  # fmt: skip
_OLD_AXES: Final = "tczyx"  # of versions before 0.3, which state none
_MOST_BYTES: Final = 64_000_000
# What a slide with blank chunks left out comes to; glass alone compresses further.
_MOST_UNPACKED: Final = 1000
_MOST_CHUNK_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image: a group whose attributes list its resolutions.

    Attributes:
        folder: of the group.
        name: as its writer called it; may be empty.
        axes: one letter an axis: t, c, z, y, x.
        arrays: folder of each resolution below the group's, finest first.
        um: µm/px along x and y of the finest, or None.
        z_um: distance of focal planes, or None.
        channels: names of the channels; none where they have none.
    """

    folder: Path
    name: str
    axes: str
    arrays: tuple[str, ...]
    um: tuple[float | None, float | None]
    z_um: float | None
    channels: tuple[str, ...]


def attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of a group as OME-Zarr defines them; {} where it is none."""
    for name in (_V3, _V2):
        file = folder / name
        try:
            if file.stat().st_size > _MOST_BYTES:
                return {}
            content = json.loads(read_plain(file))
        except DAMAGE:
            continue
        if name == _V3:
            content = content.get("attributes") if isinstance(content, dict) else None
        if isinstance(content, dict):
            ome = content.get("ome")
            return {**content, **ome} if isinstance(ome, dict) else content
    return {}


def is_image(folder: Path) -> bool:
    """Tell whether a folder is an OME-Zarr image, a collection of them, a plate or labels."""
    known = {"multiscales", "bioformats2raw.layout", "plate", "well"}
    return folder.is_dir() and not known.isdisjoint(attributes(folder))


def refuse_claim(folder: Path, shape: Sequence[int], chunks: Sequence[int], n_bytes: int) -> None:
    """Refuse an array that states to be far larger than its files can unpack to.

    Args:
        folder: of the array.
        shape: of it.
        chunks: shape of what is decoded at a time.
        n_bytes: of one number.

    Raises:
        ValueError: it does, or its chunks are larger than 1 GiB.
    """
    if math.prod(chunks) * n_bytes > _MOST_CHUNK_BYTES:
        raise ValueError(f"its chunks are of {math.prod(chunks) * n_bytes} bytes")
    stated = math.prod(shape) * n_bytes
    stored = 0
    if stated > FREE_BYTES:
        for file in folder.rglob("*"):  # often a million: no further than is needed
            stored += file.stat().st_size
            if stored * _MOST_UNPACKED >= stated:
                return
    refuse_size(stated, stored, ratio=_MOST_UNPACKED)


def slide_image(path: str) -> tuple[Image, int]:
    """Choose the image that is the slide: the largest that is no label or overview.

    Returns:
        it, and how many images there are.

    Raises:
        SlideError: a plate, a label image, no image, or attributes that contradict themselves.
    """
    folder = Path(path)
    found = attributes(folder)
    for key, what in (("plate", "a plate of many fields"), ("well", "a well of a plate")):
        if key in found:
            raise slide_error(path, f"is {what}, not a slide.", "name one of its images.")
    if "image-label" in found:
        raise slide_error(path, "is a label image, not a slide.", "name the image it belongs to.")
    groups = [folder] if "multiscales" in found else _series(folder)
    try:
        images = [_image(group) for group in groups if "multiscales" in attributes(group)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise slide_error(path, f"its attributes are no OME-Zarr ({error!r}).") from error
    named = [image for image in images if not descriptions.other_name(image.name)]
    if not named:
        what = "holds only the label or overview of a slide" if images else "holds no image"
        raise slide_error(path, f"{what}.")
    return max(named, key=_n_px), len(images)


def shape(folder: Path) -> tuple[int, ...]:
    """Return the shape of an array; () where it is none."""
    for name in (_V3, ".zarray"):
        try:
            content = json.loads(read_plain(folder / name))
            return tuple(int(side) for side in content["shape"])
        except DAMAGE:
            continue
    return ()


def holds_chunks(folder: Path) -> bool:
    """Tell whether an array has any file besides its metadata."""
    metadata = (_V3, _V2, ".zarray", ".zgroup", ".zmetadata")
    return any(file.is_file() and file.name not in metadata for file in folder.rglob("*"))


def _series(folder: Path) -> list[Path]:
    """List the groups of a collection: those named by its index, else all that are numbered."""
    listed = attributes(folder / "OME").get("series")
    if isinstance(listed, list):
        return [folder / str(name) for name in listed]
    numbered = [each for each in folder.iterdir() if each.is_dir() and each.name.isdigit()]
    return sorted(numbered, key=lambda each: int(each.name))


def _n_px(image: Image) -> int:
    sides = shape(image.folder / image.arrays[0])
    return sides[-1] * sides[-2] if len(sides) >= 2 else 0


def _image(folder: Path) -> Image:
    found = attributes(folder)
    scales = found["multiscales"][0]
    axes = [
        each if isinstance(each, dict) else {"name": each} for each in scales.get("axes", _OLD_AXES)
    ]
    letters = "".join(str(each["name"]).lower() for each in axes)
    if len(letters) != len(axes) or set(letters) - set(_OLD_AXES) or not letters.endswith("yx"):
        raise ValueError(f"axes {letters!r}")
    datasets = scales["datasets"]
    factors = _scale(datasets[0], len(axes))
    for axis, factor in enumerate(_scale(scales, len(axes))):
        factors[axis] *= factor
    um = {
        letter: factor * unit
        for letter, factor, each in zip(letters, factors, axes, strict=True)
        if (unit := _UM.get(str(each.get("unit", "")).lower())) is not None and factor > 0
    }
    channels = (found.get("omero") or {}).get("channels") or []
    return Image(
        folder=folder,
        name=str(scales.get("name") or ""),
        axes=letters,
        arrays=tuple(str(each["path"]) for each in datasets),
        um=(um.get("x"), um.get("y")),
        z_um=um.get("z"),
        channels=tuple(str(each.get("label") or "") for each in channels),
    )


def _scale(element: Mapping[str, Any], n_axes: int) -> list[float]:
    for transform in element.get("coordinateTransformations") or ():
        if transform.get("type") == "scale" and len(transform["scale"]) == n_axes:
            return [float(factor) for factor in transform["scale"]]
    return [1.0] * n_axes
