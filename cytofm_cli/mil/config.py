"""Settings of `cytofm mil train` and `cytofm mil benchmark`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class MilSettings(Settings):
    """How runs learn and are judged, whatever head and bags they have.

    Settings of training that are None come from the preset; see `cytofm_cli.mil.base.Recipe`.
    """

    SECTION: ClassVar[str] = "mil"

    # One or several: the subclasses say. They are declared here for their place in the help.
    method: Any = None
    preset: Literal["cytofm", "official"] = option(
        "cytofm", "cytofm: ours, for small cohorts; official: as the head's authors published"
    )
    encoder: Any = None
    unit: Any = None
    bag_table: Path | None = option(
        None,
        "table slide_id,file of the cells of each bag, for stores of `tile --cells`; labels then "
        "are of these bags",
        affects_result=False,  # the RUN records a digest of the bags themselves
    )
    label: str = option("label", "column of the labels table to learn")
    group: str | None = option(
        None, "column of the patients, if not `group`, `patient`, `case_id` or the like"
    )
    classes: tuple[str, ...] | None = option(
        None, "class names in order, positive or worst last, comma-separated"
    )
    positive: str | None = option(
        None, "the positive one of two classes [default: the last; normal, negative, … come first]"
    )
    allow_missing: bool = option(False, "leave out slides that lack a bag or a label")
    allow_mixed: bool = option(
        False,
        "go on with bags of several encoders, tile sizes or resolutions",
        affects_result=False,  # without it such bags are refused; the RUN records what is mixed
    )
    protocol: Literal["auto", "cv", "holdout", "column"] = option(
        "auto", "auto: the `split` column if there is one, else cv; holdout: one test part"
    )
    folds: int = option(5, "outer folds of cross-validation", low=2)
    inner_folds: int = option(5, "validation sets that take turns over the seeds", low=2)
    repeats: int = option(1, "times that the folds are drawn anew", low=1)
    test_fraction: float = option(0.3, "test share of a holdout", low=0.05, high=0.95)
    splits: Path | None = option(None, "the splits.csv of another run, to be used again")
    seeds: int = option(3, "models a fold; their probabilities are averaged", low=1)
    seed: int = option(0, "first seed; of the splits too", low=0)
    retrain: bool = option(False, "also train one model a fold on training + validation")
    epochs: int | None = option(None, "most passes over the training bags", low=1)
    lr: float | None = option(None, "learning rate", low=0)
    weight_decay: float | None = option(None, "weight decay", low=0)
    patience: int | None = option(None, "passes without improvement before stopping", low=0)
    bag_loss: Literal["cross_entropy", "ordinal"] | None = option(
        None, "bag loss; ordinal needs ordered classes"
    )
    vpu: int | None = option(
        None, "train LESS's VPU features of this width in each fold first (384, 768)", low=0
    )
    threshold: Literal["half", "youden", "specificity"] = option(
        "youden", "how the threshold of two classes is fixed on validation; half: 0.5"
    )
    specificity: float = option(0.9, "specificity at which sensitivity is reported", low=0, high=1)
    calibrate: bool = option(True, "scale probabilities by a temperature fitted on validation")
    bootstrap: int = option(2000, "replicates for the intervals", low=100)
    device: str = option("cpu", "auto, cpu, cuda or cuda:N; small heads are fast on a CPU.")
    workers: int = option(
        0, "processes; 0: one a core, when it is worth it", low=0, affects_result=False
    )

    def recipe_overrides(self) -> dict[str, object]:
        """Return the recipe settings that were given."""
        names = ("epochs", "lr", "weight_decay", "patience", "bag_loss", "vpu")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclass(frozen=True, kw_only=True)
class MilConfig(MilSettings):
    """One MIL run: what is learnt from what, judged how."""

    method: str = option("abmil", "MIL head (`cytofm methods` lists them)")
    encoder: str | None = option(None, "whose embeddings; not needed if a store holds one kind")
    unit: Literal["tile", "cell"] = option("tile", "what an instance is")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(MilSettings):
    """Many runs on the same folds: what a run has one of may be several here."""

    method: tuple[str, ...] = option(
        ("mean", "abmil"), "heads, comma-separated or repeated: columns; all: every one"
    )
    encoder: tuple[str, ...] | None = option(
        None, "encoders, comma-separated or repeated: rows; not needed if a store holds one kind"
    )
    unit: tuple[Literal["tile", "cell"], ...] = option(
        ("tile",), "what an instance is, comma-separated or repeated: rows"
    )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """How slides are scored with a RUN."""

    SECTION: ClassVar[str] = "mil_score"

    encoder: str | None = option(None, "whose features they are, for files that do not say")
    bag_table: Path | None = option(
        None, "table slide_id,file of the cells of each bag, for stores of `tile --cells`"
    )
    groups: Path | None = option(
        None,
        "table slide_id,group of the patients: models that saw another slide of one are not asked",
    )
    allow_mixed: bool = option(False, "score features of another encoder, tile size or resolution")
    device: str = option("cpu", "cpu, cuda or cuda:N")
    attention: bool | None = option(
        None, "also write attention of every instance into the stores [default: yes]"
    )
    geojson: Path | None = option(None, "also write maps for QuPath into this folder")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """How runs are compared."""

    SECTION: ClassVar[str] = "mil_compare"

    replicates: int = option(2000, "bootstrap replicates", low=100)
    seed: int = option(0, "seed of the bootstrap", low=0)


def check_used(config: MilSettings, *, has_splits: bool) -> None:
    """Refuse settings that have no effect beside the others.

    Args:
        config: settings as merged.
        has_splits: the table of labels has a `split` column.

    Raises:
        UsageError: there is one; names it and what makes it idle.
    """
    protocol: str = config.protocol
    if config.splits is not None:
        if protocol != "auto":
            raise UsageError(
                f"--protocol {protocol} and --splits both say what the folds are.",
                hint="leave one of the two out",
            )
        protocol = "splits"
    elif protocol == "auto":
        protocol = "column" if has_splits else "cv"
    idle = {
        "cv": ("test_fraction",),
        "holdout": ("folds",),
        "column": ("folds", "repeats", "test_fraction"),
        "splits": ("folds", "inner_folds", "repeats", "test_fraction"),
    }[protocol]
    why = {
        "column": "the folds are those of the table's `split` column",
        "splits": f"the folds are those of {config.splits}",
    }.get(protocol, f"--protocol is {protocol}")
    hint = "`--protocol cv` ignores the column" if protocol == "column" else "leave it out"
    for field in dataclasses.fields(config):
        if field.name in idle and getattr(config, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')} {getattr(config, field.name)}"
            raise UsageError(f"{flag} has no effect: {why}.", hint=hint)


def check_classes(config: MilSettings, n_classes: int) -> None:
    """Refuse settings of two classes where there are more.

    Raises:
        UsageError: there is one.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if n_classes > 2 and field.name in ("threshold", "specificity") and value != field.default:
            raise UsageError(
                f"--{field.name} {value} has no effect: there are {n_classes} classes, not two.",
                hint="leave it out",
            )
