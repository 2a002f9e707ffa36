"""The closed path of the largest gain: exact but for the closure, the same in any company."""

from __future__ import annotations

import numpy as np

from cytofm_cli.nuclei.closed_path import MAX_JUMP, closed_path

RAYS = 32


def test_closed_path__equals_brute_force_on_the_settled_part():
    gain = np.random.default_rng(3).random((5, RAYS, 6)).astype(np.float32)
    path = closed_path(gain.transpose(1, 0, 2)).T
    steps = np.abs(np.diff(path, axis=1))
    assert steps.max() <= MAX_JUMP
    got = np.take_along_axis(gain, path[..., None], 2)[..., 0].sum(1)
    # Best closed path, exactly: fix the first step, forbid all others at both ends.
    best = np.full(5, -np.inf)
    for first in range(6):
        score = np.full((5, 6), -np.inf)
        score[:, first] = gain[:, 0, first]
        for t in range(1, RAYS):
            options = [
                np.where(abs(j - np.arange(6)) <= MAX_JUMP, score[:, j : j + 1], -np.inf)
                for j in range(6)
            ]
            score = np.max(options, axis=0) + gain[:, t]
        close = abs(np.arange(6) - first) <= MAX_JUMP
        best = np.maximum(best, score[:, close].max(1))
    assert (got >= 0.99 * best).all()


def test_closed_path__follows_a_ridge_that_is_worth_more_than_all_else():
    ridge = np.array([3, 4, 6, 7, 7, 6, 4, 3, 2, 2, 2, 2, 3, 3, 3, 3])
    gain = np.zeros((16, 2, 9), np.float32)
    gain[np.arange(16), 0, ridge] = 1
    gain[np.arange(16), 1, 8 - ridge] = 1
    np.testing.assert_array_equal(closed_path(gain), np.stack([ridge, 8 - ridge], axis=1))


def test_closed_path__of_nothing_is_nothing():
    assert closed_path(np.zeros((RAYS, 0, 24), np.float32)).shape == (RAYS, 0)
