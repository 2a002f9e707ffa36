"""Settings of `cytofm cells`; importing them loads neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.config import CropSettings


@dataclass(frozen=True, kw_only=True)
class CellsConfig(CropSettings):
    """How a cell classifier is learnt from labelled points and judged."""

    SECTION: ClassVar[str] = "cells"

    model: Literal["linear", "mlp", "lora", "one-class"] = option(
        "linear",
        "linear: logistic regression; mlp: one hidden layer; lora: logistic regression while the "
        "encoder learns low-rank updates; one-class: distance from normal cells, which alone are "
        "learnt.",
    )
    ordinal: bool = option(
        False,
        "Classes are a scale: normal or not, then how bad. Bethesda classes are known, others by "
        "--order.",
    )
    order: tuple[str, ...] | None = option(
        None, "All classes, the normal one first, the worst last, comma-separated."
    )
    task: Literal["labels", "abnormal", "lsil_plus"] = option(
        "labels", "What to tell apart: the labels as given; above NILM or not; LSIL and worse."
    )
    normal: tuple[str, ...] | None = option(
        None, "Labels of normal cells for one-class [default: the first class, as NILM]."
    )
    distance: Literal["mahalanobis", "knn"] | None = option(
        None,
        "What is far from normal, for one-class: mahalanobis: from the mean of normal cells, in "
        "units of their spread; knn: from the 5th nearest of them [default: mahalanobis].",
    )
    class_weights: Literal["balanced", "none"] = option(
        "balanced", "balanced: classes weigh alike, whatever their frequency."
    )
    hidden: int = option(32, "Width of the hidden layer of mlp.", low=1, high=4096)
    # None is what was before there were these settings: a RUN made then is still the same.
    lora_rank: int | None = option(
        None, "Rank of the encoder's updates, for lora [default: 8].", low=1, high=1024
    )
    epochs: int | None = option(
        None,
        "Most epochs of lora; inner groups held out say which was the best [default: 6].",
        low=1,
    )
    lr: float | None = option(
        None, "Learning rate of lora, falling to 0 by a cosine [default: 0.003].", low=1e-7, high=1
    )
    epoch_cells: int | None = option(
        None, "Cells an epoch of lora at most; each draws others [default: 2000].", low=2
    )
    penalty: float | None = option(
        None,
        "Inverse strength of the L2 penalty, scikit-learn's C [default: the best of inner folds].",
        low=1e-9,
        high=1e9,
    )
    folds: int | None = option(
        None, "Folds of whole groups [default: one a group up to 10 groups, else 5].", low=2
    )
    inner_folds: int = option(3, "Folds that choose the penalty.", low=2)
    calibrate: bool = option(
        True, "Scale probabilities by a temperature fitted on held-out answers."
    )
    abstain: float = option(
        0.0, "Say nothing of a cell whose best class is less probable than this.", low=0, high=1
    )
    outlier: float = option(
        0.99,
        "one-class: a cell is an outlier if it lies farther out than this share of normal cells.",
        low=0.5,
        high=1,
    )
    replicates: int = option(1000, "Bootstrap replicates, over groups.", low=100)
    seed: int = option(0, "Seed of folds, mlp, bootstrap and --random-weights.", low=0)

    def check(self) -> None:
        """Refuse settings that say nothing beside the others."""
        for name in ("lora_rank", "epochs", "lr", "epoch_cells"):
            if self.model != "lora" and getattr(self, name) is not None:
                raise UsageError(f"{self.said(name)} is for lora.", hint="--model lora")
        if self.model == "one-class":
            for name in ("ordinal", "order", "abstain", "penalty"):
                if getattr(self, name):
                    raise UsageError(
                        f"{self.said(name)} has no meaning for one-class.", hint="leave it out"
                    )
            if self.task != "labels":
                raise UsageError(
                    f"{self.said('task')} has no meaning for one-class.",
                    hint="--normal LABEL,… says which cells are normal",
                )
        elif self.distance:
            raise UsageError(f"{self.said('distance')} is for one-class.", hint="--model one-class")
        elif self.normal:
            raise UsageError(
                f"{self.said('normal')} is for one-class.", hint="--model one-class, or --order"
            )
        if self.order and self.task != "labels":
            raise UsageError(
                f"{self.said('order')} is for the labels as given.", hint="leave --task out"
            )


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(Settings):
    """How the nuclei of stores are classified."""

    SECTION: ClassVar[str] = "cells_apply"

    detector: str | None = option(None, "Whose nuclei [default: the only ones there are].")
    groups: Path | None = option(
        None, "Table slide_id,group of patients: no model that saw another slide of one is asked."
    )
    abstain: float | None = option(
        None,
        "Say nothing of a cell whose best class is less probable [default: as trained].",
        low=0,
        high=1,
    )
    weights: Path | None = option(
        None, "Where the encoder's weight file lies now.", affects_result=False
    )
    reuse: bool = option(
        True, "Take embeddings that the store holds of the same crops.", affects_result=False
    )
    slides: Path | None = option(
        None, "Folder where the slides lie now, for stores without pixels.", affects_result=False
    )
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:N; auto takes the GPU.", affects_result=False
    )
    batch_size: int | None = option(
        None, "Images at a time [default: 16 on CPU, 256 on GPU].", low=1, affects_result=False
    )


@dataclass(frozen=True, kw_only=True)
class CountConfig(Settings):
    """How classes of cells are counted."""

    SECTION: ClassVar[str] = "cells_count"

    run: str | None = option(None, "Name of the RUN whose classes [default: the only ones].")
    min_probability: float = option(
        0.0, "Count a cell only if its class is at least this probable.", low=0, high=1
    )
    top_k: int = option(10, "Cells whose mean score is the slide's, per class.", low=1)
