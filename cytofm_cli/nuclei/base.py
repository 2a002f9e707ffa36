"""What every detector of nuclei can do, and what it gives: `NucleusTable`, of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.place import SlidePlace
from cytofm_cli.store.tables import (
    MAX_CLASSES,
    MIN_POLYGON_POINTS,
    NUCLEUS,
    NucleusTable,
    concatenate,
    empty_table,
    make_table,
)
from cytofm_cli.units import PLAUSIBLE_MPP, is_plausible_mpp

# A detector finds all that it needs here.
__all__ = [
    "MAX_CLASSES",
    "MIN_POLYGON_POINTS",
    "NUCLEUS",
    "BlockDetector",
    "NucleusDetector",
    "NucleusSource",
    "NucleusTable",
    "SlideDetector",
    "as_rgb",
    "check_mpp",
    "concatenate",
    "empty_table",
    "make_table",
]


@runtime_checkable
class NucleusDetector(Protocol):
    """Finds the nuclei of one image. May be called on many tiles, in any order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in every table."""

    @property
    def halo_um(self) -> float:
        """Margin around a tile that detection needs so that no nucleus is cut, in µm."""

    def detect(self, image_HWC: NDArray[np.uint8], mpp: float) -> NucleusTable:
        """Find the nuclei of an RGB image.

        Args:
            image_HWC: uint8 (H, W, 3); grey and RGBA are accepted too.
            mpp: µm/px of the image.

        Returns:
            Coordinates in pixels of that image, inside it; rows in canonical order; no rows
            where there is no nucleus.

        Raises:
            InputError: not an 8-bit image, or a resolution that the detector cannot use.
        """


@runtime_checkable
class BlockDetector(Protocol):
    """A detector that is faster on several tiles at once, for it reads their margin once."""

    @property
    def block_um(self) -> float:
        """Side of the largest image that tiles are joined to, in µm, margin not counted."""


@runtime_checkable
class SlideDetector(Protocol):
    """A detector that first looks at the slide as a whole."""

    def for_slide(
        self, images: Sequence[NDArray[np.uint8]], mpp: float, illumination: str | None
    ) -> tuple[NucleusDetector, dict[str, Any], list[str]]:
        """Settle what is one for a slide.

        Args:
            images: some of its tiles, uint8 (H, W, 3).
            mpp: µm/px of the images.
            illumination: "bright-field", "dark-field", or None if nobody looked.

        Returns:
            The detector for this slide, facts for the record, and what the user should know.
        """


@runtime_checkable
class NucleusSource(Protocol):
    """Brings the nuclei of a whole slide from a file instead of looking at pixels."""

    def read(
        self, mpp: float, place: SlidePlace | None = None, note: Callable[[str], None] = ...
    ) -> NucleusTable:
        """Return all nuclei of the slide in level-0 pixels, in canonical order.

        Args:
            mpp: µm/px of level 0, for the areas.
            place: the slide; None: its size and name are not looked at.
            note: told what was left out, mended or assumed.

        Raises:
            InputError: the file is missing, damaged, not of a known layout, or of another slide.
        """


def as_rgb(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return an image as uint8 (H, W, 3): grey is repeated, transparency becomes white.

    Raises:
        InputError: not 8 bits a channel, or not an image's shape.
    """
    if image.dtype != np.uint8:
        raise InputError(
            f"the image is {image.dtype}; detectors of nuclei take 8 bits a channel (uint8).",
            hint="scale it to 0..255 first; 16-bit fluorescence needs its own display range",
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in {1, 3, 4} or 0 in image.shape:
        raise InputError(f"an image of shape {image.shape} is not (H, W), (H, W, 3) or (H, W, 4).")
    pixels: NDArray[np.uint8] = image  # type: ignore[assignment]  # the dtype is checked above
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        over_white = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return over_white.astype(np.uint8)
    return pixels


def check_mpp(mpp: float, low: float, high: float, detector: str) -> None:
    """Refuse a resolution at which a detector is not meaningful.

    Raises:
        InputError: `mpp` is no microscope's resolution, or outside [`low`, `high`].
    """
    if not is_plausible_mpp(mpp):
        raise InputError(
            f"{mpp} µm/px is not a microscope's resolution "
            f"({PLAUSIBLE_MPP[0]} to {PLAUSIBLE_MPP[1]}).",
            hint="tile the slide again with its resolution: `cytofm tile --mpp`",
        )
    if not low <= mpp <= high:
        raise InputError(
            f"detector {detector!r} works from {low:g} to {high:g} µm/px; "
            f"these pixels are {mpp:g} µm.",
            hint="tile the slide at such a resolution: `cytofm tile --mpp`",
        )
