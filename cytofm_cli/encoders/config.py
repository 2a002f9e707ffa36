"""Settings of running an encoder, and of the embed step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.regions.config import TileRegions


@dataclass(frozen=True, kw_only=True)
class EncodingSettings(Settings):
    """How an encoder is run, whatever it is run for."""

    pooling: Literal["cls", "cls+mean", "mean", "pool"] | None = option(
        None, "How tokens become one vector [default: the encoder's own]."
    )
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:N; auto takes the GPU.", affects_result=False
    )
    batch_size: int | None = option(
        None,
        "Images at a time [default: 16 on CPU, 256 on GPU, halved until they fit].",
        low=1,
        affects_result=False,
    )
    slides: Path | None = option(
        None, "Folder where the slides lie now, for stores without pixels.", affects_result=False
    )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(EncodingSettings, TileRegions):
    """How tiles or cells become embeddings."""

    SECTION: ClassVar[str] = "embed"

    encoder: str = option(
        "auto",
        "Name (see `cytofm encoders`) or weight file; auto: cytofm-tiny for cells, handcrafted "
        "for tiles.",
    )
    weights: Path | None = option(
        None, "Local weight file: safetensors, or a pickle that holds only tensors."
    )
    download: bool = option(
        False, "Fetch published weights of timm/<name>; needs the network.", affects_result=False
    )
    random_weights: bool = option(False, "Random weights: a floor to compare with, not a model.")
    input_px: int | None = option(
        None,
        "Side of the image that the model sees [default: what is known of the encoder, else what "
        "the weights' positions are laid out for].",
        low=1,
    )
    resize_px: int | None = option(
        None,
        "Side to which images are resized first; the middle of --input-px is seen [default: as "
        "known, else --input-px].",
        low=1,
    )
    mean: tuple[float, ...] | None = option(
        None, "R,G,B in 0..1 that the weights were trained with, subtracted [default: as known]."
    )
    std: tuple[float, ...] | None = option(
        None, "R,G,B that the difference is divided by [default: as known]."
    )
    weights_key: str | None = option(
        None,
        "Which network of a checkpoint that holds several, e.g. student [default: the teacher or "
        "running mean].",
    )
    arch_arg: tuple[str, ...] | None = option(
        None,
        "Setting of the network, KEY=VALUE, where the catalogue has none or another: "
        "init_values=1e-5, mlp_layer=swiglu_packed; repeat for more.",
    )
    unit: Literal["tile", "cell"] = option("tile", "A row a tile, or a row a nucleus (cell).")
    detector: str | None = option(
        None, "Whose nuclei, with --unit cell [default: the only ones there are]."
    )
    cell_um: float | None = option(
        None,
        "Side of the crop around a nucleus, µm [default: what the encoder was trained on, "
        "else 32].",
        low=4.0,
        high=512.0,
    )
    dtype: Literal["float32", "float16"] = option("float32", "Type of the stored values.")
    seed: int = option(0, "Seed of --random-weights.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder == "auto":  # what is recorded has to say what made the values
            chosen = "cytofm-tiny" if self.unit == "cell" else "handcrafted"
            object.__setattr__(self, "encoder", chosen)

    @property
    def builder(self) -> dict[str, Any]:
        """The settings of the network in `arch_arg`, numbers as numbers.

        Raises:
            UsageError: a word is not KEY=VALUE.
        """
        settings: dict[str, Any] = {}
        for word in self.arch_arg or ():
            key, equals, text = word.partition("=")
            if not (equals and key.strip() and text.strip()):
                raise UsageError(f"{self.said('arch_arg')}: {word!r} must be KEY=VALUE.")
            try:
                settings[key.strip()] = json.loads(text)
            except ValueError:  # a word
                settings[key.strip()] = text.strip()
        return settings

    def check(self) -> None:
        """Refuse colours that cannot be, and what is no setting of a network."""
        super().check()
        self.builder  # noqa: B018 - it raises
        if self.resize_px is not None and self.resize_px < (self.input_px or 1):
            raise UsageError(
                f"{self.said('resize_px')}: smaller than the {self.input_px} px that are seen."
            )
        for name, lowest in (("mean", 0.0), ("std", 1e-6)):
            values = getattr(self, name)
            if values is not None and not (
                len(values) == 3 and all(lowest <= value <= 1 for value in values)
            ):
                raise UsageError(
                    f"{self.said(name)}: three numbers from {lowest:g} to 1.",
                    hint=f"--{name} 0.485,0.456,0.406; values of 0..255 are divided by 255",
                )
