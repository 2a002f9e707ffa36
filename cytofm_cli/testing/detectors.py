"""What every detector of nuclei must do. A case is the detector, or the source of nuclei."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import polygons
from cytofm_cli.nuclei.base import NucleusDetector, NucleusSource, NucleusTable
from cytofm_cli.nuclei.stitch import detect_tiles
from cytofm_cli.registry import DetectorPlugin, Sample, detectors
from cytofm_cli.testing.suite import Case, Check, Suite, refuses
from cytofm_cli.units import Box, Size

MPP: Final = 0.25


def _make(_name: str, plugin: DetectorPlugin, sample: Sample, _folder: Path) -> Any:
    if sample.made is not None:
        return sample.made
    return plugin.make(plugin.config(**sample.settings)) if plugin.config else plugin.make()


SUITE = Suite(detectors, _make)


def _of_detectors(check: Check) -> Check:
    """Add a check of what looks at pixels."""

    def run(case: Case) -> None:
        if not case.plugin.from_files:
            check(case)

    run.__name__, run.__doc__ = check.__name__, check.__doc__
    SUITE.check(run)
    return run


def _of_sources(check: Check) -> Check:
    """Add a check of what reads files."""

    def run(case: Case) -> None:
        if case.plugin.from_files:
            check(case)

    run.__name__, run.__doc__ = check.__name__, check.__doc__
    SUITE.check(run)
    return run


def field(
    case: Case, width: int = 256, height: int = 192
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
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
    return _lit(case, image.astype(np.uint8)), np.array(centres)


def _lit(case: Case, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn dark nuclei into bright ones, for detectors that look for those."""
    inverse: NDArray[np.uint8] = 255 - pixels
    return inverse if case.sample.traits.get("bright") else pixels


def _nearest(table: NucleusTable, centres: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    distances: NDArray[np.floating[Any]] = np.linalg.norm(
        table.xy_px0[None] - centres[:, None], axis=2
    )
    nearest: NDArray[np.floating[Any]] = distances.min(1)
    return nearest


@SUITE.check
def it_is_what_the_plugin_says(case: Case) -> None:
    """A detector, or a source of nuclei from files."""
    assert isinstance(case.thing, NucleusSource) == case.plugin.from_files
    assert isinstance(case.thing, NucleusDetector) != case.plugin.from_files


@_of_detectors
def each_nucleus_is_found_once(case: Case) -> None:
    """At its place, with its area."""
    image, centres = field(case)
    table = case.thing.detect(image, MPP).validate()
    assert len(table) == len(centres)
    assert _nearest(table, centres).max() < 2.0
    assert table.area_um2.min() > 20
    assert table.area_um2.max() < 90
    assert table.classes == case.thing.classes


@_of_detectors
def polygons_are_simple_inside_the_image_and_around_their_centroid(case: Case) -> None:
    """Star-shaped around the centroid: angles turn once and never back."""
    image, _ = field(case)
    table = case.thing.detect(image, MPP)
    for row in range(len(table)):
        ring = table.polygon(row)
        assert len(ring) >= 8
        assert ring.min() >= 0
        assert (ring.max(0) <= [image.shape[1], image.shape[0]]).all()
        assert polygons.contains(ring, table.xy_px0[row])
        assert abs(polygons.area(ring) * MPP**2 / table.area_um2[row] - 1) < 0.05
        angle = np.arctan2(*(ring - table.xy_px0[row]).T[::-1])
        turn = np.diff(np.unwrap(np.append(angle, angle[0])))
        assert abs(abs(turn.sum()) - 2 * np.pi) < 1e-3


@_of_detectors
def tables_are_the_same_twice_and_in_canonical_order(case: Case) -> None:
    """A rerun equals a fresh run."""
    image, _ = field(case)
    first, second = case.thing.detect(image, MPP), case.thing.detect(image.copy(), MPP)
    for name in ("xy_px0", "area_um2", "probability", "class_id", "contour_px0", "contour_start"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.xy_px0, first.sorted().xy_px0)


@_of_detectors
def tiles_may_come_in_any_order_and_leave_no_seams(case: Case) -> None:
    """Its halo is as wide as it says."""
    image, centres = field(case)
    size = Size(image.shape[1], image.shape[0])
    boxes = [
        Box(x, y, min(80, size.w - x), min(80, size.h - y))
        for y in range(0, size.h, 80)
        for x in range(0, size.w, 80)
    ]

    def read(box: Box) -> NDArray[np.uint8]:
        return image[box.y : box.y + box.h, box.x : box.x + box.w]

    forward = detect_tiles(case.thing, read, boxes, size_px=size, mpp=MPP)
    backward = detect_tiles(case.thing, read, boxes[::-1], size_px=size, mpp=MPP)
    assert len(forward) == len(centres)
    assert _nearest(forward, centres).max() < 2.0
    np.testing.assert_array_equal(forward.xy_px0, backward.xy_px0)
    np.testing.assert_array_equal(forward.contour_px0, backward.contour_px0)


@_of_detectors
def a_flat_tile_gives_an_empty_table(case: Case) -> None:
    """Of any brightness."""
    for value in (0, 1, 128, 254, 255):
        table = case.thing.detect(np.full((128, 160, 3), value, np.uint8), MPP).validate()
        assert len(table) == 0
        assert table.classes == case.thing.classes


@_of_detectors
def noise_is_bounded(case: Case) -> None:
    """64 x 64 µm hold at most as many disks of 2 µm radius as squares of 4 µm."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert len(case.thing.detect(noise, MPP).validate()) <= 16 * 16


@_of_detectors
def faint_noise_gives_nothing(case: Case) -> None:
    """But of a detector that thresholds whatever it is given, and says so."""
    if not case.sample.traits.get("answers_noise"):
        noise = np.random.default_rng(0).normal(225, 2, (256, 256, 3)).astype(np.uint8)
        assert len(case.thing.detect(noise, MPP)) == 0


@_of_detectors
def tiny_images_are_stood(case: Case) -> None:
    """Down to a pixel."""
    for shape in ((1, 1, 3), (1, 40, 3), (40, 1, 3), (2, 3, 3)):
        image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        assert len(case.thing.detect(image, MPP).validate()) <= shape[0] * shape[1]


@_of_detectors
def grey_and_transparent_images_are_stood(case: Case) -> None:
    """What is transparent is white."""
    image, centres = field(case)
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    opaque = case.thing.detect(np.concatenate([image, alpha], axis=2), MPP)
    np.testing.assert_array_equal(opaque.xy_px0, case.thing.detect(image, MPP).xy_px0)
    assert len(case.thing.detect(image.mean(2).astype(np.uint8), MPP)) == len(centres)
    if not case.sample.traits.get("bright"):
        clear = np.concatenate([image, np.zeros_like(alpha)], axis=2)
        assert len(case.thing.detect(clear, MPP)) == 0


@_of_detectors
def what_is_no_image_of_8_bits_is_refused(case: Case) -> None:
    """Other depths and shapes."""
    for dtype in (np.uint16, np.float32, bool):
        refuses(InputError, "8 bits", case.thing.detect, np.zeros((32, 32, 3), dtype), MPP)
    for shape in ((32, 32, 2), (0, 32, 3), (2, 32, 32, 3), (32,)):
        refuses(InputError, "shape", case.thing.detect, np.zeros(shape, np.uint8), MPP)


@_of_detectors
def a_resolution_out_of_range_is_refused(case: Case) -> None:
    """No microscope has it."""
    image = np.zeros((32, 32, 3), np.uint8)
    for mpp in (0.0, -1.0, float("nan"), 0.001, 4.0, 72.0):
        refuses(InputError, "µm", case.thing.detect, image, mpp)


@_of_detectors
def a_thousand_in_one_tile_are_found(case: Case) -> None:
    """A carpet of 1 296 nuclei: every one is a row, none twice."""
    side, pitch = 36, 24
    yy, xx = np.mgrid[: side * pitch, : side * pitch] + 0.5
    distance = np.hypot(xx % pitch - pitch / 2, yy % pitch - pitch / 2)
    soft = 1 / (1 + np.exp((distance - 10) / 0.8))
    image = (228 + soft[..., None] * (np.array([80, 60, 120]) - 228)).astype(np.uint8)
    table = case.thing.detect(_lit(case, image), MPP).validate()
    assert abs(len(table) - side**2) <= 0.01 * side**2


@_of_sources
def a_file_gives_each_nucleus_once_in_canonical_order(case: Case) -> None:
    """The trait `xy_px0` says which."""
    table = case.thing.read(MPP).validate()
    xy_px0 = np.array(case.sample.traits["xy_px0"], np.float64)
    expected = xy_px0[np.lexsort((xy_px0[:, 0], xy_px0[:, 1]))]
    np.testing.assert_allclose(table.xy_px0, expected, atol=0.01)
    np.testing.assert_array_equal(table.xy_px0, table.sorted().xy_px0)
    np.testing.assert_array_equal(case.thing.read(MPP).xy_px0, table.xy_px0)


@_of_sources
def a_file_at_a_resolution_out_of_range_is_refused(case: Case) -> None:
    """No microscope has it."""
    for mpp in (0.0, -1.0, float("nan"), 72.0):
        refuses(InputError, "µm", case.thing.read, mpp)
