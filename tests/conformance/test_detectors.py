"""What every detector of nuclei must do, on every detector that runs without a user's weights.

`instanseg` runs with a small scripted model that has the interface of the real one.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import polygons
from cytofm_cli.nuclei.base import NucleusDetector, NucleusTable
from cytofm_cli.nuclei.detectors.classical import ClassicalConfig
from cytofm_cli.nuclei.stitch import detect_tiles
from cytofm_cli.registry import Plugin, detectors
from cytofm_cli.units import Box, Size

MPP = 0.25
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


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


@pytest.fixture(scope="module", params=["classical", "classical-bright", "instanseg"])
def detector(request) -> NucleusDetector:
    name = request.param.split("-")[0]
    plugin = detectors.load(name)
    if name == "instanseg":
        file = request.getfixturevalue("instanseg_file")
        return plugin.make(plugin.config(weights=file, device="cpu"))
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
