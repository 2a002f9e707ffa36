"""Settings of regions, part of those of the steps that look at them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError

CENTRE: Final = "centre"
_FRACTION: Final = re.compile(r"fraction\s*(?:>=|≥|=|:)\s*([0-9.]+)")


@dataclass(frozen=True, kw_only=True)
class RegionChoice(Settings):
    """Which part of a slide counts."""

    regions: Path | None = option(
        None,
        "Marked regions: GeoJSON (QuPath), ASAP or Aperio XML, NDPA or a mask image; one file, a "
        "folder of files named after the slides, or a pattern with {slide_id}.",
    )
    region_include: tuple[str, ...] | None = option(
        None,
        "Classes of regions that are kept, with commas [default: all, unless --region-exclude or "
        "--region-label is given].",
    )
    region_exclude: tuple[str, ...] | None = option(
        None, "Classes of regions that are left out, with commas."
    )
    region_label: tuple[str, ...] | None = option(
        None,
        "Classes of regions that label tiles, with commas, for `evaluate probe` [default: those "
        "that are included]; given alone, nothing is left out.",
    )
    region_unit: Literal["auto", "px", "um"] = option(
        "auto",
        "What regions are drawn in: px (level 0), um, or auto: px, and what looks like "
        "micrometres is refused.",
    )
    region_origin: Literal["auto", "slide", "bounds"] = option(
        "auto",
        "Where their (0, 0) is: the corner of level 0 (slide) or of the scanned part (bounds), as "
        "in QuPath; auto: bounds for GeoJSON.",
    )

    def check(self) -> None:
        """Refuse settings of regions without regions, and a class on both sides."""
        super().check()
        named = [name for name in _OPTIONS if getattr(self, name, None) not in _UNSET]
        if self.regions is None and named:
            raise UsageError(
                f"{self.said(named[0])} means nothing without regions.", hint="--regions FILE"
            )
        both = sorted(set(self.region_include or ()) & set(self.region_exclude or ()))
        if both:
            raise UsageError(f"regions of class {both[0]!r} are included and excluded.")


@dataclass(frozen=True, kw_only=True)
class TileRegions(RegionChoice):
    """Which part of a slide counts, and when a tile lies in it."""

    region_rule: str = option(
        CENTRE,
        "When a tile lies in a region: centre (its middle does) or 'fraction>=F' (F of its area).",
    )

    def check(self) -> None:
        """Refuse another rule."""
        super().check()
        rule_of(self.region_rule, self.said("region_rule"))


_OPTIONS: Final = (
    "region_include", "region_exclude", "region_label", "region_rule", "region_unit",
    "region_origin",
)  # fmt: skip
# All settings of regions: of a record, too, where the first is a digest.
NAMES: Final = ("regions", *_OPTIONS)
_UNSET: Final = (None, (), "auto", CENTRE)


def rule_of(text: str, said: str) -> float | None:
    """Return the share of its area from which on a tile lies in a region; None: its middle does.

    Args:
        text: `centre` or `fraction>=F`, 0 < F ≤ 1.
        said: what a message calls it.

    Raises:
        UsageError: another word or share.
    """
    if text.strip() == CENTRE:
        return None
    match = _FRACTION.fullmatch(text.strip())
    try:
        share = float(match[1]) if match else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"{said}: choose centre, or 'fraction>=F' with F above 0 and at most 1.",
            hint="in quotes, as the shell takes > for itself: --region-rule 'fraction>=0.5'",
        )
    return share


def acting(settings: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
    """Return the settings of regions that act, for a record; none without a file.

    Args:
        settings: typed, by name; others are passed over.
        digest: of the file of regions, which stands for its path.
    """
    if digest is None:
        return {}
    chosen: dict[str, Any] = {"regions": digest}
    for name in _OPTIONS:
        value: Any = settings.get(name)
        if name == "region_rule" and value is not None:
            share = rule_of(value, name)
            value = CENTRE if share is None else f"fraction>={share:g}"
        if value not in (None, (), "auto"):
            chosen[name] = list(value) if isinstance(value, tuple) else value
    return chosen
