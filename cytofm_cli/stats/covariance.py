"""Covariances of more features than rows allow.

Legend: N rows, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def shrunk_covariance(x_ND: Floats) -> tuple[Floats, float]:
    """Estimate a covariance that can be inverted, of centred rows.

    Ledoit & Wolf (J Multivar Anal 88:365, 2004): (1 − ρ) S + ρ μ I with μ the mean variance and
    ρ the share of the estimate's spread that is noise.

    Returns:
        float64 (D, D), and ρ in [0, 1].
    """
    n, d = x_ND.shape
    sample_DD = x_ND.T @ x_ND / n
    mean = float(np.trace(sample_DD)) / d
    spread = float(((sample_DD - mean * np.eye(d)) ** 2).sum()) / d
    # Σ ‖x xᵀ − S‖² = Σ ‖x‖⁴ − n ‖S‖²
    fourth = float(((x_ND**2).sum(1) ** 2).sum())
    noise = (fourth / n - float((sample_DD**2).sum())) / (n * d)
    share = 1.0 if spread <= 0 else min(1.0, max(0.0, noise / spread))
    return (1 - share) * sample_DD + share * mean * np.eye(d), share
