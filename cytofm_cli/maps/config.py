"""Settings of `cytofm attention` and `cytofm heatmap`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cytofm_cli.config import Settings, option

Look = Literal["ome-tiff", "png", "geojson"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Settings):
    """What encoders look at, and on which images."""

    SECTION: ClassVar[str] = "attention"

    dense: bool | None = option(
        None,
        "Beside top-h attention, the same weights with all keys [default: where there is top-h].",
    )
    control: bool = option(False, "Beside each network, the same one with random weights.")
    unit: Literal["tile", "cell"] | None = option(
        None,
        "Look at tiles, or at crops around nuclei [default: cell where the encoder was trained on "
        "cells].",
    )
    detector: str | None = option(None, "Whose nuclei [default: the only ones there are].")
    cell_um: float | None = option(
        None,
        "Side of the crop around a nucleus, µm [default: as the encoder was trained, else 32].",
        low=4.0,
        high=512.0,
    )
    input_px: int | None = option(
        None, "Side of the image that the model sees [default: as known of the encoder].", low=1
    )
    images: int = option(100, "Images a slide, drawn among those with nuclei.", low=1)
    shown: int = option(4, "Images in the picture.", low=1, high=24)
    seed: int = option(0, "Seed of the draws, and of random weights.", low=0)
    replicates: int = option(2000, "Bootstrap replicates of the intervals.", low=100)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", affects_result=False)
    batch_size: int | None = option(
        None, "Images at a time [default: as `embed`].", low=1, affects_result=False
    )
    slides: Path | None = option(
        None, "Folder where the slides lie now, for stores without pixels.", affects_result=False
    )


@dataclass(frozen=True, kw_only=True)
class HeatmapConfig(Settings):
    """Which values of a RUN are drawn, and how."""

    SECTION: ClassVar[str] = "heatmap"

    what: Literal["attention", "score"] = option(
        "attention",
        "attention: how much an instance weighs; score: what the head says of it alone.",
    )
    to: tuple[Look, ...] = option(
        ("ome-tiff", "png", "geojson"), "Kinds of files, with commas or repeated."
    )
    raw: bool = option(
        False, "Colour by raw values between the slide's lowest and highest [default: percentiles]."
    )
    colours: Literal["viridis", "cividis", "inferno", "magma"] = option("viridis", "Colour map.")
    mpp: float | None = option(
        None,
        "µm/px of the OME-TIFF, in whole level-0 pixels [default: 16 px a tile; 1 for cells].",
        low=0.05,
    )
    cells: Literal["outline", "disk"] = option(
        "outline", "A cell is its nucleus' outline, or a disk of 8 µm (as where there is none)."
    )
    groups: Path | None = option(None, "Table slide_id,group of the patients; as of `mil score`.")
    allow_mixed: bool = option(False, "Features of another encoder, tile size or resolution.")
    device: str = option("cpu", "cpu, cuda or cuda:N.", affects_result=False)
