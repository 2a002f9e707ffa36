"""What an encoder is, and what the plug-in of one is asked for.

    encoder = load_encoder("timm/vit_small_patch16_224", weights=Path("vits.safetensors"))  # load
    batch = encoder.prepare(pixels_BHWC)   # decode threads: resize, to the model's input
    values_BD = encoder.encode(batch)      # one thread: the device

Letters: B images, H W pixels, C colours (RGB), D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import UsageError
from cytofm_cli.store import schema

Interpolation = Literal["bicubic", "bilinear"]
# cls: the class token. cls+mean: class token, then the mean of the patch tokens. mean: the mean
# of the patch tokens. cls+mean+pixels: these, and statistics of the image's pixels, each at a
# scale that its file states (`pixel_statistics.Joined`). pool: the network's own pooling
# (convolutional networks, attention pooling). none: the encoder computes its vector directly.
Pooling = Literal["cls", "cls+mean", "cls+mean+pixels", "mean", "pool", "none"]
PIXELS: Final = "cls+mean+pixels"
# Side of the crop around a nucleus where neither the user nor the encoder names one: the nucleus
# and the cytoplasm next to it.
CELL_UM: Final = 32.0


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What an encoder expects and gives; stored with every embedding.

    Attributes:
        name: its name, e.g. `uni` or `timm/vit_small_patch16_224`; random weights say so in it.
        dim: length of the vector of one image.
        input_px: side of the square that the model sees; None: any size, nothing is resized.
        resize_px: side to which images are resized before the centre `input_px` is cut out;
            None: the same as `input_px`.
        mpp: µm/px that the weights were trained at; None: no particular one.
        cell_um: side of the crop around a nucleus that they were trained on; None: no such crop.
        mean: per RGB channel, in [0, 1], subtracted from pixels / 255.
        std: per RGB channel, what the difference is divided by.
        interpolation: how images are resized, always with antialiasing.
        pooling: how tokens become one vector.
        licence: licence of the weights, or of the features where there are none.
        weights_sha256: digest of the weight file; None: no weights, or random ones.
        network: prefix of the entries that were taken from the file; None: they have none.
        positions: how the weights' absolute positions were resized: "16x16 → 37x37"; None: not.
        assumed: fields of these that neither the user nor the file nor the catalogue states.
    """

    name: str
    dim: int
    input_px: int | None
    resize_px: int | None = None
    mpp: float | None = None
    cell_um: float | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: Interpolation = "bicubic"
    pooling: Pooling = "none"
    licence: str = "not stated"
    weights_sha256: str | None = None
    network: str | None = None
    positions: str | None = None
    assumed: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return how images become vectors, for the record of what was made with it."""
        names = ("input_px", "resize_px", "mean", "std", "interpolation", "pooling", "licence")
        facts = {name: getattr(self, name) for name in (*names, "weights_sha256", "network")}
        return facts | {"pos_embed": self.positions, "assumed": list(self.assumed)}


@runtime_checkable
class Encoder(Protocol):
    """Turns images into vectors.

    Two calls, so that preparing overlaps with the device: `prepare` may run in many threads at
    once, `encode` runs in one. An encoder may have, besides: `notes`, lines for the user;
    `batch_px`, the pixels it is best given at a time; `enter_thread`, called without arguments
    first in every thread that encodes, which says that many may at once.
    """

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder expects and gives."""

    def prepare(self, pixels_BHWC: NDArray[np.uint8]) -> Any:
        """Turn RGB images, uint8 (B, H, W, 3), into a batch for `encode`; thread-safe."""

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Return float32 (B, dim) for what `prepare` gave.

        Raises:
            OutOfMemoryError: the device cannot hold the batch; a smaller one may fit.
        """


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """What a plug-in's `make` is given.

    Attributes:
        name: the name that the encoder goes by.
        model: the part that tells the plug-in which model, e.g. the `x` of `timm/x`; "" if none.
        weights: local weight file.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        download: fetch published weights if there is no file.
        random_weights: take random weights, drawn from `seed`, instead of a file.
        seed: of the random weights.
        pooling: instead of the encoder's own.
        builder: keyword arguments for the network's constructor.
        expects: fields of `EncoderSpec` known beforehand (from the catalogue or from the file).
        stated: fields of it that the user states; they go before `expects`.
        weights_key: which of several networks in the file; None: the one meant for use.
    """

    name: str
    model: str
    weights: Path | None = None
    device: str = "auto"
    download: bool = False
    random_weights: bool = False
    seed: int = 0
    pooling: Pooling | None = None
    builder: dict[str, Any] = field(default_factory=dict)
    expects: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    weights_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrunkRequest:
    """What a plug-in's `trunk` is given: the network that a pretraining run trains.

    Attributes:
        name: the name that the encoder goes by.
        model: see `EncoderRequest`.
        builder: keyword arguments for the network's constructor that are known beforehand.
        patch_px: side of a patch; views are whole numbers of it.
        img_px: side of a global view, which absolute positions are laid out for.
        h: keys that each query keeps, where a network can; None: all.
        irpe: relative positions, where a network can.
    """

    name: str
    model: str
    builder: Mapping[str, Any]
    patch_px: int
    img_px: int
    h: int | None
    irpe: bool


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """How a trunk is built.

    Attributes:
        arch: the name that `load_encoder` knows the architecture by.
        builder: its keyword arguments, plain JSON values.
        is_vit: it is a timm `VisionTransformer`, with patches. Else it has timm's `num_features`,
            `forward_features` and `forward_head(x, pre_logits=True)`, and no patches.
        network: draws one with random weights, given the largest rate of dropped residual
            branches; one that cannot drop them raises TypeError for a rate above 0.
    """

    arch: str
    builder: dict[str, Any]
    is_vit: bool
    network: Callable[[float], Any]


def other_patches(name: str, own_px: int, patch_px: int) -> UsageError:
    """Return the error of an encoder whose patches are not those of the views."""
    return UsageError(
        f"{name} has patches of {own_px} px, the views of {patch_px} px.",
        hint=f"--patch-px {own_px}",
    )


def store_key(spec: EncoderSpec) -> str:
    """Return the name of an encoder's group in a store: `timm/x` becomes `timm.x`."""
    return schema.node_name(spec.name)
