"""Of rival outlines the whole nucleus wins; probabilities follow edge, size, contrast, colour."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.nuclei import outline, ranking
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.nuclei.ranking import Evidence


def evidence(radius_MA: np.ndarray, drop: float, seeds: np.ndarray | None = None) -> Evidence:
    """Return outlines of the given radii in pixels of half a micrometre, with an even edge."""
    count = len(radius_MA)
    outlines = outline.Outlines(
        seed_M2=np.zeros((count, 2), np.float32) if seeds is None else seeds.astype(np.float32),
        radius_MA=radius_MA.astype(np.float32),
        edge_MA=np.full_like(radius_MA, drop, np.float32),
        inside_M=np.full(count, 0.6, np.float32),
        outside_M=np.full(count, 0.6 - drop, np.float32),
    )
    return Evidence(
        outlines=outlines,
        share_M=ranking.full_edge_share(outlines),
        radius_um_M=np.sqrt(outlines.area_px() / np.pi).astype(np.float32) / 2,
        seed_radius_M=radius_MA.mean(1).astype(np.float32),
        blob_M=np.full(count, drop, np.float32),
    )


def test_features__of_an_even_disk_of_typical_size():
    disk = evidence(np.full((1, outline.N_ANGLES), 7.0), 0.3)
    got = dict(zip(ranking.FEATURES, ranking.features(disk)[0], strict=True))
    # 32 corners: the area is 1 - (2π/32)² / 6 of the disk's, and the radius half that less.
    size = np.log(np.sqrt(np.sin(2 * np.pi / 32) / (2 * np.pi / 32)))
    expected = {
        "edge_share": 0,
        "weak_quarter": np.log(0.3),
        "soft_edge": np.log(0.75),
        "contrast": np.log(0.3),
        "inside": np.log(0.6),
        "evenness": 0,
        "size": size,
        "fill": 0,
        "blob": np.log(0.3),
        "size_contrast": size * np.log(0.3),
        "weakest": np.log(0.3),
        "mean_edge": np.log(0.3),
    }
    for name in ranking.FEATURES:
        assert got[name] == pytest.approx(
            expected.get(
                name,
                size**2
                if name == "size_size"
                else size * np.log(0.3)
                if name == "size_weak_quarter"
                else size * np.log(0.75)
                if name == "size_soft_edge"
                else 0,
            ),
            abs=2e-6,
        ), name


def test_features__tell_an_ellipse_from_lobes_and_ripples():
    angle = np.arange(outline.N_ANGLES) * 2 * np.pi / outline.N_ANGLES
    waves = [1, 2, 4, 9]
    radius = np.stack([8 * (1 + 0.2 * np.cos(k * angle)) for k in waves])
    columns = [ranking.FEATURES.index(n) for n in ("shift", "ellipse", "lobes", "ripples")]
    got = ranking.features(evidence(radius, 0.3))[:, columns]
    np.testing.assert_allclose(got, 0.1 * np.eye(4), atol=1e-6)


def test_features__do_not_depend_on_where_an_outline_lies():
    rng = np.random.default_rng(0)
    radius = rng.uniform(5, 9, (6, outline.N_ANGLES))
    here = ranking.features(evidence(radius, 0.3))
    there = ranking.features(evidence(radius, 0.3, np.full((6, 2), 500.0)))
    np.testing.assert_allclose(here, there, atol=2e-4)


def test_probability__is_none_for_another_colour_and_grows_with_size():
    radius = np.repeat([[3.0], [5.0], [7.0]], outline.N_ANGLES, axis=1)
    some = evidence(radius, 0.3)
    terms = ranking.terms(some, np.zeros(3, np.float32))
    full = ranking.probability(terms, np.ones(3, np.float32))
    assert (np.diff(full) > 0).all() and (full > 0).all() and (full < 1).all()
    np.testing.assert_allclose(ranking.probability(terms, np.full(3, 0.5, np.float32)), full / 2)
    assert not ranking.probability(terms, np.zeros(3, np.float32)).any()


def test_best_of_overlapping__the_better_wins_and_frees_the_rivals_of_the_worse():
    chain = evidence(np.full((3, outline.N_ANGLES), 7.0), 0.3)
    pairs = (np.array([0, 1]), np.array([1, 2]))
    assert ranking.best_of_overlapping(chain.outlines, np.array([1.0, 2, 1.5]), pairs) == [1]
    kept = ranking.best_of_overlapping(chain.outlines, np.array([3.0, 2, 1]), pairs)
    assert kept.tolist() == [0, 2]


@pytest.mark.parametrize("radius_um", [3.5, 6.0, 9.0, 12.0, 15.0])
def test_large_nucleus__with_coarse_chromatin_is_one(radius_um):
    rng = np.random.default_rng(4)
    side, radius = 400, radius_um / 0.25
    yy, xx = np.mgrid[:side, :side] + 0.5
    image = np.full((side, side, 3), (225, 225, 215), np.float64)
    inside = np.clip(radius - np.hypot(xx - 200, yy - 200) + 0.5, 0, 1)[..., None]
    image += inside * (np.array([110, 85, 150]) - image)
    for _ in range(round(radius_um)):  # clumps, a micrometre and a half across
        x, y = 200 + rng.uniform(-0.5, 0.5, 2) * radius
        clump = np.clip(3 - np.hypot(xx - x, yy - y) + 0.5, 0, 1)[..., None]
        image += 0.6 * clump * inside * (np.array([60, 40, 110]) - image)
    image += rng.normal(0, 2, image.shape)
    table = ClassicalDetector().detect(image.clip(0, 255).astype(np.uint8), 0.25)
    assert len(table) == 1
    assert table.area_um2[0] == pytest.approx(np.pi * radius_um**2, rel=0.08)
