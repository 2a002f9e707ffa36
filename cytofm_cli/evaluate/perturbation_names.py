"""Perturbations as they are typed, `KIND:VALUE`; importing this loads no NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cytofm_cli.errors import UsageError

# By kind: what the value is, least and most, and whether it must be whole.
KINDS: Final = {
    "jpeg": ("quality", 1.0, 100.0, True),
    "stain": ("largest change of a stain's amount, 0.2: by up to 20 %", 0.001, 4.0, False),
    "defocus": ("radius of the disc, µm", 0.01, 50.0, False),
    "resample": ("factor by which pixels grow and shrink again", 1.01, 16.0, False),
    "turn": ("degrees, 90, 180 or 270", 90.0, 270.0, True),
}
UNCHANGED: Final = "unchanged"  # images as they are
DEFAULT: Final = (
    "jpeg:95", "jpeg:75", "jpeg:50", "jpeg:30", "stain:0.1", "stain:0.3", "defocus:0.5",
    "defocus:1", "resample:2", "turn:90", "turn:180", "turn:270",
)  # fmt: skip


@dataclass(frozen=True)
class Perturbation:
    """One way to change an image.

    Attributes:
        kind: one of `KINDS`.
        value: how strongly, in the unit of its kind.
    """

    kind: str
    value: float

    @property
    def name(self) -> str:
        """Return it as it is typed."""
        return f"{self.kind}:{self.value:g}"


def parse(word: str) -> Perturbation:
    """Read `jpeg:75`.

    Raises:
        UsageError: no such kind, or a value that it cannot have.
    """
    kind, _, text = word.partition(":")
    if kind not in KINDS:
        raise UsageError(
            f"perturbation {word!r}: no such kind.", hint=f"KIND:VALUE of {', '.join(KINDS)}"
        )
    what, low, high, whole = KINDS[kind]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    wrong = not low <= value <= high or (whole and value % 1) or (kind == "turn" and value % 90)
    if wrong:
        raise UsageError(
            f"perturbation {word!r}: not a value that {kind} can have.",
            hint=f"{what}; {low:g} to {high:g}",
        )
    return Perturbation(kind, value)


def parse_all(words: Sequence[str]) -> list[Perturbation]:
    """Read several, each once.

    Raises:
        UsageError: see `parse`; or there is none, or one twice.
    """
    read = [parse(word) for word in words]
    if not read:
        raise UsageError("no perturbation is named.", hint=f"--perturb {','.join(DEFAULT[:2])}")
    if len(set(read)) < len(read):
        twice = next(p for p in read if read.count(p) > 1)
        raise UsageError(f"perturbation {twice.name} is named twice.")
    return read
