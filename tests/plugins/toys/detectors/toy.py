"""What is darker than a threshold is a nucleus."""

from dataclasses import dataclass

from scipy import ndimage

from cytofm_cli.config import Settings, option
from cytofm_cli.nuclei.base import as_rgb, check_mpp
from cytofm_cli.nuclei.polygons import label_table
from cytofm_cli.registry import DetectorPlugin, samples


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    below: int = option(150, "mean of the colours below which a pixel is dark", low=1, high=255)
    smallest_um2: float = option(15.0, "smallest area of a nucleus, µm²", low=0)


class ToyDetector:
    classes = ("nucleus",)
    halo_um = 16.0

    def __init__(self, config):
        self.config = config

    def detect(self, image_HWC, mpp):
        check_mpp(mpp, 0.1, 2.0, "toy")
        dark_HW = ndimage.gaussian_filter(as_rgb(image_HWC).mean(2), 2) < self.config.below
        if dark_HW.all():  # a dark picture is no nucleus
            dark_HW[:] = False
        label_HW, _ = ndimage.label(dark_HW)
        smallest_px = max(1, round(self.config.smallest_um2 / mpp**2))
        return label_table(label_HW, mpp, min_area_px=smallest_px).sorted()


PLUGIN = DetectorPlugin(
    make=ToyDetector, config=Config, summary="dark regions", sample=samples({}, {"below": 140})
)
