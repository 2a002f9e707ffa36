"""Small slides that the readers of cytofm are run on, written with libvips."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.registry import Sample
from cytofm_cli.units import Size

_TILED: Final = {"tile": True, "tile_width": 128, "tile_height": 128, "pyramid": True}
SLIDES: Final[dict[str, tuple[Size, dict[str, Any]]]] = {
    "jpeg.tif": (Size(768, 512), {**_TILED, "compression": "jpeg", "Q": 80, "xres": 4000}),
    "odd.tif": (Size(701, 523), {**_TILED, "compression": "jpeg", "Q": 80, "bigtiff": True}),
    "lzw.tif": (Size(512, 256), {**_TILED, "compression": "lzw"}),
    "subifd.tif": (Size(600, 400), {**_TILED, "compression": "deflate", "subifd": True}),
    "strips.tif": (Size(300, 200), {"compression": "deflate"}),
    "field.png": (Size(301, 203), {}),
    "field.jpg": (Size(301, 203), {}),
}
_OPENSLIDE: Final = ("jpeg.tif", "odd.tif", "lzw.tif")
_TIFFS: Final = (*_OPENSLIDE, "subifd.tif", "strips.tif")


def draw(size: Size) -> NDArray[np.uint8]:
    """Draw discs on a gradient, (H, W, 3): edges, smooth parts and noise."""
    rng = np.random.default_rng(size.w)
    y, x = np.mgrid[: size.h, : size.w]
    picture = np.stack([200 + 40 * x / size.w, 220 - 30 * y / size.h, 230 + 0 * x], axis=-1)
    for cx, cy, radius in zip(*rng.uniform(0, 1, (2, 40)), rng.uniform(4, 20, 40), strict=True):
        disc = (x - cx * size.w) ** 2 + (y - cy * size.h) ** 2 < radius**2
        picture[disc] = rng.uniform(40, 180, 3)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def _write(folder: Path, names: tuple[str, ...], **traits: Any) -> list[Sample]:
    import pyvips

    for name in names:
        size, options = SLIDES[name]
        pyvips.Image.new_from_array(draw(size)).write_to_file(str(folder / name), **options)
    return [Sample(settings={"path": str(folder / name)}, traits=traits) for name in names]


def vips(folder: Path) -> list[Sample]:
    """Write TIFF of all kinds, PNG and JPEG."""
    return _write(folder, tuple(SLIDES))


def openslide(folder: Path) -> list[Sample]:
    """Write tiled TIFF; between levels that are no whole number apart OpenSlide interpolates."""
    return _write(folder, _OPENSLIDE, interpolates=True)


def tifffile(folder: Path) -> list[Sample]:
    """Write TIFF of all kinds."""
    return _write(folder, _TIFFS)


def tiffslide(folder: Path) -> list[Sample]:
    """Write TIFF of all kinds."""
    return _write(folder, _TIFFS)


def ndpi(folder: Path) -> list[Sample]:
    """Write NDPI with three focal planes and two levels, each one JPEG stream."""
    picture, pages = draw(Size(512, 384)), []
    for height_nm in (0, -2000, 2000):
        plane = np.roll(picture, height_nm // 100, axis=1)
        for factor, lens in ((1, 40.0), (4, 10.0)):
            pixels = np.ascontiguousarray(plane[::factor, ::factor])
            pages.append((pixels, lens, height_nm, 10_000 * 4 // factor))
    write_ndpi(folder / "stack.ndpi", pages)
    return [Sample(settings={"path": str(folder / "stack.ndpi")})]


def write_ndpi(path: Path, pages: list[tuple[NDArray[np.uint8], float, int, int]]) -> None:
    """Write pages as Hamamatsu does: the high halves of offsets lie behind each directory.

    Args:
        path: of the file.
        pages: pixels (H, W, 3), magnification, height in nm, and pixels to a centimetre of each.
    """
    import imagecodecs

    out, place = bytearray(b"II*\0" + bytes(8)), 4
    for pixels, lens, height_nm, per_cm in pages:
        stream = len(out)
        out += bytes(imagecodecs.jpeg_encode(pixels, level=95))
        n_bytes, ratio = len(out) - stream, len(out)
        out += struct.pack("<2I3H", per_cm, 1, 8, 8, 8)
        h, w = pixels.shape[:2]
        tags = [
            (256, 4, 1, w), (257, 4, 1, h), (258, 3, 3, ratio + 8), (259, 3, 1, 7),
            (262, 3, 1, 6), (271, 2, 4, int.from_bytes(b"Ham\0", "little")), (273, 4, 1, stream),
            (277, 3, 1, 3), (278, 4, 1, h), (279, 4, 1, n_bytes), (282, 5, 1, ratio),
            (283, 5, 1, ratio), (296, 3, 1, 3), (65420, 4, 1, 1),
            (65421, 11, 1, int.from_bytes(struct.pack("<f", lens), "little")),
            (65424, 9, 1, height_nm & 0xFFFFFFFF),
        ]  # fmt: skip
        struct.pack_into("<Q", out, place, len(out))
        out += struct.pack("<H", len(tags))
        out += b"".join(struct.pack("<2H2I", *tag) for tag in tags)
        place = len(out)
        out += bytes(8 + 4 * len(tags))
    path.write_bytes(out)
