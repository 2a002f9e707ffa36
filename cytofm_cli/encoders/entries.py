"""What is known of an encoder by its name: what it is built from and what it expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cytofm_cli.encoders.base import Interpolation, Pooling

Triple = tuple[float, float, float]

IMAGENET: Final[tuple[Triple, Triple]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHIPPED: Final = Path(__file__).parent / "shipped"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One encoder that has a name; its plug-in lists it in `EncoderPlugin.entries`.

    Attributes:
        name: what the user types.
        model: which of the plug-in's models.
        dim: length of its vectors.
        builder: keyword arguments of the network.
        norm: mean and std, RGB in [0, 1].
        source: where its weights are published.
        gated: whether one must be granted access to them.
        needs_weights: whether the user must pass a file.
        any_weights: an architecture for weights from anywhere: nothing is known of them.
        shipped: the file of its weights, which describes itself, where they come along.
        params_m: millions of parameters; of float32 weights each takes 4 MB of a file.
        note: what a user should know before the first use, one sentence.
        views: settings of [views] that pretraining takes where the user leaves them open.
        (others: see `EncoderSpec`)
    """

    name: str
    model: str
    dim: int
    builder: Mapping[str, Any] = field(default_factory=dict)
    norm: tuple[Triple, Triple] = IMAGENET
    input_px: int | None = 224
    resize_px: int | None = None
    mpp: float | None = 0.5
    cell_um: float | None = None
    interpolation: Interpolation = "bicubic"
    pooling: Pooling = "cls"
    licence: str
    source: str = ""
    params_m: float | None = None
    note: str = ""
    gated: bool = False
    needs_weights: bool = True
    any_weights: bool = False
    shipped: Path | None = None
    views: Mapping[str, Any] = field(default_factory=dict)

    def expects(self) -> dict[str, Any]:
        """Return the fields of `EncoderSpec` that the entry fixes."""
        if self.any_weights:
            return {"dim": self.dim}
        cell = {} if self.cell_um is None else {"cell_um": self.cell_um}
        return cell | {
            "dim": self.dim,
            "input_px": self.input_px,
            "resize_px": self.resize_px,
            "mpp": self.mpp,
            "mean": self.norm[0],
            "std": self.norm[1],
            "interpolation": self.interpolation,
            "pooling": self.pooling,
            "licence": self.licence,
        }
