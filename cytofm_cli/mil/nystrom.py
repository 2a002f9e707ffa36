"""Nyström attention (Xiong et al., AAAI 2021), exact and without its redundant work.

The published module pads the sequence with zeros in front. Zero tokens share one query, one
key and the value 0, so landmarks made of them alone are copies of one another, and the
attention between landmarks has equal rows and columns for them. Here such copies are one
row and column with the multiplicity carried along: the pseudo-inverse iteration, which is
nearly all of the cost, runs on the distinct rows and gives the same numbers.
Legend: H heads, T tokens, E width of a head, L landmarks kept, Z copies of the zero landmark.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class NystromAttention(nn.Module):
    """Self-attention through landmarks, with a convolution of the values as residual.

    Args:
        width: of a token.
        heads: H.
        landmarks: number of segments whose means stand for the sequence.
        iterations: of the pseudo-inverse.
        kernel: length of the value convolution.
        dropout: on the output.
        masked: leave the padding out of landmarks and softmax. The published module does not:
            in a bag of 100 more than half of the class token's attention falls on padding.
        first_rows: return the first rows of the padded sequence, as version 0.0.9 of the
            published module did by mistake, so that every token gets another token's output.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.1,
        masked: bool = False,
        first_rows: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.masked, self.first_rows = masked, first_rows
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.residual = nn.Conv2d(
            heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False
        )

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Attend within one sequence.

        Returns:
            output (T, D); attention of the first token to all tokens (T,), the mean over heads
            of the product of the three factors: may be slightly negative, and sums to less
            than 1 where padding takes a share.
        """
        q, k, v = (
            part.reshape(len(part), self.heads, -1).transpose(0, 1)
            for part in self.qkv(x_TD).chunk(3, dim=-1)
        )
        q = q * q.shape[-1] ** -0.5
        tokens = q.shape[1]
        pad = -tokens % self.landmarks
        segment = (tokens + pad) // self.landmarks
        zeros = pad // segment  # landmarks made of padding alone
        rest = pad - zeros * segment
        q_land, k_land = (self._means(part, segment, rest) for part in (q, k))
        copies = 0 if self.masked else zeros
        unseen = 0 if self.masked else pad
        to_land = _softmax_with_copies(q @ k_land.mT, copies)
        between = _softmax_with_copies(q_land @ k_land.mT, copies)
        from_land = _softmax_with_copies(q_land @ k.mT, unseen)[..., :tokens]
        if copies:
            # The row of the zero landmark: all logits 0.
            between = torch.cat([between, self._uniform(between, copies)], dim=-2)
            row = torch.full_like(from_land[:, :1], 1 / (tokens + pad))
            from_land = torch.cat([from_land, row * copies**0.5], dim=-2)
            to_land = _scale_last(to_land, copies**-0.5)
        inverse = PseudoInverse(between, copies, self.iterations)
        values = inverse.times(from_land @ v)
        y = to_land @ values
        if self.first_rows:
            y = self._first_rows(y, v, values, copies, pad)
        else:
            y = y + self.residual(v[None])[0]
        with torch.no_grad():
            first_T = (inverse.after(to_land[:, :1]) @ from_land)[:, 0].mean(0)
        output: Tensor = self.out(y.transpose(0, 1).flatten(1))
        return output, first_T

    def _means(self, part_HTE: Tensor, segment: int, rest: int) -> Tensor:
        padded = nn.functional.pad(part_HTE, (0, 0, rest, 0))
        sums: Tensor = padded.reshape(len(padded), -1, segment, padded.shape[-1]).sum(2)
        if not self.masked or not rest:
            return sums / segment
        counts = sums.new_full((sums.shape[1], 1), segment)
        counts[0] = segment - rest
        return sums / counts

    def _uniform(self, like_HLL: Tensor, copies: int) -> Tensor:
        row = torch.full_like(like_HLL[:, :1], 1 / self.landmarks)
        row[..., -1] *= copies
        return row

    def _first_rows(self, y: Tensor, v: Tensor, values: Tensor, copies: int, pad: int) -> Tensor:
        if pad:
            query = torch.full_like(values[:, None, :, 0], 1 / self.landmarks)
            if copies:
                query[..., -1] *= copies**0.5
            y = torch.cat([(query @ values).expand(-1, pad, -1), y], dim=1)
            v = nn.functional.pad(v, (0, 0, pad, 0))
        residual: Tensor = self.residual(v[None])[0]
        return (y + residual)[:, : y.shape[1] - pad]


class PseudoInverse:
    """What the iteration makes of softmaxed matrices A (Xiong et al. 2021, eq. 13).

    Z₀ = Aᵀ / (max row sum · max column sum), both over all heads; then
    Z ← ¼ Z (13 I − 15 P + 7 P² − P³) with P = A Z. P itself follows ¼ (13 P − 15 P² + 7 P³ − P⁴),
    two products from P, and Z is Z₀ times polynomials of the P, which are applied to the narrow
    matrix that Z is wanted for. So an iteration costs two wide products instead of four.

    Args:
        a_HLL: rows sum to 1. With `copies` > 0 the last column holds the joint mass of that many
            equal columns, and the last row is one of that many equal rows.
        copies: how many rows and columns the last ones stand for; then products are in the
            orthonormal basis in which the last vector is the normalised sum of the copies.
        iterations: how often.
    """

    def __init__(self, a_HLL: Tensor, copies: int = 0, iterations: int = 6) -> None:
        column_sums = a_HLL.sum(-2)
        if copies:
            column_sums = column_sums + (copies - 1) * a_HLL[:, -1]
            column_sums = _scale_last(column_sums, 1 / copies)
            a_HLL = _scale_last(a_HLL, copies**-0.5)
            a_HLL = torch.cat([a_HLL[:, :-1], a_HLL[:, -1:] * copies**0.5], dim=1)
        self.start = a_HLL.mT / column_sums.max()
        self.powers: list[tuple[Tensor, Tensor | None]] = []  # P and P² of each iteration
        p = a_HLL @ self.start
        for _ in range(iterations - 1):
            square = p @ p
            self.powers.append((p, square))
            low = torch.sub(13 * p, square, alpha=15)
            p = torch.baddbmm(low, square, torch.sub(7 * p, square), beta=0.25, alpha=0.25)
        self.powers.append((p, None))

    def times(self, b_HLE: Tensor) -> Tensor:
        """Return Z b."""
        for p, square in self.powers:
            pb = p @ b_HLE
            inner = torch.sub(7 * b_HLE, pb)
            low = torch.sub(13 * b_HLE, pb, alpha=15)
            third = p @ (p @ inner) if square is None else square @ inner
            b_HLE = (low + third) / 4
        return self.start @ b_HLE

    def after(self, b_HTL: Tensor) -> Tensor:
        """Return b Z."""
        b_HTL = b_HTL @ self.start
        for p, square in self.powers:
            bp = b_HTL @ p
            inner = 7 * b_HTL - bp
            third = inner @ p @ p if square is None else inner @ square
            b_HTL = (13 * b_HTL - 15 * bp + third) / 4
        return b_HTL


def _softmax_with_copies(logits: Tensor, copies: int) -> Tensor:
    """Softmax with one more column, last: the joint mass of `copies` columns of logit 0."""
    if not copies:
        return logits.softmax(-1)
    extra = torch.full_like(logits[..., :1], math.log(copies))
    return torch.cat([logits, extra], dim=-1).softmax(-1)


def _scale_last(values: Tensor, factor: float) -> Tensor:
    return torch.cat([values[..., :-1], values[..., -1:] * factor], dim=-1)
