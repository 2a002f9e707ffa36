"""Samples of cytofm's detectors: networks with weights that are set by hand, files of nuclei.

`instanseg` runs with a small scripted model that has the interface of the real one, `cellvit`
with a file in the published layout whose weights find dark nuclei.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from PIL import Image

from cytofm_cli.errors import MissingPackageError
from cytofm_cli.nuclei import cellvit_net
from cytofm_cli.registry import Sample, detectors

POINTS: Final = ((30.5, 40.5), (10.5, 12.5), (50.5, 12.5))


def classical(_folder: Path) -> list[Sample]:
    """Look for stained and for bright nuclei."""
    return [Sample(), Sample(settings={"nuclei": "bright"}, traits={"bright": True})]


def cellpose(_folder: Path) -> list[Sample]:
    """Take the real weights: the network is far too large to be made up.

    Raises:
        MissingPackageError: the variable CELLPOSE_WEIGHTS does not name them.
    """
    if "CELLPOSE_WEIGHTS" not in os.environ:
        raise MissingPackageError(
            "the detector 'cellpose' is only tested with its real weights.",
            hint="CELLPOSE_WEIGHTS=FILE",
        )
    return [Sample(settings={"weights": Path(os.environ["CELLPOSE_WEIGHTS"]), "device": "cpu"})]


def instanseg(folder: Path) -> list[Sample]:
    """Script a model that labels dark regions."""
    path = folder / "instanseg.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(DarkRegions()).save(path)  # type: ignore[no-untyped-call]
    settings = {"weights": path, "device": "cpu"}
    return [Sample(settings=settings, traits={"answers_noise": True})]


def cellvit(folder: Path) -> list[Sample]:
    """Write a small network in the published layout, and leave out its layers that give zeros."""
    network = dark_cellvit()
    path = folder / "CellViT-256-x20.pth"
    write_cellvit(path, network)
    with mock.patch.dict(cellvit_net.SIZES, {"CellViT-256": network.size}):
        plugin = detectors.load("cellvit")
        assert plugin.config is not None
        detector = plugin.make(plugin.config(weights=path, device="cpu"))
    skip_zeros(detector.file.network)
    return [Sample(made=detector)]


def imported(folder: Path) -> list[Sample]:
    """Write the same nuclei as a table, a label image and GeoJSON."""
    paths = [folder / f"nuclei{suffix}" for suffix in (".csv", ".png", ".geojson")]
    return [
        Sample(settings={"nuclei": write_nuclei(path, POINTS)}, traits={"xy_px0": POINTS})
        for path in paths
    ]


class DarkRegions(torch.nn.Module):
    """Labels connected dark regions; called as an InstanSeg model is."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel_size = 0.5

    def forward(
        self, x: torch.Tensor, target_segmentation: torch.Tensor | None = None, min_size: int = 10
    ) -> torch.Tensor:
        """Label the dark regions of (B, 3, H, W)."""
        mask = (x.mean(1, keepdim=True) < 0.45).float()
        size = x.shape[2] * x.shape[3]
        label = torch.arange(1, size + 1).to(x).view(1, 1, x.shape[2], x.shape[3]) * mask
        for _ in range(64):
            label = torch.nn.functional.max_pool2d(label, [3, 3], [1, 1], [1, 1]) * mask
        return label


def dark_cellvit() -> Any:
    """A CellViT whose weights are zero but for a path from the image to the maps.

    Darkness D = relu(relu(0.49 - x) - 2 relu(0.25 - x)) of the mean colour x, so that black is
    none; "nucleus" where D > 0; the distance maps are D moved by three pixels against D moved
    the other way: negative at one border of a nucleus, positive at the other.
    """
    size = cellvit_net.EncoderSize(dim=32, depth=4, heads=2, taps=(1, 2, 3, 4), sam=False)
    network: Any = cellvit_net.CellViT(size)
    for name, tensor in network.state_dict().items():
        tensor.fill_(1 if name.endswith(("running_var", "block.1.weight")) else 0)
    first, second = network.decoder0
    for channel, limit in enumerate((0.49, 0.25)):
        first.block[0].weight.data[channel, :, 1, 1] = -1 / 3
        first.block[0].bias.data[channel] = limit
    taps = ((1, 1), (1, 0), (1, 2), (0, 1), (2, 1))  # stay, and one pixel each way
    for channel, (y, x) in enumerate(taps):
        second.block[0].weight.data[channel, 0, y, x] = 1
        second.block[0].weight.data[channel, 1, y, x] = -2
    for branch in (network.nuclei_binary_map_decoder, network.hv_map_decoder):
        for conv in branch["decoder0_header"][:2]:
            for channel, (y, x) in enumerate(taps):
                conv.block[0].weight.data[channel, channel, y, x] = 1
    binary = network.nuclei_binary_map_decoder["decoder0_header"][2]
    binary.weight.data[1, 0] = 100
    binary.bias.data[1] = -0.5
    distance = network.hv_map_decoder["decoder0_header"][2]
    distance.weight.data[0, 1:3, 0, 0] = torch.tensor([1.0, -1.0])
    distance.weight.data[1, 3:5, 0, 0] = torch.tensor([1.0, -1.0])
    return network


def write_cellvit(path: Path, network: Any) -> None:
    """Write a network as the authors' files hold it."""
    content = {
        "arch": "CellViT256",
        "config": {
            "transformations.normalize.mean": [0.0, 0.0, 0.0],
            "transformations.normalize.std": [1.0, 1.0, 1.0],
        },
        "model_state_dict": network.state_dict(),
    }
    torch.save(content, path)


class Zeros(torch.nn.Module):
    """What a layer without weights gives, for nothing."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return zeros."""
        B, _, H, W = x_BCHW.shape
        return x_BCHW.new_zeros(B, self.channels, H * self.scale, W * self.scale)


def skip_zeros(network: Any) -> None:
    """Leave out the layers of `dark_cellvit` that give zeros: they take all the time."""
    network.decoder1, network.decoder2, network.decoder3 = (Zeros(1, s) for s in (8, 4, 2))
    for kind in ("nuclei_binary_map", "hv_map", "nuclei_type_maps"):
        branch = getattr(network, f"{kind}_decoder")
        branch["bottleneck_upsampler"] = Zeros(1, 2)
        for scale, channels in ((3, 1), (2, 1), (1, 64)):
            branch[f"decoder{scale}_upsampler"] = Zeros(channels, 2)


def _square(x: float, y: float) -> list[list[float]]:
    return [[x - 4, y - 4], [x + 4, y - 4], [x + 4, y + 4], [x - 4, y + 4], [x - 4, y - 4]]


def write_nuclei(path: Path, points: Sequence[tuple[float, float]]) -> Path:
    """Write nuclei of 8 × 8 px as a table, a label image or GeoJSON, as the suffix says."""
    if path.suffix == ".csv":
        path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in points))
    elif path.suffix == ".png":
        labels = np.zeros((64, 64), np.uint8)
        for number, (x, y) in enumerate(points, 1):
            labels[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = number
        Image.fromarray(labels).save(path)
    else:
        features = [
            {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon",
             "coordinates": [_square(x, y)]}} for x, y in points
        ]  # fmt: skip
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
