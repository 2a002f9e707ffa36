"""The networks whose attention is compared: as trained, with all keys, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.encoders.attention import PatchAttention, patch_attention
from cytofm_cli.encoders.base import Encoder, EncoderSpec
from cytofm_cli.encoders.load import load_encoder, load_untrained
from cytofm_cli.encoders.sr_vit import SrVit
from cytofm_cli.encoders.torch_encoder import TorchEncoder
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.maps.config import AttentionConfig
from cytofm_cli.work.memory import out_of_memory


@dataclass(frozen=True)
class Looker:
    """A network that gives its attention in place of a vector, as an encoder does.

    Attributes:
        label: how it is called in results; unique.
        encoder: name of the encoder.
        weights: "trained" or "random".
        keys: "top-16", or "dense".
        inner: the encoder itself.
        grid: rows and columns of patches.
        n_heads: of the last layer.
        query: see `PatchAttention`.
        spec: of `inner`, but for `dim`: heads × (patches + 1).
    """

    label: str
    encoder: str
    weights: str
    keys: str
    inner: TorchEncoder
    grid: tuple[int, int]
    n_heads: int
    query: str
    spec: EncoderSpec

    @property
    def enter_thread(self) -> Any:
        """What threads call that encode."""
        return self.inner.enter_thread

    def prepare(self, pixels_BHWC: NDArray[np.uint8]) -> Any:
        """Resize images as the encoder does."""
        return self.inner.prepare(pixels_BHWC)

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Return the attention on each patch, head by head, float32 (B, heads · patches)."""
        attention = _look(self.inner, batch)
        assert attention is not None, "it had attention when it was loaded"
        values: NDArray[np.float32] = attention.patches_BHP.flatten(1).float().cpu().numpy()
        return values


def open_lookers(choices: Sequence[Choice], config: AttentionConfig, device: str) -> list[Looker]:
    """Load the networks, and those beside them.

    Raises:
        UsageError: an encoder has no attention, or `--dense` is asked of one without top-h.
        WeightsError: weights are missing or do not fit.
    """
    found: list[Looker] = []
    for choice in choices:
        found += _of_choice(choice, config, device)
    if config.dense and all(looker.keys == "dense" for looker in found):
        raise UsageError(
            "--dense: none of these encoders has top-h attention: they are dense as they are.",
            hint="leave --dense away",
        )
    return found


def _of_choice(choice: Choice, config: AttentionConfig, device: str) -> list[Looker]:
    loads = [(False, "random" if choice.random else "trained")]
    if config.control and not choice.random:
        loads.append((True, "random"))
    found = []
    for untrained, weights in loads:
        encoder = _load(choice, config, device, untrained=untrained)
        h = encoder.model.config.h if isinstance(encoder.model, SrVit) else None
        found.append(_looker(choice, encoder, weights, "dense" if h is None else f"top-{h}"))
        if h is not None and config.dense is not False:
            twin = _load(choice, config, device, untrained=untrained)
            assert isinstance(twin.model, SrVit)
            twin.model.set_h(None)
            found.append(_looker(choice, twin, weights, "dense"))
    return found


def _load(choice: Choice, config: AttentionConfig, device: str, *, untrained: bool) -> TorchEncoder:
    how: dict[str, Any] = {"device": device, "seed": config.seed, "input_px": config.input_px}
    encoder: Encoder
    if untrained:
        encoder = load_untrained(choice.word, **how)
    else:
        choice.require_weights()
        encoder = load_encoder(
            choice.word, weights=choice.weights, random_weights=choice.random, **how
        )
    if not isinstance(encoder, TorchEncoder):
        raise _without_attention(choice.label, "computes its vector without a network")
    return encoder


def _looker(choice: Choice, encoder: TorchEncoder, weights: str, keys: str) -> Looker:
    side = encoder.spec.input_px
    assert side is not None, "networks see images of one size"
    blank = encoder.prepare(np.zeros((1, side, side, 3), np.uint8))
    attention = _look(encoder, blank)
    if attention is None:
        raise _without_attention(choice.label, "has no attention over all patches of an image")
    _, n_heads, n_patches = attention.patches_BHP.shape
    words = [choice.label] if weights == "trained" or choice.random else [choice.label, "random"]
    return Looker(
        label=", ".join([*words, keys]),
        encoder=choice.label,
        weights=weights,
        keys=keys,
        inner=encoder,
        grid=attention.grid,
        n_heads=n_heads,
        query=attention.query,
        spec=replace(encoder.spec, dim=n_heads * n_patches),
    )


def _look(encoder: TorchEncoder, batch: torch.Tensor) -> PatchAttention | None:
    too_big = out_of_memory(
        f"the attention of {len(batch)} images does not fit into memory.",
        hint="pass a smaller --batch-size",
    )
    with too_big, encoder.computing():
        return patch_attention(encoder.model, encoder.normalised(batch))


def _without_attention(label: str, why: str) -> UsageError:
    return UsageError(
        f"encoder {label!r} {why}: there are no heads to look at.",
        hint="take a Vision Transformer; `cytofm encoders` lists them.",
    )
