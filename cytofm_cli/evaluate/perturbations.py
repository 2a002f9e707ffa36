"""What scanners, stains and files do to an image: pure functions of uint8 RGB images.

Each takes images as they are cut, at their own resolution, and gives the same size back. Edges are
mirrored. Lengths are in µm of the specimen, so that images of any resolution are changed alike.
Letters: B images, H W pixels, C colours (RGB), S stains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.evaluate.perturbation_names import Perturbation
from cytofm_cli.store.zarr3 import jpeg_decode, jpeg_encode
from cytofm_cli.work.opencv import opencv

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

# Optical density in red, green and blue of haematoxylin and eosin (Ruifrok & Johnston 2001, Anal
# Quant Cytol Histol 23:291), and the direction at right angles to both: rows of length 1.
_HE: Final = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
_SUPERSAMPLED: Final = 9  # parts of a pixel, along each side, by which a disc is laid out


def perturb(
    image_HWC: Image, how: Perturbation, *, mpp: float, seed: int | tuple[int, ...]
) -> Image:
    """Change one image.

    Args:
        image_HWC: uint8 RGB.
        how: what is done, and how strongly.
        mpp: µm/px of the image.
        seed: of what is drawn (the stain): images of the same seed are changed alike.

    Returns:
        uint8 (H, W, 3); (W, H, 3) after a turn by 90 or 270 degrees.
    """
    return _CHANGES[how.kind](image_HWC, how.value, mpp, seed)


def jpeg(image_HWC: Image, quality: int) -> Image:
    """Compress and decompress as JPEG, without chroma subsampling, as stores do."""
    return jpeg_decode(jpeg_encode(np.ascontiguousarray(image_HWC), quality))


def stain(image_HWC: Image, factor_S: Floats) -> Image:
    """Multiply the amounts of haematoxylin, eosin and what is neither.

    Density is -ln((x + 1) / 256) as in `nuclei.stain`; glass (255) stays glass.

    Args:
        image_HWC: uint8 RGB.
        factor_S: float64 (3,), 1 leaves a stain as it is.
    """
    axes_SC = stain_axes()
    change_CC = np.linalg.inv(axes_SC) @ np.diag(factor_S) @ axes_SC
    density_HWC = -np.log((image_HWC.astype(np.float64) + 1) / 256)
    return _bytes(256 * np.exp(-density_HWC @ change_CC) - 1)


def stain_axes() -> Floats:
    """Return densities of haematoxylin, eosin and the rest, float64 (3, 3): rows of length 1."""
    axes = np.vstack([_HE, np.cross(*_HE)])
    return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))


def stain_factors(strength: float, seed: int | tuple[int, ...]) -> Floats:
    """Draw factors of haematoxylin and eosin in [1 / (1 + s), 1 + s], evenly in their logarithm.

    Returns:
        float64 (3,); what is neither stays.
    """
    drawn = np.random.default_rng(seed).uniform(-1.0, 1.0, 2)
    return np.append((1 + strength) ** drawn, 1.0)


def defocus(image_HWC: Image, radius_px: float) -> Image:
    """Blur with an even disc: the image of a point out of focus, by geometric optics."""
    kernel = disc(radius_px)
    cv2 = opencv()
    blurred = cv2.filter2D(image_HWC.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT)
    return _bytes(blurred)


def disc(radius_px: float) -> NDArray[np.float32]:
    """Return a disc as shares of pixels, float32 (2r + 1, 2r + 1), sum 1; r: the radius rounded up.

    A pixel counts by the share of it that the disc covers; one under half a pixel blurs nothing.
    """
    reach = math.ceil(max(radius_px - 0.5, 0.0))
    parts = _SUPERSAMPLED * (2 * reach + 1)
    at = (np.arange(parts) + 0.5) / _SUPERSAMPLED - reach - 0.5
    inside = at[:, None] ** 2 + at[None] ** 2 <= max(radius_px, 0.5) ** 2
    shape = (2 * reach + 1, _SUPERSAMPLED, 2 * reach + 1, _SUPERSAMPLED)
    covered = inside.reshape(shape).mean((1, 3))
    return np.asarray(covered / covered.sum(), dtype=np.float32)


def resample(image_HWC: Image, factor: float) -> Image:
    """Make smaller by a factor (area) and as large again (bicubic): 0.25 → 0.5 → 0.25 µm/px."""
    cv2 = opencv()
    height, width = image_HWC.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    reduced = cv2.resize(np.ascontiguousarray(image_HWC), small, interpolation=cv2.INTER_AREA)
    return _bytes(cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC))


def turn(image_HWC: Image, degrees: int) -> Image:
    """Turn against the clock by a multiple of 90 degrees: no pixel changes."""
    return np.ascontiguousarray(np.rot90(image_HWC, degrees // 90))


def _bytes(values: NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


_Change = Callable[[Image, float, float, int | tuple[int, ...]], Image]
_CHANGES: Final[dict[str, _Change]] = {
    "jpeg": lambda image, quality, _mpp, _seed: jpeg(image, int(quality)),
    "stain": lambda image, strength, _mpp, seed: stain(image, stain_factors(strength, seed)),
    "defocus": lambda image, radius_um, mpp, _seed: defocus(image, radius_um / mpp),
    "resample": lambda image, factor, _mpp, _seed: resample(image, factor),
    "turn": lambda image, degrees, _mpp, _seed: turn(image, int(degrees)),
}
