"""Settings of `cytofm evaluate robustness` and `retention`; importing them loads no NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cytofm_cli.config import option
from cytofm_cli.evaluate.config import CropSettings, ProbeConfig
from cytofm_cli.evaluate.perturbation_names import DEFAULT, parse_all


@dataclass(frozen=True, kw_only=True)
class ConditionConfig(CropSettings):
    """How places are cut, changed and encoded."""

    perturb: tuple[str, ...] = option(
        DEFAULT,
        "KIND:VALUE, comma-separated: jpeg (quality), stain (largest change of its amount), "
        "defocus (radius, µm), resample (factor), turn (degrees).",
    )

    def check(self) -> None:
        """Refuse perturbations that are none."""
        parse_all(self.perturb)


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(ConditionConfig):
    """How much features of the same places differ between two conditions."""

    SECTION: ClassVar[str] = "evaluate_robustness"

    unit: Literal["cell", "tile"] = option("cell", "Crops around cells, or the tiles of stores.")
    detector: str | None = option(
        None, "Whose nuclei are the cells, without --points [default: the only ones there are]."
    )
    max_places: int = option(
        8139, "Cells or tiles that are compared at most, drawn by the seed; 8139: PLISM's.", low=2
    )
    k: tuple[int, ...] = option(
        (1, 3, 5, 10), "A place is found again if it is among so many nearest.", low=1
    )
    seed: int = option(0, "Seed of the places, of the stain and of --random-weights.", low=0)


@dataclass(frozen=True, kw_only=True)
class RetentionConfig(ConditionConfig):
    """How much a probe of cells loses on cells that are changed."""

    SECTION: ClassVar[str] = "evaluate_retention"

    task: tuple[str, ...] | None = option(
        None,
        "What to tell apart, comma-separated: labels (as given), abnormal (above NILM), lsil_plus "
        "[default: labels, and abnormal for Bethesda labels].",
    )
    positive: tuple[str, ...] | None = option(
        None, "Labels that are positive, against all others, comma-separated: one more task."
    )
    judged: tuple[str, ...] | None = option(
        None, "Groups that are judged, comma-separated; the others only train [default: all]."
    )
    k: int = option(20, "Neighbours of the k-NN probe.", low=1)
    temperature: float = option(0.07, "Temperature of the k-NN votes.", low=1e-3)
    balanced: bool = option(
        True, "Classes weigh alike in k-NN and linear probe, whatever their frequency."
    )
    folds: int | None = option(
        None, "Folds of whole groups [default: one a group up to 10 groups, else 5].", low=2
    )
    inner_folds: int = option(3, "Folds that choose the linear probe's penalty.", low=2)
    swaps: int = option(2000, "Swaps of answers that a test draws, group by group.", low=100)
    seed: int = option(0, "Seed of folds, swaps, the stain and --random-weights.", low=0)

    def as_probe(self) -> ProbeConfig:
        """Return the settings of the `evaluate probe` that this repeats under each condition."""
        names = (
            "crop_um", "task", "positive", "judged", "temperature", "balanced", "folds",
            "inner_folds", "seed", "slide_mpp", "pooling", "slides", "device", "batch_size",
            "threads",
        )  # fmt: skip
        return ProbeConfig(
            unit="cell", k=(self.k,), **{name: getattr(self, name) for name in names}
        )
