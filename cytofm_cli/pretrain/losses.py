"""The losses of self-supervised learning: pure functions, and the centre of the teacher.

All compute in float32 at least, whatever autocast is on. Those that look at other processes say
so; without a process group they see this process alone. The mean of a loss over processes of
equal batches is the loss of one process with all tiles, except for KoLeo, which stays local.

Letters: B tiles, T teacher's views, S student's views, D features, K prototypes, M masked patches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain import distributed

P = ParamSpec("P")
R = TypeVar("R")
_EPS = 1e-8


def full_precision(compute: Callable[P, R]) -> Callable[P, R]:
    """Widen half-precision positional arguments to float32 and switch autocast off."""

    @functools.wraps(compute)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        wide = [_widen(value) for value in args]
        devices = {value.device.type for value in args if isinstance(value, Tensor)}
        with torch.autocast(devices.pop() if devices else "cpu", enabled=False):
            return compute(*wide, **kwargs)  # type: ignore[arg-type]

    return widened


def _widen(value: object) -> object:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value  # type: ignore[attr-defined]


@full_precision
def dino_loss(p_TBK: Tensor, logits_SBK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the teacher's and the student's views of a tile.

    Mean over tiles and over all pairs (t, s) with t ≠ s; the teacher's views are the first ones
    of the student's (Caron et al., ICCV 2021, eq. 3).

    Args:
        p_TBK: probabilities of the teacher, constants.
        logits_SBK: scores of the student.
        temperature: of the student, above 0.

    Raises:
        UsageError: there is no pair of different views.
    """
    n_teacher, n_student = len(p_TBK), len(logits_SBK)
    n_pairs = sum(t != s for t in range(n_teacher) for s in range(n_student))
    if n_pairs == 0:
        raise UsageError("one view of a tile has no other to be compared with.")
    # The cross-entropy is linear in p: add up the teacher's views first, then one product a view.
    p_BK = p_TBK.sum(0)
    loss = logits_SBK.new_zeros(())
    for s, logits_BK in enumerate(logits_SBK):
        target_BK = p_BK - p_TBK[s] if s < n_teacher else p_BK
        log_BK = functional.log_softmax(logits_BK / temperature, dim=-1)
        loss = loss - (target_BK * log_BK).sum(-1).mean()
    return loss / n_pairs


@full_precision
def masked_patch_loss(
    p_MK: Tensor, logits_MK: Tensor, weight_M: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy at the masked patches, mean per image, then mean over images.

    Zhou et al., ICLR 2022 (iBOT), eq. 2, over masked patches of the same view; an image without
    masked patches counts as 0.

    Args:
        p_MK: probabilities of the teacher, constants.
        logits_MK: scores of the student at the same patches.
        weight_M: 1 / (masked patches of the image · images), see `masking.PatchMasks`.
        temperature: of the student, above 0.
    """
    log_MK = functional.log_softmax(logits_MK / temperature, dim=-1)
    return -((p_MK * log_MK).sum(-1) * weight_M).sum()


@full_precision
def koleo_loss(x_BD: Tensor) -> Tensor:
    """Spread features: minus the mean log distance to the nearest neighbour on the sphere.

    Kozachenko-Leonenko estimator of entropy (Sablayrolles et al., ICLR 2019, eq. 2; DINOv2).
    Neighbours are those of this process, as published.

    Raises:
        UsageError: a single tile has no neighbour.
    """
    if len(x_BD) < 2:
        raise UsageError("KoLeo needs two tiles a process.", hint="raise --batch or set koleo = 0")
    x_BD = functional.normalize(x_BD, eps=_EPS)
    with torch.no_grad():
        cosine_BB = x_BD @ x_BD.T
        nearest_B = cosine_BB.fill_diagonal_(-torch.inf).argmax(1)
    distance_B = functional.pairwise_distance(x_BD, x_BD[nearest_B], eps=_EPS)
    return -torch.log(distance_B + _EPS).mean()


@full_precision
def nt_xent(x_BD: Tensor, y_BD: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (Chen et al., ICML 2020, eq. 1).

    Every other view of every process is a negative: 2 · B · processes - 2 of them.

    Args:
        x_BD: projections of the first views, any length.
        y_BD: of the second views, in the same order.
        temperature: above 0.
    """
    x_BD, y_BD = functional.normalize(x_BD), functional.normalize(y_BD)
    joined = torch.cat([distributed.gather_with_grad(x_BD), distributed.gather_with_grad(y_BD)])
    n, n_all = len(x_BD), len(joined) // 2
    own_B = torch.arange(n, device=x_BD.device) + n * distributed.rank()
    own, other = torch.cat([own_B, own_B + n_all]), torch.cat([own_B + n_all, own_B])
    score = torch.cat([x_BD, y_BD]) @ joined.T / temperature
    score = score.scatter(1, own[:, None], -torch.inf)
    return functional.cross_entropy(score, other)


@full_precision
def info_nce(query_BD: Tensor, key_BD: Tensor, temperature: float) -> Tensor:
    """Contrast queries with the keys of all processes, times 2 T (MoCo v3, alg. 1).

    Chen, Xie & He, ICCV 2021, eq. 1: the positive is the key of the same tile, negatives are the
    keys of the others; keys are constants. Add both directions for the symmetric loss.
    """
    query_BD = functional.normalize(query_BD)
    keys = distributed.gather(functional.normalize(key_BD))
    same_B = torch.arange(len(query_BD), device=keys.device) + len(query_BD) * distributed.rank()
    score = query_BD @ keys.T / temperature
    return functional.cross_entropy(score, same_B) * (2 * temperature)


@full_precision
def byol_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos (Grill et al., NeurIPS 2020, eq. 2).

    The target is a constant. Add both directions for the symmetric loss.
    """
    cosine_B = functional.cosine_similarity(prediction_BD, target_BD.detach(), dim=-1)
    return 2 - 2 * cosine_B.mean()


@full_precision
def similarity_loss(
    said_BE: Tensor, target_BE: Tensor, known_QE: Tensor, temperature: float
) -> Tensor:
    """Divergence of how like known features a student and its teacher find each tile.

    KL of softmax(target · known / T) from softmax(said · known / T), cosines, mean over tiles: the
    relational distillation of SEED (Fang et al., ICLR 2021, eq. 3), as entropy is left out, 0 where
    they agree.

    Args:
        said_BE: features of the student, any length.
        target_BE: of the teacher, constants.
        known_QE: features of the teacher of other tiles, at least one.
        temperature: above 0.
    """
    known = functional.normalize(known_QE)
    said = functional.normalize(said_BE) @ known.T / temperature
    target = functional.normalize(target_BE) @ known.T / temperature
    return _divergence(said, target)


@full_precision
def relation_loss(said_BND: Tensor, target_BND: Tensor, temperature: float) -> Tensor:
    """Divergence of which tokens of an image a student and its teacher find alike.

    KL of the rows of the matrices of cosines between the tokens of one image, softmax(· / T),
    mean over rows.

    Args:
        said_BND: tokens of the student, (B, N, D).
        target_BND: of the teacher, (B, N, E), constants.
        temperature: above 0.
    """
    said_BND, target_BND = (functional.normalize(x, dim=-1) for x in (said_BND, target_BND))
    said_BNN = said_BND @ said_BND.mT / temperature
    target_BNN = target_BND @ target_BND.mT / temperature
    return _divergence(said_BNN.flatten(0, 1), target_BNN.flatten(0, 1))


def _divergence(said_RK: Tensor, target_RK: Tensor) -> Tensor:
    return functional.kl_div(
        functional.log_softmax(said_RK, -1),
        functional.log_softmax(target_RK, -1),
        reduction="batchmean",
        log_target=True,
    )


@torch.no_grad()
@full_precision
def sinkhorn_knopp(logits_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Turn scores into probabilities that use all prototypes alike, over all processes.

    Caron et al., NeurIPS 2020 (SwAV), alg. of appendix A: prototypes and tiles are normalised in
    turns, tiles last, so each row sums to 1. Processes may hold different numbers of rows, or
    none. Scores are cosines: exp(1 / T) stays within float32 for T ≥ 0.0125.
    """
    q_BK = torch.exp(logits_BK / temperature)
    for _ in range(iterations):
        q_BK = q_BK / distributed.sum_(q_BK.sum(0))
        q_BK = q_BK / q_BK.sum(1, keepdim=True)
    return q_BK


@full_precision
def entropy(p_BK: Tensor) -> Tensor:
    """Return the mean entropy of rows in nats; 0 · log 0 is 0, no rows give 0."""
    total: Tensor = torch.special.entr(p_BK).sum()
    return total / max(len(p_BK), 1)


class Centre(nn.Module):
    """The teacher's probabilities, centred by a running mean of its scores (DINO, eq. 4).

    `forward` uses the centre and remembers the batch; `move` then moves the centre once an
    update, however many parts the batch had, by all rows of all processes.

    Args:
        n_prototypes: K.
        momentum: share of the old centre that stays.
    """

    centre_K: Tensor

    def __init__(self, n_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre_K", torch.zeros(n_prototypes))
        self._seen: Tensor | None = None  # sums of the scores and, last, the number of rows

    @torch.no_grad()
    def forward(self, logits_BK: Tensor, temperature: float) -> Tensor:
        """Return probabilities, (B, K), at least float32."""
        logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
        seen = functional.pad(logits_BK.sum(0), (0, 1), value=float(len(logits_BK)))
        self._seen = seen if self._seen is None else self._seen + seen
        return torch.softmax((logits_BK - self.centre_K) / temperature, dim=-1)

    @torch.no_grad()
    def move(self) -> None:
        """Move the centre towards the mean of the rows since the last call."""
        if self._seen is None:
            return
        seen = distributed.sum_(self._seen)
        self._seen = None
        # Without any row the mean is the centre itself.
        mean_K = torch.where(seen[-1] > 0, seen[:-1] / seen[-1].clamp(min=1), self.centre_K)
        self.centre_K.lerp_(mean_K.to(self.centre_K.dtype), 1 - self.momentum)


class Standardise(nn.Module):
    """Features of zero mean and unit spread, by all rows that were seen before.

    Not by the batch: one of few slides would take away what sets them apart from others. The
    first batch, of all processes, is standardised by itself. `forward` remembers the batch and
    `move` counts it in, as in `Centre`.

    Args:
        dim: E.
        largest: features are cut at so many standard deviations.
    """

    moments_3E: Tensor

    def __init__(self, dim: int, largest: float = 4.0) -> None:
        super().__init__()
        self.largest = largest
        # Number of rows, sums, sums of squares; float64, for they grow all run long.
        self.register_buffer("moments_3E", torch.zeros(3, dim, dtype=torch.float64))
        self._seen: Tensor | None = None

    @torch.no_grad()
    def forward(self, x_BE: Tensor) -> Tensor:
        """Return standardised features, (B, E), of the given type."""
        rows = x_BE.double()
        seen = torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), (rows**2).sum(0)])
        self._seen = seen if self._seen is None else self._seen + seen
        first = not bool(self.moments_3E[0, 0])
        n_E, sum_E, square_E = distributed.sum_(seen.clone()) if first else self.moments_3E
        mean_E = sum_E / n_E
        spread_E = (square_E / n_E - mean_E**2).clamp(min=0).sqrt()
        standard: Tensor = (rows - mean_E) / spread_E.clamp(min=1e-6)
        return standard.clamp(-self.largest, self.largest).to(x_BE.dtype)

    @torch.no_grad()
    def move(self) -> None:
        """Count in the rows since the last call, of all processes."""
        if self._seen is not None:
            self.moments_3E += distributed.sum_(self._seen)
            self._seen = None


class Sinkhorn(nn.Module):
    """`sinkhorn_knopp` in the place of `Centre`.

    Args:
        iterations: rounds of normalisation.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, logits_BK: Tensor, temperature: float) -> Tensor:
        """Return probabilities, (B, K), at least float32."""
        return sinkhorn_knopp(logits_BK, temperature, self.iterations)

    def move(self) -> None:
        """Keep no state."""
