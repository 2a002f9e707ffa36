"""Parts that several MIL heads share.

Legend: B bags, N instances, D features, K attention maps, A attention width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Of the usual size of initial weights: for scores that choose instances, which is to be up to
# the labels. Not 0, which would leave the choice among equals to the order of instances.
SMALL = 0.01


class Projection(nn.Sequential):
    """Linear layer, ReLU and dropout, with the gradient of one bag written out.

    Args:
        n_features: width of the input.
        width: width of the output.
        dropout: probability of a zero in training.
    """

    def __init__(self, n_features: int, width: int, dropout: float) -> None:
        super().__init__(nn.Linear(n_features, width), nn.ReLU(inplace=True), FastDropout(dropout))
        self.width, self.dropout = width, dropout

    def forward(self, x_BND: Tensor) -> Tensor:
        """Project (B, N, D) to (B, N, width)."""
        if len(x_BND) > 1:
            plain: Tensor = super().forward(x_BND)  # type: ignore[no-untyped-call]
            return plain
        x_ND = x_BND.squeeze(0)
        p = self.dropout if self.training else 0.0
        keep_NH = keep_mask(x_ND.new_empty((len(x_ND), self.width)), p) if p else None
        h_NH: Tensor = _Project.apply(x_ND, self[0].weight, self[0].bias, keep_NH, 1 / (1 - p))
        return h_NH[None]


class _Project(torch.autograd.Function):
    """max(0, W x + b) ⊙ keep. What is kept is positive, so the output alone tells the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight: Tensor,
        bias: Tensor,
        keep_NH: Tensor | None,
        scale: float,
    ) -> Tensor:
        h_NH = torch.addmm(bias, x_ND, weight.T).relu_()
        if keep_NH is not None:
            h_NH.mul_(keep_NH)
        ctx.save_for_backward(x_ND, weight, h_NH)
        ctx.scale = scale
        return h_NH

    @staticmethod
    def backward(ctx: Any, d_h_NH: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight, h_NH = ctx.saved_tensors
        d_z_NH = torch.ops.aten.threshold_backward(d_h_NH, h_NH, 0)
        d_x_ND = ctx.scale * (d_z_NH @ weight) if ctx.needs_input_grad[0] else None
        return d_x_ND, ctx.scale * (d_z_NH.T @ x_ND), ctx.scale * d_z_NH.sum(0), None, None


class AttentionScores(nn.Module):
    """Score instances: w·tanh(V h), or gated w·(tanh(V h) ⊙ σ(U h)) (Ilse et al. 2018, eq. 8, 9).

    Args:
        n_features: width of h.
        width: A.
        maps: number of scores an instance, K.
        gated: use the gate U.
        dropout: on each half of the gate.
    """

    def __init__(
        self,
        n_features: int,
        width: int,
        maps: int = 1,
        *,
        gated: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gated = gated
        # V and U in one product: the widest matrix product is the fastest.
        self.hidden = nn.Linear(n_features, 2 * width if gated else width)
        self.dropout = FastDropout(dropout)
        self.score = nn.Linear(width, maps)

    def pool(self, h_BND: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Attend and sum.

        Returns:
            bag vectors (B, K, D), attention (B, K, N), raw scores (B, K, N).
        """
        if len(h_BND) == 1 and mask_BN is None and self.gated:
            return self._pool_one(h_BND.squeeze(0))
        raw_BKN = self(h_BND)
        attention_BKN = masked_softmax(raw_BKN, mask_BN)
        return attention_BKN @ h_BND, attention_BKN, raw_BKN

    def _pool_one(self, h_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, score, keep_NA = self.hidden, self.score, None
        if self.training and self.dropout.p > 0:
            # Dropout on both halves of the gate is dropout of their product.
            p = 1 - (1 - self.dropout.p) ** 2
            keep_NA = keep_mask(h_ND.new_empty((len(h_ND), score.in_features)), p)
        pooled = _GatedPool.apply(
            h_ND, hidden.weight, hidden.bias, score.weight, score.bias, keep_NA, None
        )
        return pooled[0][None], pooled[1][None], pooled[2][None]

    def pool_parts(self, h_ND: Tensor, outside_GN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend and sum within parts of one bag, by one gated map without dropout.

        Args:
            h_ND: instances.
            outside_GN: True where an instance does not belong to a part.

        Returns:
            part vectors (G, D), attention (G, N), raw scores (1, N).
        """
        hidden, score = self.hidden, self.score
        pooled: tuple[Tensor, Tensor, Tensor] = _GatedPool.apply(
            h_ND, hidden.weight, hidden.bias, score.weight, score.bias, None, outside_GN
        )
        return pooled

    def forward(self, h_BND: Tensor) -> Tensor:
        """Return raw scores (B, K, N)."""
        a = self.hidden(h_BND)
        if self.gated:
            v, u = a.chunk(2, dim=-1)
            a = self.dropout(torch.tanh(v)) * self.dropout(torch.sigmoid(u))
        else:
            a = self.dropout(torch.tanh(a))
        scores: Tensor = self.score(a)
        return scores.transpose(1, 2)


class _GatedPool(torch.autograd.Function):
    """Gated attention and weighted sum of one bag, with the gradient written out.

    Autograd would make four more passes over the (N, H) features than the matrix products
    need; on a CPU these passes, not the products, are what can be saved.
    Forward and gradient are those of `AttentionScores`, `masked_softmax` and `attention @ h`; with
    `outside_GN` the one map is normalised within each part, (G, N).
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_NH: Tensor,
        gate_w: Tensor,
        gate_b: Tensor,
        score_w: Tensor,
        score_b: Tensor,
        keep_NA: Tensor | None,
        outside_GN: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gate_NA = torch.addmm(gate_b, h_NH, gate_w.T)
        v, u = gate_NA.chunk(2, dim=-1)
        v.tanh_()
        u.sigmoid_()
        product = v * u
        kept = product if keep_NA is None else product * keep_NA
        raw_KN = torch.addmm(score_b[:, None], score_w, kept.T)
        attention_KN = raw_KN.softmax(-1) if outside_GN is None else within(raw_KN, outside_GN)
        bag_KH = attention_KN @ h_NH
        ctx.save_for_backward(h_NH, gate_w, score_w, gate_NA, product, kept, attention_KN, keep_NA)
        return bag_KH, attention_KN, raw_KN

    @staticmethod
    def backward(
        ctx: Any, d_bag_KH: Tensor, d_attention_KN: Tensor, d_raw_KN: Tensor
    ) -> tuple[Tensor | None, ...]:
        h_NH, gate_w, score_w, gate_NA, product, kept, attention_KN, keep_NA = ctx.saved_tensors
        d_weight_KN = torch.addmm(d_attention_KN, d_bag_KH, h_NH.T)
        shift_K1 = (d_weight_KN * attention_KN).sum(-1, keepdim=True)
        d_score_KN = attention_KN * (d_weight_KN - shift_K1)
        # One map may have been normalised within many parts.
        d_raw_KN = d_raw_KN + d_score_KN.sum_to_size(d_raw_KN.shape)
        d_product = d_raw_KN.T @ score_w
        if keep_NA is not None:
            d_product.mul_(keep_NA)
        v, u = gate_NA.chunk(2, dim=-1)
        d_gate_NA = torch.empty_like(gate_NA)
        d_v, d_u = d_gate_NA.chunk(2, dim=-1)
        # d tanh = 1 − v², d sigmoid = u (1 − u); product = v u serves both.
        torch.mul(d_product, torch.addcmul(u, product, v, value=-1), out=d_v)
        torch.mul(d_product, torch.addcmul(product, product, u, value=-1), out=d_u)
        d_h_NH = (attention_KN.T @ d_bag_KH).addmm_(d_gate_NA, gate_w)
        return (
            d_h_NH,
            d_gate_NA.T @ h_NH,
            d_gate_NA.sum(0),
            d_raw_KN @ kept,
            d_raw_KN.sum(1),
            None,
            None,
        )


def within(raw_1N: Tensor, outside_GN: Tensor) -> Tensor:
    """Return softmax inside each part, (G, N), zero outside it; an empty part is a zero row."""
    attention_GN = raw_1N.masked_fill(outside_GN, -torch.inf).softmax(-1)
    return attention_GN.masked_fill(outside_GN, 0.0)


class FastDropout(nn.Module):
    """Dropout whose mask costs a fraction of torch's on a CPU.

    Args:
        p: probability of a zero, rounded to 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements at random in training, and scale the others by 1 / (1 − p)."""
        return x * keep_mask(x, self.p) if self.training and self.p > 0 else x


def keep_mask(like: Tensor, p: float) -> Tensor:
    """Draw 0 with probability p and 1 / (1 − p) otherwise; a 64-bit draw serves 4 or 8 elements.

    Multiplying by such a mask is many times faster than filling by a boolean one.
    """
    if like.device.type != "cpu":
        return (torch.rand_like(like) >= p).to(like.dtype) / (1 - p)
    # A byte is enough for the usual p: 0.25, 0.5, and 0.4375 of two halves of a gate.
    kind, levels = (torch.int8, 256) if p * 256 % 1 == 0 else (torch.int16, 65536)
    n = like.numel()
    draws = torch.empty(n * kind.itemsize // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(kind)[:n] >= round(p * levels) - levels // 2
    return keep.to(like.dtype).mul_(1 / (1 - p)).view(like.shape)


def masked_softmax(scores_BKN: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Softmax over real instances; padding gets exactly 0."""
    if mask_BN is not None:
        scores_BKN = scores_BKN.masked_fill(~mask_BN[:, None, :], -torch.inf)
    return scores_BKN.softmax(-1)


def two_class_logits(z_B1: Tensor) -> Tensor:
    """Turn one sigmoid output z into logits (0, z), whose softmax is (1 − σ(z), σ(z))."""
    return torch.cat([torch.zeros_like(z_B1), z_B1], dim=-1)
