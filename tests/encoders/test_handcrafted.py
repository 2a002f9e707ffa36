"""The handcrafted encoder: hand-worked statistics and what must not change them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytofm_cli.encoders import handcrafted


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


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(40, 130), width=st.integers(40, 130))
def test_describe__quarter_turns_and_mirrors_change_nothing(seed, height, width):
    image = _cells(seed, height, width)
    expected = handcrafted.describe(image)
    for changed in (np.rot90(image), np.rot90(image, 2), image[::-1], image[:, ::-1]):
        found = handcrafted.describe(np.ascontiguousarray(changed))
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
    values = list(handcrafted.describe(image).values())
    assert np.isfinite(values).all()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_halve__integers_are_sixteen_times_the_float_means(n):
    image = np.random.default_rng(0).integers(0, 256, (n, 2 * n, 3), np.uint8)
    exact = handcrafted._halve_exactly(image)
    means = np.stack([handcrafted._halve(image[..., c].astype(np.float32)) for c in range(3)], -1)
    assert exact.shape == ((n + 1) // 2, n, 3)
    np.testing.assert_allclose(exact / 16, means, rtol=1e-6)


def test_surroundings__are_the_box_mean():
    dark = np.random.default_rng(1).integers(0, 256, (30, 41), np.uint8)
    found = handcrafted._surroundings(dark, 5)
    expected = ndimage.uniform_filter(dark.astype(np.float64), 11, mode="reflect")
    np.testing.assert_array_equal(found, np.floor(expected + 1e-9))


def test_otsu__splits_two_peaks_and_stands_a_constant():
    counts = np.zeros(256, np.int64)
    counts[20], counts[200] = 700, 300
    assert 20 <= handcrafted._otsu(counts) < 200
    assert handcrafted._otsu(np.bincount([7] * 5, minlength=256)) == 0


def test_lbp__of_a_constant_and_of_an_edge():
    flat = handcrafted._local_binary_patterns(np.ones((8, 8), np.float32))
    assert flat.tolist() == [1.0] + [0.0] * 9
    edge = np.zeros((8, 8), np.float32)
    edge[:, 4:] = 1
    shares = handcrafted._local_binary_patterns(edge)
    assert shares[3] == pytest.approx(8 / 64)  # the column left of the edge sees three brighter
    assert shares[0] == pytest.approx(56 / 64)


def test_histogram_statistics__worked_by_hand():
    counts = np.array([1, 0, 3])
    found = handcrafted._histogram_statistics("x", counts, low=10.0, step=5.0)
    assert found["x.mean"] == pytest.approx(17.5)
    assert found["x.std"] == pytest.approx(np.std([10, 20, 20, 20]))
    assert found["x.p25"] == 10
    assert found["x.p50"] == 20
    assert found["x.skew"] == pytest.approx(-2 / np.sqrt(3))


def test_blobs__measure_two_disks():
    y, x = np.mgrid[:256, :256]
    image = np.full((256, 256, 3), 240, np.uint8)
    for cy, cx, radius in ((70, 70, 10), (180, 170, 24)):
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = (60, 60, 60)
    found = handcrafted.describe(image)
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
    found = handcrafted.describe(image)
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
