"""Limits of quality for tiles: all off unless they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from cytofm_cli.config import Settings, option

# Columns of quality and the setting that limits each; that of focus is a least value.
LIMITS = {
    "focus": "min_focus",
    "pen": "max_pen",
    "edge": "max_edge",
    "clump": "max_clump",
    "saturation": "max_saturation",
    "blank": "max_blank",
}


@dataclass(frozen=True, kw_only=True)
class QualityLimits(Settings):
    """Which tiles are left out for their quality."""

    min_focus: float | None = option(
        None, "Leave out tiles with a focus score below it [default: none].", low=0.0, high=1.0
    )
    max_pen: float | None = option(
        None,
        "Leave out tiles with more of their area under pen [default: none].",
        low=0.0,
        high=1.0,
    )
    max_edge: float | None = option(
        None,
        "Leave out tiles with more of their area on rims of bubbles or edges [default: none].",
        low=0.0,
        high=1.0,
    )
    max_clump: float | None = option(
        None, "Leave out tiles with more of their area in dark clumps [default: none].",
        low=0.0, high=1.0,
    )  # fmt: skip
    max_saturation: float | None = option(
        None,
        "Leave out tiles of whose foreground more is stained to black [default: none].",
        low=0.0,
        high=1.0,
    )
    max_blank: float | None = option(
        None, "Leave out tiles with more empty glass [default: none].", low=0.0, high=1.0
    )

    def limits(self) -> dict[str, float]:
        """Return the limits that are asked for, by column."""
        asked = {column: getattr(self, name) for column, name in LIMITS.items()}
        return {column: limit for column, limit in asked.items() if limit is not None}
