"""The array morphology, against definitions written out."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytofm_cli.tiles import morphology

SEEDS = st.integers(0, 2**31)


def _closing_residue(picture, length, glass):
    """Definition: every line of the length across the pixel, brightest on it, smallest of them."""
    padded = np.pad(picture.astype(int), length - 1, constant_values=glass)
    diagonal = max(2, round(length / 2**0.5))
    best = np.full(picture.shape, 255)
    height, width = picture.shape
    for n, dy, dx in ((length, 0, 1), (length, 1, 0), (diagonal, 1, 1), (diagonal, 1, -1)):
        for y in range(height):
            for x in range(width):
                tops = [
                    max(
                        padded[y + length - 1 + (k - s) * dy, x + length - 1 + (k - s) * dx]
                        for k in range(n)
                    )
                    for s in range(n)
                ]
                best[y, x] = min(best[y, x], min(tops) - int(picture[y, x]))
    return best


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, length=st.integers(2, 7), height=st.integers(1, 9), width=st.integers(1, 9))
def test_blob_residue__is_the_smallest_closing_residue_of_four_lines(seed, length, height, width):
    picture = np.random.default_rng(seed).integers(0, 240, (height, width)).astype(np.uint8)
    padded = np.pad(picture, length - 1, constant_values=250)
    found = morphology.blob_residue(padded, length)
    assert (found == _closing_residue(picture, length, 250)).all()


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, height=st.integers(1, 30), width=st.integers(1, 30), share=st.floats(0, 1))
def test_components__are_those_of_scipy(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    parts = morphology.components(mask)
    labels, n = ndimage.label(mask, np.ones((3, 3)))
    assert len(parts.area_px_K) == n
    boxes = ndimage.find_objects(labels)
    longest = sorted(max(s.stop - s.start for s in box) for box in boxes)
    assert sorted(parts.length_px_K) == longest
    assert sorted(parts.area_px_K) == sorted(np.bincount(labels.ravel())[1:])
    assert (parts.paint(np.ones(n, bool)) == mask).all()
    values = np.random.default_rng(seed + 1).integers(0, 256, mask.shape).astype(np.uint8)
    means = ndimage.mean(values, labels, np.arange(1, n + 1)) if n else []
    assert sorted(parts.mean(values)) == pytest.approx(sorted(means))
    with mock.patch.object(morphology, "_STRIP_PX", 4):
        assert (morphology.components(mask).mean(values) == parts.mean(values)).all()
    for k in range(min(n, 5)):
        one = parts.paint(np.arange(n) == k)
        assert len(np.unique(labels[one])) == 1
        assert one.sum() == parts.area_px_K[k]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, radius=st.integers(1, 4))
def test_close_and_open__are_those_of_scipy(seed, radius):
    mask = np.random.default_rng(seed).random((25, 31)) < 0.3
    square = np.ones((2 * radius + 1,) * 2)
    padded = np.pad(mask, 2 * radius)
    closed = ndimage.binary_closing(padded, square)[2 * radius : -2 * radius, 2 * radius :]
    assert (morphology.close(mask, radius) == closed[:, : -2 * radius]).all()
    inner = (slice(2 * radius, -2 * radius),) * 2  # outside, scipy sees background, we see the edge
    opened = ndimage.binary_opening(mask, square)
    assert (morphology.open_square(mask, radius)[inner] == opened[inner]).all()


def test_shrink__averages_and_repeats_the_edge():
    picture = np.array([[0, 2, 10], [4, 6, 20]], np.uint8)[..., None].repeat(3, 2)
    assert morphology.shrink(picture, 2)[..., 0].tolist() == [[3, 15]]
    assert morphology.shrink(picture, 1) is picture


def test_block_statistics__measure_mean_and_white_noise():
    rng = np.random.default_rng(0)
    picture = np.clip(rng.normal(128, 5, (256, 256, 3)), 0, 255).astype(np.uint8)
    mean, noise = morphology.block_statistics(picture, 8)
    assert mean.shape == noise.shape == (1024, 3)
    assert np.abs(mean.mean() - 127.5) < 0.2
    assert 0.7 * 5 < np.median(noise) < 1.1 * 5  # two of eight columns have no neighbours
    flat = np.linspace(0, 200, 64).astype(np.uint8)
    _, ramp = morphology.block_statistics(np.tile(flat[None, :, None], (64, 1, 3)), 8)
    assert ramp.max() < 1
