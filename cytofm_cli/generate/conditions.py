"""What a generator is told: the vector of an encoder, a class, or nothing.

Each has a null condition, which stands in for it in a tenth of training and is what guidance
leads away from. Of classes it is the last row of upstream's table (`y_embedder.embedding_table`);
of vectors, a learnt vector of the transformer's width beside one linear layer (that CytoSyn does
likewise is an inference from its number of parameters).

Letters: B images, D width of the transformer, E width of the encoder's vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cytofm_cli.errors import UsageError

ConditionKind = Literal["encoder", "class", "none"]


@dataclass(frozen=True, kw_only=True)
class ConditionShape:
    """What a generator is told.

    Attributes:
        kind: "encoder", "class" or "none".
        dim: width of the encoder's vector; 0 for others.
        classes: how many there are; 0 for others.
    """

    kind: ConditionKind = "none"
    dim: int = 0
    classes: int = 0


class Embedder(nn.Module):
    """A condition as a vector of the transformer's width."""

    def forward(self, given: Tensor, null_B: Tensor | None = None) -> Tensor:
        """Return (B, D).

        Args:
            given: float (B, E) vectors, or int64 (B,) classes; the number of classes, and above,
                is null.
            null_B: bool, True where the null condition takes the place of what is given.

        Raises:
            UsageError: vectors of another width.
        """
        raise NotImplementedError

    def null(self, n: int) -> Tensor:
        """Return the null condition n times, (n, D)."""
        raise NotImplementedError


class ClassEmbedder(Embedder):
    """A row a class, and one for no class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)
        self.classes = classes

    def forward(self, given: Tensor, null_B: Tensor | None = None) -> Tensor:
        given_B = given if null_B is None else torch.where(null_B, self.classes, given)
        rows: Tensor = self.embedding_table(given_B)
        return rows

    def null(self, n: int) -> Tensor:
        return self.embedding_table.weight[-1].expand(n, -1)


class VectorEmbedder(Embedder):
    """One linear layer, and a vector for no condition."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, width)
        self.null_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.dim = dim

    def forward(self, given: Tensor, null_B: Tensor | None = None) -> Tensor:
        if given.shape[-1] != self.dim:
            raise UsageError(
                f"a condition of width {given.shape[-1]}, and the generator was trained with "
                f"{self.dim}.",
                hint="name the encoder that it was trained with",
            )
        embedded: Tensor = self.proj(given)
        if null_B is None:
            return embedded
        return torch.where(null_B[:, None], self.null_embedding.to(embedded.dtype), embedded)

    def null(self, n: int) -> Tensor:
        return self.null_embedding.expand(n, -1)


def make_embedder(shape: ConditionShape, width: int) -> Any:
    """Return the embedder of a condition; None where there is none."""
    if shape.kind == "class":
        return ClassEmbedder(shape.classes, width)
    return VectorEmbedder(shape.dim, width) if shape.kind == "encoder" else None
