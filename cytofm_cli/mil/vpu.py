"""Variational positive-unlabelled learning, with which LESS trains its features (Chen et al. 2020).

φ(x) is the probability that x belongs to the labelled class. LESS labels the patches of
benign slides; those of cancer slides are unlabelled, as most of them look benign too.
Legend: L labelled, U unlabelled instances.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

MIX_WEIGHT = 0.03
MIX_SHAPE = 0.3
# LESS's training, as published.
HIDDEN, BATCH, STEPS, EPOCHS, LR, HALVINGS = 1000, 100, 30, 30, 1e-4, (1, 3, 5)

Instances = Callable[[], Tensor]  # gives the instances (N, D) of one slide


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


class VpuNet(nn.Module):
    """The head of LESS's patch network, on frozen features instead of its convolutions.

    D → 1000 → width → 2, ReLU between; the vector of `width` numbers is the new feature.

    Args:
        n_features: width of the frozen features, D.
        width: width of the new ones (LESS: 768 for patches of 256 px, 384 for 128 px).
    """

    def __init__(self, n_features: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width), nn.ReLU()
        )
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new features (…, width)."""
        features: Tensor = self.body(x)
        return features

    def log_phi(self, x: Tensor) -> Tensor:
        """Return log φ (…): the log-probability of the labelled class."""
        scores: Tensor = self.classifier(self.body(x))
        return scores.log_softmax(-1)[..., 1]


def train_vpu(
    net: VpuNet,
    labelled: Sequence[Instances],
    unlabelled: Sequence[Instances],
    validation: tuple[Sequence[Instances], Sequence[Instances]],
) -> list[float]:
    """Train as LESS does, and keep the epoch of least variational loss on validation.

    LESS keeps the epoch that is best on its test fold; here the test fold is never seen.

    Args:
        net: changed in place; left frozen, in evaluation mode.
        labelled: functions that give the (N, D) instances of a benign slide.
        unlabelled: the same for slides of the worst class.
        validation: the same two of the validation slides; if one is empty, the last epoch is kept.

    Returns:
        variational loss on validation of each epoch; empty without validation.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(0.5, 0.99))
    mixing = torch.distributions.Beta(MIX_SHAPE, MIX_SHAPE)
    best, history, state = math.inf, [], None
    for epoch in range(EPOCHS):
        if epoch in HALVINGS:  # LESS builds its optimiser anew each time
            lr = optimizer.param_groups[0]["lr"] / 2
            optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.99))
        for _ in range(STEPS):
            p, x = _draw(labelled), _draw(unlabelled)
            lam = float(mixing.sample())
            mixed = mix(x, p[torch.randperm(len(p)).to(p.device)], lam)
            of_p, of_x, of_mixed = net.log_phi(torch.cat([p, x, mixed])).chunk(3)
            optimizer.zero_grad()
            torch.autograd.backward(vpu_loss(of_p, of_x, of_mixed, lam))
            optimizer.step()
        if all(validation):
            with torch.no_grad():
                sides = [torch.cat([net.log_phi(bag()) for bag in bags]) for bags in validation]
            history.append(float(variational_loss(*sides)))
            if history[-1] <= best:
                best, state = history[-1], copy.deepcopy(net.state_dict())
    if state is not None:
        net.load_state_dict(state)
    net.requires_grad_(requires_grad=False).eval()
    return history


def _draw(bags: Sequence[Instances]) -> Tensor:
    """Draw a batch: each instance from a slide of its own drawing, so all slides count the same."""
    slides = torch.randint(len(bags), (BATCH,)).bincount(minlength=len(bags)).tolist()
    rows = []
    for bag, count in zip(bags, slides, strict=True):
        if count:
            x_ND = bag()
            rows.append(x_ND[torch.randint(len(x_ND), (count,)).to(x_ND.device)])
    return torch.cat(rows)
