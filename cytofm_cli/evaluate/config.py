"""Settings of `cytofm evaluate`; importing them loads neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cytofm_cli.config import option
from cytofm_cli.encoders.config import EncodingSettings
from cytofm_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CropSettings(EncodingSettings):
    """How crops around points are cut and encoded."""

    crop_um: float | None = option(
        None,
        "Side of the crop around a cell, µm [default: what the encoder was trained on, else 32].",
        low=2.0,
        high=512.0,
    )
    slide_mpp: float | None = option(
        None,
        "Resolution of slides whose file states none, µm/px: 0.25 for 40×.",
        low=0.05,
        high=5.0,
        former="mpp",
    )
    threads: int | None = option(
        None,
        "Threads that read crops [default: what the job may use].",
        low=1,
        affects_result=False,
    )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(CropSettings):
    """How frozen features are judged on labelled cells or tiles."""

    SECTION: ClassVar[str] = "evaluate"

    unit: Literal["cell", "tile"] = option("cell", "A crop around each point, or the tiles.")
    tile_label: Literal["worst", "any"] = option(
        "worst",
        "Label of a tile with --unit tile: its worst point's (Bethesda order or numbers), or "
        "any: one of --positive wins.",
    )
    task: tuple[str, ...] | None = option(
        None,
        "What to tell apart, comma-separated: labels (as given), abnormal (above NILM), lsil_plus "
        "[default: labels, and abnormal for Bethesda labels].",
    )
    positive: tuple[str, ...] | None = option(
        None, "Labels that are positive, against all others, comma-separated: one more task."
    )
    k: tuple[int, ...] = option((10, 20, 100, 200), "Neighbours of the k-NN probes.", low=1)
    temperature: float = option(0.07, "Temperature of the k-NN votes.", low=1e-3)
    balanced: bool = option(
        True, "Classes weigh alike in k-NN and linear probe, whatever their frequency."
    )
    folds: int | None = option(
        None, "Folds of whole groups [default: one a group up to 10 groups, else 5].", low=2
    )
    judged: tuple[str, ...] | None = option(
        None,
        "Groups that are judged, comma-separated; the others only train probes: for an encoder "
        "that was pretrained on those [default: all].",
    )
    inner_folds: int = option(3, "Folds that choose the linear probe's penalty.", low=2)
    shots: tuple[int, ...] = option(
        (1, 2, 4, 8, 16), "Examples a class of the few-shot probes.", low=1
    )
    draws: int = option(20, "Random choices of those examples.", low=2)
    replicates: int = option(
        1000, "Bootstrap replicates, over groups (slides where none are given).", low=100
    )
    seed: int = option(0, "Seed of folds, draws, bootstrap and --random-weights.", low=0)

    def check(self) -> None:
        """Refuse tiles that are positive by any of no labels."""
        if self.unit == "tile" and self.tile_label == "any" and not self.positive:
            raise UsageError(
                f"{self.said('tile_label')} needs labels that are positive.",
                hint="--positive LABEL,LABEL",
            )
