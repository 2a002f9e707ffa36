"""Settings of what generators are used for; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cytofm_cli.config import option
from cytofm_cli.generate.config import DrawSettings


@dataclass(frozen=True, kw_only=True)
class UseConfig(DrawSettings):
    """How images are made and which cells are meant, for all uses."""

    interval: tuple[float, ...] = option(
        (0.0, 0.75), "Where on the way guidance acts: LOW,HIGH; 0 is data, 1 noise.", low=0, high=1
    )
    ema: bool = option(True, "Sample with the SiT's running mean.")
    encoder: str | None = option(
        None, "Whose vectors conditions are, for a file that does not say [default: the RUN's]."
    )
    detector: str | None = option(None, "Whose nuclei cells are [default: the only ones].")
    real_cells: int = option(
        500, "Real cells that conditions are compared with, at most, evenly spaced.", low=2
    )


@dataclass(frozen=True, kw_only=True)
class CounterfactualConfig(UseConfig):
    """Settings of `cytofm generate counterfactual`."""

    SECTION: ClassVar[str] = "generate_counterfactual"

    towards: str | None = option(None, "Class whose probability changes [default: the last].")
    to: float | None = option(
        None,
        "Probability of the last frame [default: 0.95, of a cell above 0.5 0.05].",
        low=0.001,
        high=0.999,
    )
    frames: int = option(7, "Images of a strip; of the first the condition is the cell's.", low=2)
    along: Literal["pattern", "gradient"] = option(
        "pattern",
        "pattern: the gradient times the covariance of real cells' vectors, so as real cells "
        "differ; gradient: by itself.",
    )
    n: int = option(1, "Noises a cell, each a strip of its own.", low=1, short="-n")
    strength: float = option(
        1.0,
        "How far the cell itself is noised to begin with; 1: to noise alone, less keeps its "
        "structure.",
        low=0,
        high=1,
    )


@dataclass(frozen=True, kw_only=True)
class RestainConfig(UseConfig):
    """Settings of `cytofm generate restain`."""

    SECTION: ClassVar[str] = "generate_restain"

    n: int = option(
        16, "Cells of a STORE without a number, at most, evenly spaced.", low=1, short="-n"
    )
    strength: tuple[float, ...] = option(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        "How far each cell is noised to begin with, with commas; 0: not at all, 1: to noise alone.",
        low=0,
        high=1,
    )
    nucleus: Literal["detector", "dark"] = option(
        "detector",
        "What must stay in its place: the classical detector's nucleus, or all that Otsu's "
        "threshold calls dark.",
    )
