"""One font, the one that comes with Pillow: it has Latin letters without accents, and µ is drawn.

Other accents are taken off (é is e), what has no Latin letter is written as `?`.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import INK, PAPER, Colour

Image = NDArray[np.uint8]

LARGE, SMALL = 14, 11  # heights of text, px
LINE_PX: Final = 18  # a line of large text with its margin
_SIGNS: Final = {"–": "-", "—": "-", "−": "-", "×": "x", "·": "-", "’": "'", "…": "..."}
_MU: Final = "µμ"  # micro sign and Greek letter


def printable(text: str) -> str:
    """Return a text in the letters that the font has; µ stays."""
    plain = []
    for letter in text:
        if letter in _MU:
            plain.append("µ")
            continue
        latin = unicodedata.normalize("NFKD", _SIGNS.get(letter, letter))
        latin = latin.encode("ascii", "ignore").decode()
        plain.append("".join(c if c.isprintable() else " " for c in latin) or "?")
    return "".join(plain)


def width_of(text: str, size: int = LARGE) -> int:
    """Return how many pixels wide a line of text becomes."""
    return len(ink(text, size)[0])


def ink(text: str, size: int = LARGE, edge: int = 0) -> NDArray[np.uint8]:
    """Return how much of each pixel a line of text covers, thickened by `edge` px: (h, w)."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    shown = printable(text)
    plain = shown.replace("µ", "u")
    width = math.ceil(font.getlength(plain)) + 1 + edge
    page = Pillow.new("L", (width, math.ceil(1.3 * size)))
    draw = ImageDraw.Draw(page)
    draw.text((0, 0), plain, fill=255, font=font, stroke_width=edge)
    for at in (i for i, letter in enumerate(shown) if letter == "µ"):
        # A µ is a u whose left stem goes on below the line.
        left, top, _, bottom = draw.textbbox((font.getlength(plain[:at]), 0), "u", font=font)
        stem = (left, (top + bottom) / 2, left + max(0.0, size / 12 - 0.5), bottom + size / 5)
        draw.rectangle(stem, fill=255, outline=255, width=1 + edge)
    return np.asarray(page)


def write(
    canvas: Image, text: str, x: int, y: int, colour: Colour = INK, size: int = LARGE, *,
    halo: bool = False,
) -> None:  # fmt: skip
    """Write at (x, y), over whatever is there; what does not fit is cut off.

    Args:
        canvas: drawn on in place.
        text: one line.
        x: of its left end.
        y: of its upper end.
        colour: of the letters.
        size: height, px.
        halo: paper around the letters, on top of a photograph.
    """
    for edge, tint in ((2, PAPER), (0, colour)) if halo else ((0, colour),):
        cover_HW1 = ink(text, size, edge)[..., None] / 255
        spot = canvas[y : y + cover_HW1.shape[0], x : x + cover_HW1.shape[1]]
        cover_HW1 = cover_HW1[: spot.shape[0], : spot.shape[1]]
        spot[:] = np.round(spot * (1 - cover_HW1) + np.asarray(tint) * cover_HW1)


def text_line(text: str, colour: Colour = INK) -> Image:
    """Return a picture of one line of text on paper."""
    line = np.full((LINE_PX, width_of(text), 3), PAPER, np.uint8)
    write(line, text, 0, 0, colour)
    return line
