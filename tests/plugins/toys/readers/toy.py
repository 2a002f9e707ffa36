"""Slides that are NumPy arrays, saved as `x.toy`: uint8 (H, W, 3) at 0.25 µm/px."""

from pathlib import Path

import numpy as np
from PIL import Image

from cytofm_cli.registry import ReaderPlugin, Sample
from cytofm_cli.slides.base import (
    Level,
    SlideInfo,
    SlideReader,
    check_box,
    overview_size,
    slide_error,
)
from cytofm_cli.units import Size


class ToySlide(SlideReader):
    def __init__(self, path, pixels):
        self.pixels = pixels
        level = Level(size_px=Size(pixels.shape[1], pixels.shape[0]), downsample=1.0)
        self.info = SlideInfo(
            path=path, reader="toy", format="toy", levels=(level,), mpp=0.25, mpp_source="toy"
        )

    def read(self, level, box):
        check_box(self.info, level, box)
        return self.pixels[box.y : box.y + box.h, box.x : box.x + box.w]

    def overview(self, downsample):
        size = overview_size(self.info, downsample)
        return np.array(Image.fromarray(self.pixels).resize(size, Image.Resampling.BOX))

    def native_jpeg(self, level):
        return None

    def close(self):
        pass


class ToyReader:
    def probe(self, path):
        return None if path.endswith(".toy") else "is no .toy"

    def open(self, path):
        try:
            return ToySlide(path, np.load(path))
        except (OSError, ValueError) as error:
            raise slide_error(path, error) from error


def sample(folder):
    path = Path(folder) / "sample.toy"
    with path.open("wb") as file:
        np.save(file, np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    return [Sample(settings={"path": str(path)})]


PLUGIN = ReaderPlugin(make=ToyReader, summary="NumPy arrays", suffixes=(".toy",), sample=sample)
