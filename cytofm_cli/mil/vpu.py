"""Variational positive-unlabelled loss, with which LESS trains its features (Chen et al. 2020).

φ(x) is the probability that x belongs to the labelled class. LESS labels the patches of
benign slides; those of cancer slides are unlabelled, as most of them look benign too.
Legend: L labelled, U unlabelled instances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIX_WEIGHT = 0.03
MIX_SHAPE = 0.3


def variational_loss(log_phi_labelled_L: Tensor, log_phi_unlabelled_U: Tensor) -> Tensor:
    """Compute log E_unlabelled[φ] − E_labelled[log φ] (Chen et al. 2020, eq. 6)."""
    n = log_phi_unlabelled_U.numel()
    mean = torch.logsumexp(log_phi_unlabelled_U.flatten(), 0) - math.log(n)
    return mean - log_phi_labelled_L.mean()


def mix(x_U: Tensor, p_U: Tensor, lam: float) -> Tensor:
    """Mix unlabelled with labelled instances, pair by pair: λ x + (1 − λ) p."""
    return lam * x_U + (1 - lam) * p_U


def mixup_regulariser(log_phi_mixed_U: Tensor, log_phi_unlabelled_U: Tensor, lam: float) -> Tensor:
    """Compute E[(log μ − log φ(mixed))²] with μ = λ φ(x) + (1 − λ) (ibid. eq. 9).

    The labelled part's target is 1. φ(x) is not detached.
    """
    target_U = torch.log(lam * log_phi_unlabelled_U.exp() + (1 - lam))
    return ((target_U - log_phi_mixed_U) ** 2).mean()


def vpu_loss(
    log_phi_labelled_L: Tensor, log_phi_unlabelled_U: Tensor, log_phi_mixed_U: Tensor, lam: float
) -> Tensor:
    """Compute the training loss: variational part plus 0.03 times the mix-up regulariser."""
    regulariser = mixup_regulariser(log_phi_mixed_U, log_phi_unlabelled_U, lam)
    return variational_loss(log_phi_labelled_L, log_phi_unlabelled_U) + MIX_WEIGHT * regulariser
