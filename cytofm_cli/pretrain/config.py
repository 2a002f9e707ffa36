"""Settings of pretraining; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.views.config import RecipeName, ViewsConfig, ViewSettings

LORA_TARGETS: Final = ("qkv", "proj", "fc1", "fc2")  # linear layers of a Vision Transformer's block


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Settings of `cytofm pretrain`. The views have their own: `views.config.ViewsConfig`."""

    SECTION: ClassVar[str] = "pretrain"

    method: str = option("dino", "Method: see `cytofm methods`.")
    encoder: str = option(
        "sr-vit-tiny", "Trunk: sr-vit-tiny, sr-vit-nano (cells), timm/NAME, resnet50."
    )
    name: str | None = option(
        None, "What the encoder is called in stores [default: encoder and method]."
    )
    ncp: bool = option(True, "Nuclei-centred perturbation; --no-ncp is --preset none.")
    h: int = option(16, "Keys that each query keeps (SR-ViT); 0: all.", low=0)
    irpe: bool = option(True, "Relative positions (SR-ViT).")
    init: Path | None = option(None, "Weights to start from (safetensors, DINO, iBOT, timm).")
    lora_rank: int = option(0, "Train low-rank updates of this rank only; 0: all weights.", low=0)
    lora_alpha: float = option(16.0, "Scale of the updates, over their rank.", low=0)
    lora_targets: tuple[str, ...] = option(
        ("qkv", "proj"), "Layers of a block that are updated: qkv, proj, fc1, fc2."
    )
    h_anneal: float = option(
        0.0, "Share of the steps in which h falls from all keys to --h.", low=0, high=1
    )
    pooling: Literal["cls", "cls+mean", "cls+mean+pixels"] = option(
        "cls",
        "How the written encoder turns tokens into a vector; pixels: joined with statistics of "
        "colour and texture (SR-ViT).",
        affects_result=False,
    )
    licence: str = option(
        "not stated", "Licence that the written encoder states.", affects_result=False
    )
    detector: str | None = option(None, "Whose nuclei [default: the only ones].")
    unit: Literal["tile", "cell"] = option(
        "tile", "What a view shows: a part of a tile, or of one cell."
    )
    cell_um: float = option(40.0, "Side of the square around a nucleus (--unit cell), µm.", low=1)
    balance: Literal["slides", "tiles"] = option(
        "slides", "Every slide as often, or every tile as often."
    )
    per_slide: int = option(
        1, "Tiles of a slide that come in a row (--balance slides): contrast within slides.", low=1
    )
    steps: int | None = option(None, "Updates [default: from --epochs].", low=1)
    epochs: float = option(100.0, "Passes over the tiles, without --steps.", low=0)
    batch: int = option(64, "Tiles an update, over all processes.", low=1)
    lr: float | None = option(None, "Learning rate at batch 256 [default: the method's].", low=0)
    by_length: bool = option(
        True, "Short runs: teacher's momentum and rate by their length; else as published."
    )
    seed: int = option(0, "Seed of everything.", low=0)
    accumulate: int = option(1, "Parts into which each process cuts its share of a batch.", low=1)
    amp: Literal["auto", "off", "bf16", "fp16"] = option(
        "auto", "Mixed precision: bf16 on GPUs that have it."
    )
    parallel: Literal["ddp", "fsdp"] = option("ddp", "Over processes: copies, or sharded weights.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N.", affects_result=False)
    compile: bool = option(False, "torch.compile the trunk.", affects_result=False)
    checkpoint_activations: bool = option(
        False, "Compute activations twice, to save memory.", affects_result=False
    )
    threads: int | None = option(
        None,
        "Threads that read tiles and, on a CPU, compute; a RUN on a CPU keeps its number, which "
        "changes the last digits [default: what it was begun with, or what the job may use].",
        low=1,
        affects_result=False,
    )
    log_every: int = option(10, "Steps between lines of the log.", low=1, affects_result=False)
    save_every: int = option(200, "Steps between checkpoints.", low=1, affects_result=False)
    keep_every: int = option(
        0,
        "Keep the checkpoint of every so many steps; 0: the last only.",
        low=0,
        affects_result=False,
    )
    probe: Path | None = option(
        None, "Table of labelled cells for a k-NN probe while training.", affects_result=False
    )
    probe_groups: Path | None = option(
        None, "Table slide_id,group for the probe's folds.", affects_result=False
    )
    probe_um: float = option(32.0, "Side of the probe's crops, µm.", low=1, affects_result=False)
    probe_every: int = option(500, "Steps between probes.", low=1, affects_result=False)
    attention_every: int = option(
        0, "Steps between attention pictures; 0: none.", low=0, affects_result=False
    )

    def check(self) -> None:
        """Refuse layers that cannot be updated."""
        if not self.lora_targets or set(self.lora_targets) - set(LORA_TARGETS):
            raise UsageError(
                f"{self.said('lora_targets')}: of {', '.join(LORA_TARGETS)}, at least one."
            )


@dataclass(frozen=True, kw_only=True)
class PackConfig(Settings):
    """Settings of `cytofm pack`."""

    SECTION: ClassVar[str] = "pack"

    detector: str | None = option(None, "Whose nuclei [default: the only ones].")
    nuclei: bool = option(True, "Pack the nuclei too, as NCP needs them.")
    unit: Literal["tile", "cell"] = option("tile", "Pack tiles, or a square around each nucleus.")
    cell_um: float = option(40.0, "Side of the square around a nucleus (--unit cell), µm.", low=1)
    codec: Literal["jpeg", "png"] = option("jpeg", "JPEG (4:4:4), or PNG, which is lossless.")
    quality: int = option(95, "Quality of the JPEGs.", low=1, high=100)
    margin: bool = option(
        True, "Pack what lies around each tile too, as views centred on nuclei need it."
    )
    groups: Path | None = option(None, "Table slide_id,group: the patients, kept beside the ids.")

    def check(self) -> None:
        """Refuse cells without nuclei."""
        if self.unit == "cell" and not self.nuclei:
            raise UsageError("cells are cut around nuclei: --unit cell needs --nuclei.")


@dataclass(frozen=True, kw_only=True)
class PretrainViews(ViewSettings):
    """The settings of the views, but that method and encoder bring what is left open."""

    recipe: RecipeName | None = option(None, "set of views [default: the method's]")
    patch_px: int | None = option(
        None, "the encoder's patch; views are whole patches [default: the encoder's, or 16]", low=1
    )
    global_px: int | None = option(
        None, "side of a global view [default: the encoder's, or 224]", low=14
    )


def views_of(method: str, views: PretrainViews, encoder: str) -> ViewsConfig:
    """Return the settings of the views; what is left open is as method and encoder have it.

    Raises:
        UsageError: no such method, or it or the encoder settles what has another default.
    """
    from cytofm_cli.encoders import catalogue
    from cytofm_cli.registry import pretrain_methods

    given = {field.name: getattr(views, field.name) for field in fields(ViewsConfig)}
    _, entry = catalogue.entries().get(encoder, ("", None))
    owners = {
        f"encoder {encoder!r}": {} if entry is None else entry.views,
        f"method {method!r}": pretrain_methods.load(method).views,
    }
    own: dict[str, Any] = {}
    for owner, settled in owners.items():
        for name in settled:
            if name not in given or getattr(PretrainViews, name) is not None:
                raise UsageError(f"{owner} cannot settle [views] {name}.")
        own |= settled
    usual = {f.name: f.default for f in fields(ViewsConfig) if f.default is not None}
    settled = usual | own
    open_ = {name: settled[name] for name in settled if given[name] is None}
    return ViewsConfig(**given | open_)
