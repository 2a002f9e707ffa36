"""Settings of `cytofm mil train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cytofm_cli.config import option


@dataclass(frozen=True, kw_only=True)
class MilConfig:
    """One MIL run: what is learnt from what, judged how.

    Settings of training that are None come from the preset; see `cytofm_cli.mil.base.Recipe`.
    """

    SECTION: ClassVar[str] = "mil"

    method: str = option("abmil", "MIL head (`cytofm methods` lists them)")
    preset: str = option(
        "cytofm",
        "cytofm: ours, for small cohorts; official: as the head's authors published",
        choices=("cytofm", "official"),
    )
    encoder: str | None = option(None, "whose embeddings; not needed if a store holds one kind")
    unit: str = option("tile", "what an instance is", choices=("tile", "cell"))
    label: str = option("label", "column of the labels table to learn")
    classes: tuple[str, ...] | None = option(
        None, "class names in order, positive or worst last, comma-separated"
    )
    allow_missing: bool = option(False, "leave out slides that lack a bag or a label")
    allow_mixed: bool = option(
        False,
        "go on with bags of several encoders, tile sizes or resolutions",
        affects_result=False,  # without it such bags are refused; the RUN records what is mixed
    )
    protocol: str = option(
        "auto",
        "auto: the `split` column if there is one, else cv; holdout: one test part",
        choices=("auto", "cv", "holdout", "column"),
    )
    folds: int = option(5, "outer folds of cross-validation", low=2)
    inner_folds: int = option(5, "validation sets that take turns over the seeds", low=2)
    repeats: int = option(1, "times that the folds are drawn anew", low=1)
    test_fraction: float = option(0.3, "test share of a holdout", low=0.05, high=0.95)
    splits: Path | None = option(None, "splits.csv of another run, to be used again")
    seeds: int = option(3, "models a fold; their probabilities are averaged", low=1)
    seed: int = option(0, "first seed; of the splits too", low=0)
    retrain: bool = option(False, "also train one model a fold on training + validation")
    epochs: int | None = option(None, "most passes over the training bags", low=1)
    lr: float | None = option(None, "learning rate", low=0)
    weight_decay: float | None = option(None, "weight decay", low=0)
    patience: int | None = option(None, "passes without improvement before stopping", low=0)
    bag_loss: str | None = option(
        None, "bag loss; ordinal needs ordered classes", choices=("cross_entropy", "ordinal")
    )
    vpu: int | None = option(
        None, "train LESS's VPU features of this width in each fold first (384, 768)", low=0
    )
    threshold: str = option(
        "youden",
        "how the threshold of two classes is fixed on validation; half: 0.5",
        choices=("half", "youden", "specificity"),
    )
    specificity: float = option(0.9, "specificity at which sensitivity is reported", low=0, high=1)
    calibrate: bool = option(True, "scale probabilities by a temperature fitted on validation")
    bootstrap: int = option(2000, "replicates for the intervals", low=100)
    device: str = option("cpu", "cpu, cuda or cuda:N")
    workers: int = option(
        0, "processes; 0: one a core, when it is worth it", low=0, affects_result=False
    )

    def recipe_overrides(self) -> dict[str, object]:
        """Return the recipe settings that were given."""
        names = ("epochs", "lr", "weight_decay", "patience", "bag_loss", "vpu")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}
