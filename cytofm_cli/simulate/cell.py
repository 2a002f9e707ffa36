"""One cell of a slide: where it lies, what it is, its seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell; all of its looks follow from it and the preset, wherever it is painted.

    Attributes:
        x, y: its middle, px at level 0.
        kind: name of its kind in the preset.
        angle: how it is turned, radians.
        z_um: its height, µm; 0 is the middle plane.
        seed: seed of its shape and texture.
    """

    x: float
    y: float
    kind: str
    angle: float
    z_um: float
    seed: int
