"""What the samples of a TIFF picture mean, and how they become RGB.

One place for every decoder: libvips and OpenSlide read some colour models right, and are given
only those; the rest is converted here or refused. Nothing is guessed from pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.slides import tiff
from cytofm_cli.slides.blocks import on_white
from cytofm_cli.slides.tiff import Directory

Kind = Literal["grey", "rgb", "palette", "cmyk", "ycbcr", "lab"]

# PhotometricInterpretation → what it is, and the samples that it needs (TIFF 6.0, TechNote 4).
_KINDS: Final[dict[int, tuple[Kind, int]]] = {
    0: ("grey", 1), 1: ("grey", 1), 2: ("rgb", 3), 3: ("palette", 1), 5: ("cmyk", 4),
    6: ("ycbcr", 3), 8: ("lab", 3), 9: ("lab", 3),
}  # fmt: skip
_NAMES: Final = {
    4: "a transparency mask", 10: "ITU L*a*b*", 32803: "a colour filter array",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw", 51177: "a depth map",
}  # fmt: skip
_WHITE_IS_ZERO: Final = 0
_ICC_LAB: Final = 9
_JPEGS: Final = ("jpeg", "old-jpeg")
_SIGNED: Final = 2
_ALPHAS: Final = {1: "premultiplied", 2: "straight"}
_UNSTATED: Final = -1


@dataclass(frozen=True, kw_only=True)
class Model:
    """The meaning of the samples of a directory.

    Attributes:
        kind: the colour model as decoders deliver it: "rgb" for YCbCr in JPEG, and for three or
            more samples of grey, which are shown as red, green and blue.
        n_colour: leading samples that are colour.
        alpha: what the sample after them is; "none" also where it has no stated meaning.
        plain: RGB or grey without anything else: what every decoder gets right.
    """

    kind: Kind
    n_colour: int
    alpha: str
    plain: bool


def model(directory: Directory) -> Model:
    """Say what the samples of a directory mean.

    Raises:
        ValueError: samples that cannot be shown as 8-bit RGB, or tags that contradict each
            other; the message is a clause without a subject.
    """
    _check_samples(directory)
    samples = directory.samples
    stated = directory.number(tiff.PHOTOMETRIC, _UNSTATED)
    if stated == _UNSTATED:
        stated = tiff.PHOTOMETRIC_RGB if samples >= 3 else 1
    if stated not in _KINDS:
        name = _NAMES.get(stated, f"the unknown colour model {stated}")
        raise ValueError(f"has its pixels as {name}, which cannot be converted to RGB")
    kind, n_colour = _KINDS[stated]
    if samples < n_colour:
        raise ValueError(f"contradicts itself: {kind} pixels of {samples} samples")
    if kind == "palette" and directory.array(tiff.COLOR_MAP).size < 3 * 2 ** _bits(directory):
        raise ValueError("contradicts itself: palette pixels without a palette")
    if kind == "cmyk" and directory.number(tiff.INK_SET, 1) != 1:
        raise ValueError("has its pixels in inks other than CMYK")
    extras = directory.array(tiff.EXTRA_SAMPLES)
    if extras.size > samples - n_colour:
        raise ValueError(
            f"contradicts itself: {kind} pixels of {samples} samples, {extras.size} of them extra"
        )
    alpha = _ALPHAS.get(int(extras[0]), "none") if extras.size else "none"
    if kind == "ycbcr" and directory.codec in _JPEGS:
        kind = "rgb"
    inverted = stated == _WHITE_IS_ZERO
    plain = kind in ("rgb", "grey") and samples == n_colour and not inverted
    if kind == "grey" and samples >= 3 and alpha == "none":
        kind, n_colour = "rgb", 3
    return Model(kind=kind, n_colour=n_colour, alpha=alpha, plain=plain and _bits(directory) == 8)


def notes(directory: Directory) -> list[str]:
    """Say what a user should know about the samples of a directory."""
    lines = []
    if directory.number(tiff.SAMPLE_FORMAT, 1) == _SIGNED:
        lines.append("The pixels are signed; negative values are read as 0.")
    grey = directory.number(tiff.PHOTOMETRIC, 1) in (0, 1)
    if grey and directory.samples >= 3:
        lines.append(
            f"Of {directory.samples} samples of a pixel the first three are read as red, green "
            "and blue."
        )
    return lines


def to_rgb(raw_HWC: NDArray[Any], directory: Directory, model: Model) -> NDArray[np.uint8]:
    """Convert decoded samples to (H, W, 3) uint8 RGB; alpha is laid on white.

    Args:
        raw_HWC: the samples as stored, (H, W, samples); values below 2**bits.
        directory: where they come from.
        model: its `model`.
    """
    if raw_HWC.dtype.kind == "i":
        raw_HWC = np.maximum(raw_HWC, 0)
    raw = raw_HWC.astype(np.uint8)
    colour = raw[..., : model.n_colour]
    if model.kind == "palette":
        rgb = _palette(directory)[colour[..., 0]]
    elif model.kind == "ycbcr":
        rgb = _ycbcr(colour, directory)
    elif model.kind == "lab":
        rgb = _lab(colour, directory.number(tiff.PHOTOMETRIC) == _ICC_LAB)
    elif model.kind == "cmyk":
        rgb = _cmyk(colour)
    else:
        rgb = _widen(colour, directory)
    if model.alpha == "none":
        return np.ascontiguousarray(rgb)
    alpha = raw[..., model.n_colour, None]
    if model.alpha == "straight":
        return on_white(np.concatenate([rgb, alpha], axis=2))
    on_glass: NDArray[np.uint8] = np.minimum(rgb.astype(np.uint16) + (255 - alpha), 255).astype(
        np.uint8
    )
    return on_glass


def _bits(directory: Directory) -> int:
    return directory.number(tiff.BITS_PER_SAMPLE, 1)


def _check_samples(directory: Directory) -> None:
    bits = directory.array(tiff.BITS_PER_SAMPLE)
    formats = directory.array(tiff.SAMPLE_FORMAT)
    deepest = int(bits.max(initial=1))
    if deepest > 8:
        raise ValueError(f"has {deepest}-bit samples; only 8-bit ones are read")
    if np.unique(bits).size > 1 or np.unique(formats).size > 1:
        raise ValueError("has samples of different kinds in one pixel")
    if formats.size and int(formats[0]) not in (1, _SIGNED, 4):
        raise ValueError("has floating-point samples; only 8-bit ones are read")


def _widen(colour: NDArray[np.uint8], directory: Directory) -> NDArray[np.uint8]:
    """Stretch fewer bits to 8, turn white-is-zero, repeat grey."""
    most = 2 ** _bits(directory) - 1
    if most < 255:
        colour = (colour.astype(np.uint16) * 255 // most).astype(np.uint8)
    if directory.number(tiff.PHOTOMETRIC, _UNSTATED) == _WHITE_IS_ZERO:
        colour = 255 - colour
    return np.repeat(colour, 3, axis=2) if colour.shape[2] == 1 else colour


def _palette(directory: Directory) -> NDArray[np.uint8]:
    colours = directory.array(tiff.COLOR_MAP)[: 3 * 2 ** _bits(directory)].reshape(3, -1).T
    # 16 bits a colour; some writers fill only the lower 8.
    return (colours >> 8 if colours.max(initial=0) > 255 else colours).astype(np.uint8)


def _ycbcr(colour: NDArray[np.uint8], directory: Directory) -> NDArray[np.uint8]:
    """Convert by the file's coefficients and ranges (TIFF 6.0, section 21)."""
    stated = [directory.tags.get(t) for t in (tiff.YCBCR_COEFFICIENTS, tiff.REFERENCE_BLACK_WHITE)]
    defaults = ([0.299, 0.587, 0.114], [0.0, 255, 128, 255, 128, 255])
    (red, green, blue), ranges = (
        [float(v) for v in given]
        if isinstance(given, np.ndarray) and given.size == len(usual)
        else usual
        for given, usual in zip(stated, defaults, strict=True)
    )
    black, white = np.array(ranges[::2]), np.array(ranges[1::2])
    span = np.where(white == black, 1, white - black)
    y, cb, cr = np.moveaxis((colour - black) * (np.array([255, 127, 127]) / span), -1, 0)
    r = y + (2 - 2 * red) * cr
    b = y + (2 - 2 * blue) * cb
    g = (y - red * r - blue * b) / green
    rgb: NDArray[np.uint8] = np.clip(np.rint(np.stack([r, g, b], -1)), 0, 255).astype(np.uint8)
    return rgb


# From XYZ under D50, which L*a*b* of files is relative to, to linear sRGB (Bradford).
_D50: Final = np.array([0.9642, 1.0, 0.8249])
_D50_TO_SRGB: Final = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def _lab(colour: NDArray[np.uint8], is_icc: bool) -> NDArray[np.uint8]:
    """Convert 8-bit L*a*b*: signed a and b in CIELAB, offset by 128 in ICCLAB."""
    light = colour[..., 0] * (100 / 255)
    ab = colour[..., 1:].astype(np.int16) - 128 if is_icc else colour[..., 1:].view(np.int8)
    fy = (light + 16) / 116
    f = np.stack([fy + ab[..., 0] / 500, fy, fy - ab[..., 1] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
    linear = np.clip(xyz @ _D50_TO_SRGB.T, 0, 1)
    share = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: NDArray[np.uint8] = np.rint(share * 255).astype(np.uint8)
    return rgb


def _cmyk(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert inks as Pillow and libtiff do: no profile says how real inks mix."""
    light = 255 - colour[..., 3:].astype(np.uint16)
    rgb: NDArray[np.uint8] = (light - (colour[..., :3] * light + 127) // 255).astype(np.uint8)
    return rgb
