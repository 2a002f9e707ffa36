"""The handcrafted encoder: hand-worked statistics and what must not change them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytofm_cli.encoders.handcrafted import blobs, counts, texture
from cytofm_cli.encoders.handcrafted.describe import describe
from cytofm_cli.encoders.handcrafted.halve import halve, halve_exactly
from cytofm_cli.encoders.load import load_encoder

_REFERENCE = importlib.util.spec_from_file_location(
    "handcrafted_reference", Path(__file__).with_name("handcrafted_reference.py")
)
handcrafted_reference = importlib.util.module_from_spec(_REFERENCE)
_REFERENCE.loader.exec_module(handcrafted_reference)


def _cells(seed=0, height=128, width=160):
    """Pale noisy glass with dark elliptic nuclei in tinted cytoplasm."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 235.0) + rng.normal(0, 2, (height, width, 3))
    for _ in range(6):
        cy, cx = rng.uniform(20, height - 20), rng.uniform(20, width - 20)
        a, b = rng.uniform(5, 12, 2)
        image[((y - cy) / 25) ** 2 + ((x - cx) / 25) ** 2 < 1] = (225, 160, 175)
        image[((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1] = (70, 50, 110)
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def _describe(image):
    return {key: float(value[0]) for key, value in describe(image[None]).items()}


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 5),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 99),
    noise=st.booleans(),
)
def test_describe__a_stack_is_measured_as_one_image_after_the_other_was(
    n, height, width, seed, noise
):
    rng = np.random.default_rng(seed)
    images = np.stack([_cells(seed + i, 128, 128)[:height, :width] for i in range(n)])
    if noise:
        images = rng.integers(0, 256, images.shape, np.uint8)
    found = describe(images)
    expected = [handcrafted_reference.describe(image) for image in images]
    assert list(found) == list(expected[0])
    # Sums of float64 in another order; every float32 pixel is the same.
    np.testing.assert_allclose(
        np.stack(list(found.values()), 1),
        [list(row.values()) for row in expected],
        rtol=1e-9,
        atol=1e-9,
    )


def test_describe__of_large_images_is_what_it_was():
    # Long rows are searched in part, and the images do not fit into one block.
    images = np.stack([_cells(i, 512, 640) for i in range(3)])
    images[2] = 200
    found = describe(images)
    for i, image in enumerate(images):
        expected = list(handcrafted_reference.describe(image).values())
        np.testing.assert_allclose(
            [value[i] for value in found.values()], expected, rtol=1e-9, atol=1e-9
        )


def test_encoder__gives_an_image_the_same_bytes_in_any_company():
    encoder = load_encoder("handcrafted")
    images = np.stack([_cells(i, 96, 96) for i in range(9)])
    together = encoder.prepare(images)
    alone = np.concatenate([encoder.prepare(image[None]) for image in images])
    np.testing.assert_array_equal(together, alone)
    assert encoder.prepare(images[:0]).shape == (0, encoder.spec.dim)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(40, 130), width=st.integers(40, 130))
def test_describe__quarter_turns_and_mirrors_change_nothing(seed, height, width):
    image = _cells(seed, height, width)
    expected = _describe(image)
    for changed in (np.rot90(image), np.rot90(image, 2), image[::-1], image[:, ::-1]):
        found = _describe(np.ascontiguousarray(changed))
        assert list(found) == list(expected)
        np.testing.assert_allclose(
            list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-5
        )


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
    constant=st.none() | st.integers(0, 255),
)
def test_describe__is_finite_on_any_image(height, width, seed, constant):
    if constant is None:
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    else:
        image = np.full((height, width, 3), constant, np.uint8)
    assert np.isfinite(list(_describe(image).values())).all()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_halve__integers_are_sixteen_times_the_float_means(n):
    images = np.random.default_rng(0).integers(0, 256, (2, n, 2 * n, 3), np.uint8)
    exact_CBHW = halve_exactly(images)
    means_CBHW = np.stack([halve(images[..., c].astype(np.float32)) for c in range(3)])
    assert exact_CBHW.shape == (3, 2, (n + 1) // 2, n)
    np.testing.assert_allclose(exact_CBHW / 16, means_CBHW, rtol=1e-6)


def test_surroundings__are_the_box_mean():
    dark = np.random.default_rng(1).integers(0, 256, (2, 30, 41), np.uint8)
    found = blobs.surroundings(dark, 5)
    for dark_HW, found_HW in zip(dark, found, strict=True):
        expected = ndimage.uniform_filter(dark_HW.astype(np.float64), 11, mode="reflect")
        np.testing.assert_array_equal(found_HW, np.floor(expected + 1e-9))


def test_otsu__splits_two_peaks_and_stands_a_constant():
    peaks = np.zeros((2, 256), np.int64)
    peaks[0, 20], peaks[0, 200] = 700, 300
    peaks[1, 7] = 5
    first, second = counts.otsu(peaks)
    assert 20 <= first < 200
    assert second == 0


def test_lbp__of_a_constant_and_of_an_edge():
    images = np.ones((2, 8, 8), np.float32)
    images[1, :, :4] = 0
    flat, edge = texture.local_binary_patterns(texture.Neighbours(images))
    assert flat.tolist() == [1.0] + [0.0] * 9
    assert edge[3] == pytest.approx(8 / 64)  # the column left of the edge sees three brighter
    assert edge[0] == pytest.approx(56 / 64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 1), levels=st.sampled_from([1, 3, 10_000]))
def test_at_rank__is_the_sorted_row_at_that_place(seed, share, levels):
    rows = np.random.default_rng(seed).integers(0, levels, (3, 5000)).astype(np.float32)
    rows[1].sort()
    rows[2, ::4] = levels  # the sample sees nothing of the others
    rank = min(int(5000 * share), 4999)
    np.testing.assert_array_equal(texture.at_rank(rows, rank), np.sort(rows, axis=1)[:, rank])


def test_statistics__worked_by_hand():
    found = counts.statistics(np.array([[1, 0, 3], [0, 0, 0]]), low=10.0, step=5.0)
    assert found["mean"] == pytest.approx([17.5, 0])
    assert found["std"] == pytest.approx([np.std([10, 20, 20, 20]), 0])
    assert found["p25"].tolist() == [10, 0]
    assert found["p50"].tolist() == [20, 0]
    assert found["skew"] == pytest.approx([-2 / np.sqrt(3), 0])


def test_spread__is_that_of_each_image_and_zero_without_spots():
    values = np.array([4.0, 1.0, 7.0, 2.0])
    found = blobs.spread({"area": values}, np.array([0, 2, 0, 0]), 4)["area"]
    first = values[[0, 2, 3]]
    assert found["mean"] == pytest.approx([first.mean(), 0, 1, 0])
    assert found["std"] == pytest.approx([first.std(), 0, 0, 0])
    assert found["p90"] == pytest.approx([np.percentile(first, 90), 0, 1, 0])
    assert found["max"].tolist() == [7, 0, 1, 0]


def test_blobs__measure_two_disks():
    y, x = np.mgrid[:256, :256]
    image = np.full((256, 256, 3), 240, np.uint8)
    for cy, cx, radius in ((70, 70, 10), (180, 170, 24)):
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = (60, 60, 60)
    found = _describe(image)
    # halved: radius 5 and 12, areas 79 and 452; both round, one of them large and dark
    assert found["blobs.wide.area.max"] == pytest.approx(np.log2(452), abs=0.1)
    assert found["blobs.wide.round.count"] == pytest.approx(np.log1p(2 / (128 * 128 / 2**20)))
    assert found["blobs.wide.round.large"] == pytest.approx(0.5)
    assert found["blobs.wide.round.large_dark"] == pytest.approx(0.5)
    assert found["blobs.wide.long.max"] == pytest.approx(1.0, abs=0.1)
    assert found["blobs.wide.dark.max"] == pytest.approx(
        np.log10(256 / 61) - np.log10(256 / 256), abs=0.05
    )


def test_blobs__an_ellipse_is_as_long_as_it_is():
    y, x = np.mgrid[:200, :200]
    image = np.full((200, 200, 3), 240, np.uint8)
    image[((y - 100) / 10) ** 2 + ((x - 100) / 25) ** 2 < 1] = 60
    found = _describe(image)
    assert found["blobs.wide.long.max"] == pytest.approx(2.5, rel=0.08)


def test_handcrafted__imports_no_torch():
    code = (
        "import sys, numpy as np\n"
        "from cytofm_cli.encoders.load import load_encoder\n"
        "e = load_encoder('handcrafted')\n"
        "e.encode(e.prepare(np.zeros((1, 32, 32, 3), np.uint8)))\n"
        "assert not {'torch', 'timm', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
