"""Settings of generation; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError

PresetName = Literal["tiny", "small", "base", "xl"]
ConditionName = Literal["encoder", "class", "none"]
SamplerName = Literal["euler", "heun", "sde"]

# What a preset settles where the user does not. tiny is for a CPU: at 1e-3 its autoencoder stays at
# a middling colour of all images. base and xl are SiT-B/2 and SiT-XL/2 with the f8d4 autoencoder
# and the rates of REPA-E.
_UPSTREAM: Final[dict[str, Any]] = {
    "size_px": 224, "vae_base": 128, "vae_blocks": 2, "patch": 2, "aligned_depth": 8,
    "projector": 2048, "batch": 256, "lr": 1e-4, "lr_end": 1e-4, "warmup": 0.0, "gan": 0.1,
}  # fmt: skip
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "size_px": 64, "vae_base": 32, "vae_blocks": 1, "depth": 4, "width": 128, "heads": 4,
        "patch": 2, "aligned_depth": 2, "projector": 256, "batch": 32, "lr": 3e-4, "lr_end": 1e-5,
        "warmup": 0.05, "gan": 0.0,
    },
    "small": {
        "size_px": 64, "vae_base": 64, "vae_blocks": 2, "depth": 8, "width": 384, "heads": 6,
        "patch": 1, "aligned_depth": 4, "projector": 1024, "batch": 128, "lr": 4e-4,
        "lr_end": 1e-5, "warmup": 0.05, "gan": 0.1,
    },
    "base": {**_UPSTREAM, "depth": 12, "width": 768, "heads": 12},
    "xl": {**_UPSTREAM, "depth": 28, "width": 1152, "heads": 16},
}  # fmt: skip
# What all presets settle: open until then, so that a training that has no use for it can tell
# whether it was asked for.
_COMMON: Final[dict[str, Any]] = {"kl": 1e-6, "perceptual": 1.0, "align_vae": 1.5}
VAE_LOSSES: Final = ("kl", "perceptual", "gan", "align_vae")
NO_ENCODER: Final = "none"
_LONGEST_EMA: Final = 0.9999
_LEAST_JUDGED: Final = 32  # pixels of the smallest image that the discriminator's layers take


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Settings):
    """Settings of `cytofm generate train`."""

    SECTION: ClassVar[str] = "generate"

    preset: PresetName = option(
        "tiny", "Sizes and rates: tiny (64 px, a CPU), small, base, xl (as CytoSyn)."
    )
    condition: ConditionName = option(
        "encoder", "What the generator is told of a cell: an encoder's vector, its class, nothing."
    )
    encoder: str = option(
        "cytofm-tiny", "Whose vector: NAME, NAME=FILE, or a weight file that names itself."
    )
    align: str | None = option(
        None, "Whose tokens training aligns with; none: without [default: --encoder's]."
    )
    autoencoder: Path | None = option(
        None, "RUN, or file, whose autoencoder stays as it is: only the SiT is trained."
    )
    unit: Literal["tile", "cell"] = option("cell", "What an image shows: a tile, or one cell.")
    cell_um: float | None = option(
        None, "Side of the square around a nucleus, µm [default: the encoder's, or 32].", low=1
    )
    detector: str | None = option(None, "Whose nuclei [default: the only ones].")
    flips: bool = option(True, "Show tiles and cells in all eight turns.")
    balance: Literal["slides", "tiles"] = option(
        "slides", "Every slide as often, or every tile as often."
    )
    size_px: int | None = option(None, "Side of an image [default: the preset's].", low=16)
    vae_base: int | None = option(
        None, "Channels of the autoencoder's finest level [default: the preset's].", low=1
    )
    vae_blocks: int | None = option(
        None, "Residual blocks a level of the autoencoder [default: the preset's].", low=1
    )
    depth: int | None = option(None, "Blocks of the SiT [default: the preset's].", low=1)
    width: int | None = option(None, "Width of the SiT [default: the preset's].", low=4)
    heads: int | None = option(None, "Heads of the SiT [default: the preset's].", low=1)
    patch: int | None = option(
        None, "Latent places a side of a patch [default: the preset's].", low=1
    )
    aligned_depth: int | None = option(
        None, "Block after which tokens are aligned [default: the preset's].", low=1
    )
    projector: int | None = option(
        None, "Width of the projector's layers [default: the preset's].", low=1
    )
    steps: int | None = option(None, "Updates [default: from --epochs].", low=1)
    epochs: float = option(100.0, "Passes over the tiles, without --steps.", low=0)
    batch: int | None = option(
        None, "Tiles an update, over all processes [default: the preset's].", low=1
    )
    lr: float | None = option(None, "Learning rate [default: the preset's].", low=0)
    lr_end: float | None = option(
        None, "Learning rate at the end (cosine) [default: the preset's].", low=0
    )
    warmup: float | None = option(
        None, "Share of the steps in which the rate rises [default: the preset's].", low=0, high=1
    )
    clip: float = option(1.0, "Largest gradient norm, of each network; 0: no clipping.", low=0)
    ema: float | None = option(
        None, "Share that the running means keep [default: 0.9999; short runs: 1 - 10 / steps].",
        low=0, high=1,
    )  # fmt: skip
    dropped: float = option(
        0.1, "Share of images that are told nothing, for guidance.", low=0, high=1
    )
    times: Literal["uniform", "lognormal"] = option("uniform", "How times on the path are drawn.")
    kl: float | None = option(
        None, "Weight of the autoencoder's divergence from N(0, 1) [default: 1e-6].", low=0
    )
    perceptual: float | None = option(
        None, "Weight of the images' distance in the aligned encoder's tokens [default: 1].", low=0
    )
    gan: float | None = option(
        None, "Weight of the discriminator; 0: none [default: the preset's].", low=0
    )
    align_vae: float | None = option(
        None, "Weight of alignment for the autoencoder [default: 1.5].", low=0
    )
    align_sit: float = option(0.5, "Weight of alignment for the SiT.", low=0)
    seed: int = option(0, "Seed of everything.", low=0)
    accumulate: int = option(1, "Parts into which each process cuts its share of a batch.", low=1)
    amp: Literal["auto", "off", "bf16", "fp16"] = option(
        "auto", "Mixed precision: bf16 on GPUs that have it."
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N.", affects_result=False)
    threads: int | None = option(
        None,
        "Threads that read tiles and, on a CPU, compute; a RUN on a CPU keeps its number "
        "[default: what it was begun with, or what the job may use].",
        low=1,
        affects_result=False,
    )
    licence: str = option(
        "not stated", "Licence that the written generator states.", affects_result=False
    )
    log_every: int = option(10, "Steps between lines of the log.", low=1, affects_result=False)
    save_every: int = option(200, "Steps between checkpoints.", low=1, affects_result=False)
    keep_every: int = option(
        0, "Keep the checkpoint of every so many steps; 0: the last only.", low=0,
        affects_result=False,
    )  # fmt: skip


def settled(config: GenerateConfig) -> GenerateConfig:
    """Return the settings with what the preset settles, and the encoder that is aligned with.

    Raises:
        UsageError: settings that do not go together.
    """
    if config.condition == "class" and config.unit == "tile":
        raise UsageError("classes are those of cells.", hint="--unit cell")
    preset = PRESETS[config.preset] | _COMMON
    open_ = {name: value for name, value in preset.items() if getattr(config, name) is None}
    if "aligned_depth" in open_:  # of a SiT that was made shallower
        open_["aligned_depth"] = min(open_["aligned_depth"], config.depth or preset["depth"])
    whole = replace(config, **open_, align=config.align or config.encoder)
    _check_sizes(whole)
    return whole


def ema_of(config: GenerateConfig, n_steps: int) -> float:
    """Return the share that the running means keep: as set, or .9999, less in short runs.

    Of a run of n updates a mean over more than a tenth would mostly be its start.
    """
    if config.ema is not None:
        return config.ema
    return min(_LONGEST_EMA, max(0.0, 1 - 10 / n_steps))


def _check_sizes(config: GenerateConfig) -> None:
    width, heads, patch, size = config.width, config.heads, config.patch, config.size_px
    assert width is not None and heads is not None and patch is not None and size is not None
    if width % heads or width % 4:
        raise UsageError(
            f"--width {width} does not divide by {heads} heads and by 4.",
            hint=f"--width {4 * heads * max(1, round(width / (4 * heads)))}",
        )
    step = 8 * patch
    if size % step:
        raise UsageError(
            f"--size-px {size} is no multiple of {step}, a patch of {patch} latent places.",
            hint=f"--size-px {step * max(1, round(size / step))}",
        )
    if config.gan and size < _LEAST_JUDGED:
        raise UsageError(
            f"--size-px {size}: the discriminator judges images from {_LEAST_JUDGED} px on.",
            hint="--gan 0",
        )
    assert config.aligned_depth is not None and config.depth is not None
    if config.aligned_depth > config.depth:
        raise UsageError(
            f"--aligned-depth {config.aligned_depth}: the SiT has {config.depth} blocks."
        )


@dataclass(frozen=True, kw_only=True)
class DrawSettings(Settings):
    """How a generator draws images, for all commands that do."""

    sampler: SamplerName = option("sde", "Way from noise to data; sde has noise on the way.")
    steps: int = option(50, "Steps of the whole way.", low=1)
    guidance: float = option(
        1.0, "How far the condition leads; 1: as trained, above: further.", low=0
    )
    interval: tuple[float, ...] = option(
        (0.0, 1.0), "Where on the way guidance acts: LOW,HIGH; 0 is data, 1 noise.", low=0, high=1
    )
    vae_ema: bool = option(True, "Encode and decode with the autoencoder's running mean.")
    seed: int = option(0, "Seed of the noise.", low=0)
    batch_size: int = option(16, "Images at a time; another number may change last digits.", low=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N.", affects_result=False)

    def check(self) -> None:
        """Refuse an interval that is none."""
        if len(self.interval) != 2 or self.interval[0] > self.interval[1]:
            raise UsageError(f"{self.said('interval')}: two numbers, low ≤ high.", hint="0,0.75")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawSettings):
    """Settings of `cytofm generate sample`."""

    SECTION: ClassVar[str] = "generate_sample"

    n: int = option(16, "Images to make.", low=1, short="-n")
    steps: int = option(250, "Steps of the whole way.", low=1)
    ema: bool = option(True, "Sample with the SiT's running mean.")
    encoder: str | None = option(
        None, "Whose vector --like means, for a file that does not say [default: the RUN's]."
    )
    detector: str | None = option(None, "Whose nuclei --like counts [default: the only ones].")
    side_um: float | None = option(
        None, "Side of what an image shows, µm, for a file that does not say.", low=1
    )
    unit: Literal["tile", "cell"] = option(
        "cell", "What an image shows, for a file that does not say."
    )


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(DrawSettings):
    """Settings of `cytofm generate evaluate`."""

    SECTION: ClassVar[str] = "generate_evaluate"

    encoder: tuple[str, ...] = option(
        ("cytofm-tiny", "handcrafted"), "Feature spaces: NAME, NAME=FILE or FILE, with commas."
    )
    n: int = option(500, "Images to sample, and real ones to compare with, at most.", low=2)
    k: int = option(3, "Neighbours of precision and recall.", low=1)
    density_k: int = option(5, "Neighbours of density and coverage.", low=1)
    qualities: tuple[int, ...] = option(
        (95, 90, 80, 70, 60, 50), "JPEG qualities of the sweep.", low=1, high=100
    )
    seed: int = option(0, "Seed of the noise and of which real images.", low=0)
