"""What every detector of nuclei must do, on every detector that runs without a user's weights.

`instanseg` runs with a small scripted model that has the interface of the real one, `cellvit`
with a file in the published layout whose weights are set by hand, and `imported`, which looks at
no pixels, with files of every kind.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import cellvit_net, polygons
from cytofm_cli.nuclei.base import NucleusDetector, NucleusSource, NucleusTable
from cytofm_cli.nuclei.detectors.classical import ClassicalConfig
from cytofm_cli.nuclei.stitch import detect_tiles
from cytofm_cli.registry import Plugin, detectors
from cytofm_cli.units import Box, Size

MPP = 0.25


class DarkRegions(torch.nn.Module):
    """Labels connected dark regions; called as an InstanSeg model is."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel_size = 0.5

    def forward(
        self, x: torch.Tensor, target_segmentation: torch.Tensor | None = None, min_size: int = 10
    ) -> torch.Tensor:
        mask = (x.mean(1, keepdim=True) < 0.45).float()
        size = x.shape[2] * x.shape[3]
        label = torch.arange(1, size + 1).to(x).view(1, 1, x.shape[2], x.shape[3]) * mask
        for _ in range(64):
            label = torch.nn.functional.max_pool2d(label, [3, 3], [1, 1], [1, 1]) * mask
        return label


@pytest.fixture(scope="module")
def instanseg_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "instanseg.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(DarkRegions()).save(path)
    return path


def dark_cellvit() -> cellvit_net.CellViT:
    """A CellViT whose weights are zero but for a path from the image to the maps.

    Darkness D = relu(relu(0.49 - x) - 2 relu(0.25 - x)) of the mean colour x, so that black is
    none; "nucleus" where D > 0; the distance maps are D moved by three pixels against D moved
    the other way: negative at one border of a nucleus, positive at the other.
    """
    size = cellvit_net.EncoderSize(dim=32, depth=4, heads=2, taps=(1, 2, 3, 4), sam=False)
    network = cellvit_net.CellViT(size)
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


class Zeros(torch.nn.Module):
    """What a layer without weights gives, for nothing."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        B, _, H, W = x_BCHW.shape
        return x_BCHW.new_zeros(B, self.channels, H * self.scale, W * self.scale)


def skip_zeros(network: cellvit_net.CellViT) -> None:
    """Leave out the layers of `dark_cellvit` that give zeros: they take all the time."""
    network.decoder1, network.decoder2, network.decoder3 = (Zeros(1, s) for s in (8, 4, 2))
    for kind in ("nuclei_binary_map", "hv_map", "nuclei_type_maps"):
        branch = getattr(network, f"{kind}_decoder")
        branch["bottleneck_upsampler"] = Zeros(1, 2)
        for scale, channels in ((3, 1), (2, 1), (1, 64)):
            branch[f"decoder{scale}_upsampler"] = Zeros(channels, 2)


@pytest.fixture(scope="module")
def cellvit_file(tmp_path_factory) -> Path:
    network = dark_cellvit()
    content = {
        "arch": "CellViT256",
        "config": {
            "transformations.normalize.mean": [0.0, 0.0, 0.0],
            "transformations.normalize.std": [1.0, 1.0, 1.0],
        },
        "model_state_dict": network.state_dict(),
    }
    path = tmp_path_factory.mktemp("weights") / "CellViT-256-x20.pth"
    torch.save(content, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cellvit_net.SIZES, "CellViT-256", network.size)
        yield path


@pytest.fixture(scope="module", params=["classical", "classical-bright", "instanseg", "cellvit"])
def detector(request) -> NucleusDetector:
    name = request.param.split("-")[0]
    plugin = detectors.load(name)
    if name in {"instanseg", "cellvit"}:
        file = request.getfixturevalue(f"{name}_file")
        made = plugin.make(plugin.config(weights=file, device="cpu"))
        if name == "cellvit":
            skip_zeros(made.file.network)
        return made
    if request.param == "classical-bright":
        return plugin.make(ClassicalConfig(nuclei="bright"))
    return plugin.make()


@pytest.fixture
def bright(request) -> bool:
    return "classical-bright" in request.node.callspec.id


def field(bright: bool, width: int = 256, height: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """Draw separate nuclei of 3 to 4.5 µm radius; returns the image and their centres."""
    rng = np.random.default_rng(7)
    yy, xx = np.mgrid[:height, :width] + 0.5
    image = np.full((height, width, 3), 228.0)
    centres = []
    for y in range(32, height - 20, 48):
        for x in range(32, width - 20, 48):
            centre = np.array([x, y]) + rng.uniform(-4, 4, 2)
            radius = rng.uniform(12, 18)
            soft = 1 / (1 + np.exp((np.hypot(xx - centre[0], yy - centre[1]) - radius) / 1.2))
            image += soft[..., None] * (np.array([80, 60, 120]) - image)
            centres.append(centre)
    pixels = image.astype(np.uint8)
    return (255 - pixels if bright else pixels), np.array(centres)


def nearest(found: NucleusTable, centres: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found.xy_px0[None] - centres[:, None], axis=2).min(1)


def test_plugins__every_module_exports_one():
    assert set(detectors.names()) >= {"classical", "instanseg", "cellvit", "cellpose", "imported"}
    for name in set(detectors.names()) - {"cellpose"}:
        plugin = detectors.load(name)
        assert isinstance(plugin, Plugin) and plugin.config is not None and plugin.summary


def test_cellvit__layers_left_out_give_zeros(cellvit_file):
    image, _ = field(bright=False, width=96, height=96)
    plugin = detectors.load("cellvit")
    whole = plugin.make(plugin.config(weights=cellvit_file, device="cpu"))
    expected = whole.detect(image, MPP)
    skip_zeros(whole.file.network)
    np.testing.assert_array_equal(whole.detect(image, MPP).contour_px0, expected.contour_px0)


def test_detect__finds_each_nucleus_once(detector, bright):
    image, centres = field(bright)
    table = detector.detect(image, MPP).validate()
    assert isinstance(detector, NucleusDetector)
    assert len(table) == len(centres)
    assert nearest(table, centres).max() < 2.0
    assert table.area_um2.min() > 20 and table.area_um2.max() < 90
    assert table.classes == detector.classes


def test_detect__polygons_are_simple_inside_the_image_and_around_their_centroid(detector, bright):
    image, _ = field(bright)
    table = detector.detect(image, MPP)
    for row in range(len(table)):
        ring = table.polygon(row)
        assert len(ring) >= 8
        assert ring.min() >= 0 and (ring.max(0) <= [image.shape[1], image.shape[0]]).all()
        assert polygons.contains(ring, table.xy_px0[row])
        assert abs(polygons.area(ring) * MPP**2 / table.area_um2[row] - 1) < 0.05
        # Star-shaped around the centroid: angles turn once and never back.
        angle = np.arctan2(*(ring - table.xy_px0[row]).T[::-1])
        turn = np.diff(np.unwrap(np.append(angle, angle[0])))
        assert abs(abs(turn.sum()) - 2 * np.pi) < 1e-3


def test_detect__is_deterministic_and_canonical(detector, bright):
    image, _ = field(bright)
    first, second = detector.detect(image, MPP), detector.detect(image.copy(), MPP)
    for name in ("xy_px0", "area_um2", "probability", "class_id", "contour_px0", "contour_start"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.xy_px0, first.sorted().xy_px0)


def test_detect_tiles__order_free_and_seam_free(detector, bright):
    image, centres = field(bright)
    size = Size(image.shape[1], image.shape[0])
    boxes = [
        Box(x, y, min(80, size.w - x), min(80, size.h - y))
        for y in range(0, size.h, 80)
        for x in range(0, size.w, 80)
    ]

    def read(box: Box) -> np.ndarray:
        return image[box.y : box.y + box.h, box.x : box.x + box.w]

    forward = detect_tiles(detector, read, boxes, size_px=size, mpp=MPP)
    backward = detect_tiles(detector, read, boxes[::-1], size_px=size, mpp=MPP)
    assert len(forward) == len(centres)
    assert nearest(forward, centres).max() < 2.0
    np.testing.assert_array_equal(forward.xy_px0, backward.xy_px0)
    np.testing.assert_array_equal(forward.contour_px0, backward.contour_px0)


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_detect__flat_tile_gives_an_empty_table(detector, value):
    table = detector.detect(np.full((128, 160, 3), value, np.uint8), MPP).validate()
    assert len(table) == 0
    assert table.classes == detector.classes


def test_detect__noise_is_bounded(detector):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    table = detector.detect(noise, MPP).validate()
    # 64 x 64 µm hold at most as many disks of 2 µm radius as squares of 4 µm.
    assert len(table) <= 16 * 16


def test_detect__faint_noise_gives_nothing(detector):
    noise = np.random.default_rng(0).normal(225, 2, (256, 256, 3)).astype(np.uint8)
    if type(detector).__name__ == "InstansegDetector":
        pytest.skip("the tiny model thresholds whatever it is given")
    assert len(detector.detect(noise, MPP)) == 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (40, 1, 3), (2, 3, 3)])
def test_detect__tiny_images(detector, shape):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    table = detector.detect(image, MPP).validate()
    assert len(table) <= shape[0] * shape[1]


def test_detect__rgba_and_grey(detector, bright):
    image, centres = field(bright)
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    opaque = detector.detect(np.concatenate([image, alpha], axis=2), MPP)
    np.testing.assert_array_equal(opaque.xy_px0, detector.detect(image, MPP).xy_px0)
    grey = detector.detect(image.mean(2).astype(np.uint8), MPP)
    assert len(grey) == len(centres)
    if not bright:  # what is transparent is white
        clear = detector.detect(np.concatenate([image, 0 * alpha], axis=2), MPP)
        assert len(clear) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, bool])
def test_detect__other_depths_are_refused(detector, dtype):
    with pytest.raises(InputError, match="8 bits"):
        detector.detect(np.zeros((32, 32, 3), dtype), MPP)


@pytest.mark.parametrize("shape", [(32, 32, 2), (0, 32, 3), (2, 32, 32, 3), (32,)])
def test_detect__not_an_image_is_refused(detector, shape):
    with pytest.raises(InputError, match="shape"):
        detector.detect(np.zeros(shape, np.uint8), MPP)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), 0.001, 4.0, 72.0])
def test_detect__resolution_out_of_range_is_refused(detector, mpp):
    with pytest.raises(InputError, match="µm"):
        detector.detect(np.zeros((32, 32, 3), np.uint8), mpp)


def test_detect__thousands_in_one_tile(detector, bright):
    """A carpet of 2 500 nuclei: every one is a row, none twice."""
    side, pitch = 50, 24
    yy, xx = np.mgrid[: side * pitch, : side * pitch] + 0.5
    distance = np.hypot(xx % pitch - pitch / 2, yy % pitch - pitch / 2)
    soft = 1 / (1 + np.exp((distance - 10) / 0.8))
    image = (228 + soft[..., None] * (np.array([80, 60, 120]) - 228)).astype(np.uint8)
    table = detector.detect(255 - image if bright else image, MPP).validate()
    assert abs(len(table) - side**2) <= 0.01 * side**2


# --- nuclei from files ----------------------------------------------------------------------

POINTS = [(30.5, 40.5), (10.5, 12.5), (50.5, 12.5)]


def square(x: float, y: float) -> list[list[float]]:
    return [[x - 4, y - 4], [x + 4, y - 4], [x + 4, y + 4], [x - 4, y + 4], [x - 4, y - 4]]


def write_nuclei_file(path: Path, points: list[tuple[float, float]]) -> Path:
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
             "coordinates": [square(x, y)]}} for x, y in points
        ]  # fmt: skip
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(params=[".csv", ".png", ".geojson"])
def suffix(request) -> str:
    return request.param


def source_of(path: Path) -> NucleusSource:
    plugin = detectors.load("imported")
    return plugin.make(plugin.config(nuclei=path))


def test_source__reads_each_nucleus_once_in_canonical_order(suffix, tmp_path):
    source = source_of(write_nuclei_file(tmp_path / f"nuclei{suffix}", POINTS))
    assert isinstance(source, NucleusSource) and not isinstance(source, NucleusDetector)
    table = source.read(MPP).validate()
    np.testing.assert_allclose(table.xy_px0, [(10.5, 12.5), (50.5, 12.5), (30.5, 40.5)], atol=0.01)
    np.testing.assert_array_equal(table.xy_px0, table.sorted().xy_px0)
    again = source_of(write_nuclei_file(tmp_path / f"again{suffix}", POINTS[::-1])).read(MPP)
    np.testing.assert_array_equal(again.xy_px0, table.xy_px0)


def test_source__no_nuclei_is_an_empty_table(suffix, tmp_path):
    table = source_of(write_nuclei_file(tmp_path / f"none{suffix}", [])).read(MPP).validate()
    assert len(table) == 0


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), 72.0])
def test_source__resolution_out_of_range_is_refused(suffix, tmp_path, mpp):
    source = source_of(write_nuclei_file(tmp_path / f"nuclei{suffix}", POINTS))
    with pytest.raises(InputError, match="µm"):
        source.read(mpp)


def test_source__damaged_file_is_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"\x00\xff\x13 no nuclei")
    with pytest.raises(InputError, match="damaged"):
        source_of(path).read(MPP)
