"""zarr: OME-Zarr (NGFF), a folder `NAME.ome.zarr` or `NAME.zarr`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import ngff
from cytofm_cli.slides.base import SlideInfo, mean_mpp, slide_error
from cytofm_cli.slides.foreign import (
    ForeignReader,
    as_bands,
    heights_um,
    levels_of,
    open_with,
    planes_note,
    refuse_wide,
    shown_channels,
    with_notes,
)
from cytofm_cli.units import Box

NAME: Final = "ngff"


class NgffPlugin:
    """Opens OME-Zarr folders."""

    def probe(self, path: str) -> str | None:
        """Say why this reader should not read `path`; None if it should."""
        if "://" in path:
            return "reads local folders only"
        return None if ngff.is_image(Path(path)) else "no OME-Zarr folder"

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        if not ngff.is_image(Path(path)):
            raise slide_error(path, "is no OME-Zarr folder.", "check the path.")
        image, n_images = ngff.slide_image(path)
        arrays = open_with(path, lambda _: [_array(image, name) for name in image.arrays])
        return _reader(path, image, arrays, n_images)


def _array(image: ngff.Image, name: str) -> Any:
    import zarr

    return zarr.open_array(image.folder / name, mode="r")


def _reader(path: str, image: ngff.Image, arrays: list[Any], n_images: int) -> ForeignReader:
    first = arrays[0]
    if any(array.ndim != len(image.axes) for array in arrays):
        raise slide_error(path, f"its arrays do not have the axes {image.axes!r}.")
    refuse_wide(path, first.dtype)
    if not ngff.holds_chunks(image.folder / image.arrays[0]):
        raise slide_error(path, f"claims {first.shape[-1]} x {first.shape[-2]} px but holds none.")
    _refuse_claims(path, image, arrays)
    sizes = dict(zip(image.axes, first.shape, strict=True))
    names = [*image.channels, *[""] * sizes.get("c", 1)][: sizes.get("c", 1)]
    channels, note = shown_channels(names)
    n_planes = sizes.get("z", 1)
    same = [
        a for a in arrays if dict(zip(image.axes, a.shape, strict=True)).get("z", 1) == n_planes
    ]
    levels, places = levels_of([(array.shape[-1], array.shape[-2]) for array in same])
    mpp, doubt = mean_mpp(*image.um)
    told = f"Of {n_images} pictures in the folder, {image.folder.name!r} is read."
    times = f"Of {sizes.get('t', 1)} points in time the first is read."
    info = SlideInfo(
        path=path,
        reader=NAME,
        format="ome-zarr",
        levels=levels,
        mpp=mpp,
        mpp_source="ngff.scale" if mpp else None,
        codec=_codec(first),
        n_focal_planes=n_planes,
        focal_plane=n_planes // 2,
        planes_um=heights_um(n_planes, image.z_um),
        reads_planes=n_planes > 1,
    )
    notes = [told if n_images > 1 else None, times if sizes.get("t", 1) > 1 else None]
    info = with_notes(info, [*notes, note, doubt, planes_note(n_planes, n_planes // 2)])

    def read(level: int, box: Box, plane: int) -> Any:
        window = {"y": slice(box.y, box.y + box.h), "x": slice(box.x, box.x + box.w), "z": plane}
        array = same[places[level]]
        pictures = [
            np.asarray(array[tuple({**window, "c": c, "t": 0}[axis] for axis in image.axes)])
            for c in channels
        ]
        return as_bands(pictures)

    return ForeignReader(info, read, lambda: None)


def _refuse_claims(path: str, image: ngff.Image, arrays: list[Any]) -> None:
    """Refuse arrays that claim more than they can hold, before memory is taken for them."""
    for name, array in zip(image.arrays, arrays, strict=True):
        try:
            ngff.refuse_claim(image.folder / name, array.shape, array.chunks, array.dtype.itemsize)
        except ValueError as error:
            told = f"array {name!r}: {error}."
            raise slide_error(path, told, "copy the folder again from its source.") from error


def _codec(array: Any) -> str:
    """Name how the chunks are compressed."""
    codecs = list(array.compressors)
    if not codecs:
        return "none"
    codec = codecs[-1]
    name = getattr(codec, "codec_id", None) or type(codec).__name__.lower()
    return str(name).removesuffix("codec").replace("gzip", "deflate").replace("zlib", "deflate")


PLUGIN = ReaderPlugin(
    make=NgffPlugin,
    summary="OME-Zarr (NGFF)",
    needs=("zarr",),
    suffixes=(".zarr",),
    only=True,
    turn=30,
    sample="cytofm_cli.testing.samples.scanners:ngff",
)
