"""Nuclei of stores against the truth of the cohort that they were made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cytofm_cli.api.given import PathLike

MATCH_UM: Final = 3.75  # 15 px at 0.25 µm/px, about the radius of an intermediate cell's nucleus


@dataclass(frozen=True)
class NucleiFound:
    """How many nuclei were found.

    Attributes:
        n_true: true nuclei of marked cells.
        n_hit: those that a detection is matched to.
        n_found: detections.
        n_correct: those that are matched to a true nucleus, be it of a marked cell or not.
        by_class: class of marked cells to (n_true, n_hit).
        others: what the detections that are matched to no nucleus lie on, and how many do.
    """

    n_true: int
    n_hit: int
    n_found: int
    n_correct: int
    by_class: dict[str, tuple[int, int]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    @property
    def recall(self) -> float | None:
        """Share of the marked cells' nuclei that were found."""
        return self.n_hit / self.n_true if self.n_true else None

    @property
    def precision(self) -> float | None:
        """Share of the detections that are nuclei."""
        return self.n_correct / self.n_found if self.n_found else None

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        classes = {name: {"n": n, "found": hit} for name, (n, hit) in self.by_class.items()}
        return {
            "recall": self.recall,
            "precision": self.precision,
            "n_true": self.n_true,
            "n_hit": self.n_hit,
            "n_found": self.n_found,
            "n_correct": self.n_correct,
            "match_um": MATCH_UM,
            "classes": classes,
            "others": self.others,
        }


def judge_nuclei(
    stores: PathLike, cohort: PathLike, *, detector: str | None = None, match_um: float = MATCH_UM
) -> NucleiFound:
    """Match the nuclei of stores one to one with those of the simulated cohort.

    Args:
        stores: folder of stores, as `cytofm detect` left them.
        cohort: folder that `cytofm simulate` wrote.
        detector: whose nuclei; None takes the only ones there are.
        match_um: how far a detection may lie from the nucleus, µm.

    Raises:
        InputError: no such cohort.
        StoreError: no nuclei.
    """
    import numpy as np

    from cytofm_cli.simulate.ground import GROUNDS, grounds
    from cytofm_cli.simulate.nuclei import read_nuclei
    from cytofm_cli.simulate.tables import read_summary
    from cytofm_cli.stats.classes import class_order
    from cytofm_cli.stats.matching import match_points
    from cytofm_cli.store.io import open_store

    truth = read_nuclei(Path(cohort))
    match_px = match_um / (read_summary(Path(cohort)) or {"mpp": 0.25})["mpp"]
    total: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    others: Counter[str] = Counter()
    n_found = n_correct = 0
    for slide, nuclei in truth.items():
        table = open_store(Path(stores) / f"{slide}.zarr").nuclei(detector)
        xy_px0 = table.xy_px0.astype(np.float64)
        pairs = match_points(nuclei.xy_px0, xy_px0, match_px)
        n_found += len(xy_px0)
        n_correct += len(pairs)
        others.update(grounds(Path(cohort), slide, np.delete(xy_px0, pairs[:, 1], axis=0)))
        total.update(nuclei.classes[i] for i in range(len(nuclei)) if nuclei.marked[i])
        hit.update(nuclei.classes[i] for i in pairs[:, 0] if nuclei.marked[i])
    classes = {name: (total[name], hit[name]) for name in class_order(list(total))}
    elsewhere = {name: others[name] for name in GROUNDS}
    return NucleiFound(total.total(), hit.total(), n_found, n_correct, classes, elsewhere)
