"""Slides made for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile

TILED = {"tile": True, "tile_width": 128, "tile_height": 128, "pyramid": True}


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """Return (523, 701, 3) uint8: coloured discs on a gradient, with noise."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:523, :701]
    pixels = np.stack([200 + x / 20, 230 - y / 20, 225 + 0 * x], axis=-1)
    for cx, cy, radius in zip(
        rng.integers(0, 701, 60), rng.integers(0, 523, 60), range(3, 63), strict=True
    ):
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2 / 4] = rng.uniform(30, 190, 3)
    return np.clip(pixels + rng.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def save(tmp_path: Path, picture: np.ndarray) -> Callable[..., str]:
    """Write `picture`, or other pixels, with libvips: `save("a.tif", compression="jpeg")`."""

    def write(
        name: str, pixels: np.ndarray | None = None, *, tiled: bool = True, **options: object
    ) -> str:
        path = str(tmp_path / name)
        image = pyvips.Image.new_from_array(picture if pixels is None else pixels)
        layout = TILED if tiled and name.endswith(("tif", "svs")) else {}
        image.write_to_file(path, **{**layout, **options})
        return path

    return write


@pytest.fixture
def patch(tmp_path: Path) -> Callable[..., str]:
    """Overwrite one value of a TIFF tag in a copy: `patch(path, "TileOffsets", 3, 10**9)`."""

    def change(path: str, tag: str, index: int | slice, value: int) -> str:
        changed = str(tmp_path / f"patched-{Path(path).name}")
        if path != changed:
            shutil.copy(path, changed)
        with tifffile.TiffFile(changed, mode="r+") as tif:
            found = tif.pages[0].tags[tag]
            width = {3: 2, 4: 4, 16: 8}[int(found.dtype)]
            order = "big" if tif.byteorder == ">" else "little"
            for place in (
                range(*index.indices(found.count)) if isinstance(index, slice) else [index]
            ):
                tif.filehandle.seek(found.valueoffset + place * width)
                tif.filehandle.write(value.to_bytes(width, order))
        return changed

    return change


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Path:
    """Return the folder of test slides beside the checkout, to a test that says it needs it."""
    assert request.node.get_closest_marker("needs_shared"), "say @pytest.mark.needs_shared(...)"
    return Path(__file__).resolve().parents[2].parent / "shared" / "data"
