"""Small slides that the readers of cytofm are run on, written with libvips."""

from __future__ import annotations

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
