"""From the bands of a picture of libvips to three of 8 bits: red, green, blue."""

from __future__ import annotations

from typing import Any, Final

from cytofm_cli.slides.base import slide_error

# What libvips calls pixels that are wider than 8 bits.
_WIDE: Final = {
    "ushort": "16-bit", "short": "16-bit", "uint": "32-bit", "int": "32-bit",
    "float": "floating-point", "double": "floating-point",
}  # fmt: skip


def to_rgb(
    path: str, image: Any, n_colour: int | None = None, *, has_alpha: bool | None = None
) -> Any:
    """Give a picture three 8-bit bands; 8-bit RGB is left untouched.

    Args:
        path: for the message.
        image: as libvips loads it.
        n_colour: leading bands that are colour; None to ask libvips.
        has_alpha: whether the band after them is alpha; None to ask libvips.
    """
    image = _eight_bit(path, image)
    if has_alpha is None:
        has_alpha = image.hasalpha()
    if n_colour is None:
        n_colour = image.bands - has_alpha
    image = image.extract_band(0, n=min(image.bands, n_colour + has_alpha))
    if image.interpretation == "cmyk":
        image = _from_cmyk(image)
    if has_alpha:
        image = image.flatten(background=255)
    if image.bands == 1:
        return image.bandjoin([image, image])
    return image if image.bands == 3 else image.extract_band(0, n=3)


def _from_cmyk(image: Any) -> Any:
    """Convert inks as `colour` does, without a profile; alpha stays behind them."""
    light = 255 - image.extract_band(3)
    rgb = (light - (image.extract_band(0, n=3) * light / 255).rint()).cast("uchar")
    if image.bands > 4:
        rgb = rgb.bandjoin(image.extract_band(4))
    return rgb.copy(interpretation="srgb")


def merge(path: str, images: list[Any]) -> Any:
    """Show up to three channels as red, green and blue."""
    bands = [_eight_bit(path, image).extract_band(0) for image in images]
    black = bands[0].new_from_image(0)
    return bands[0].bandjoin([*bands[1:], *[black] * (3 - len(bands))])


def _eight_bit(path: str, image: Any) -> Any:
    if image.format == "char":
        image = (image < 0).ifthenelse(0, image).cast("uchar")
    if image.format != "uchar":
        raise slide_error(
            path,
            f"has {_WIDE.get(image.format, image.format)} samples; only 8-bit ones are read.",
            "scale it to 8 bits.",
        )
    return image
