"""The picture of heads: each image, and on it each head's attention in the colour of what it is on.

A page is laid out once and drawn twice: as a PNG, and as an SVG whose text and outlines stay lines.
A patch has the colours of what it covers, the more opaque the more the head looks at it; the
patch most looked at is opaque.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.maps.compartments import COMPARTMENTS
from cytofm_cli.pictures import shapes
from cytofm_cli.pictures.colours import INK, PAPER, Colour, class_colour, hex_of
from cytofm_cli.pictures.files import data_uri, jpeg_bytes, png_bytes
from cytofm_cli.pictures.scale_bar import draw_scale_bar, label_of, nice_length_um
from cytofm_cli.pictures.text import LARGE, SMALL, width_of, write

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

PANEL_PX: Final = 184
GAP_PX: Final = 12
LINE_PX: Final = 18
COLUMNS: Final = 7  # panels beside each other
COLOURS: Final[dict[str, Colour]] = {
    "nucleus": class_colour(5),  # vermilion
    "cytoplasm": class_colour(1),  # sky blue
    "other": class_colour(3),  # yellow
}
_OPAQUE: Final = 0.85


@dataclass(frozen=True)
class Panel:
    """One picture with a line above it.

    Attributes:
        image: uint8 (S, S, 3) of `PANEL_PX`.
        outlines: of nuclei, (P, 2) each, pixels of the panel.
        caption: above it.
        colour: of a mark before the caption; None: none.
        veil: uint8 (S, S, 4), colours with their opacity laid over the image; None: none.
        mpp: µm to a pixel, for a scale bar; None: no bar.
    """

    image: Image
    outlines: Sequence[Floats]
    caption: str
    colour: Colour | None = None
    veil: Image | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class Strip:
    """A row of panels under a title."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Page:
    """All of the picture.

    Attributes:
        head: lines at the top.
        strips: below each other.
        columns: most panels beside each other; a longer strip goes on below.
    """

    head: Sequence[str]
    strips: Sequence[Strip]
    columns: int = COLUMNS


def head_panel(
    image: Image,
    outlines: Sequence[Floats],
    caption: str,
    of: str | None,
    attention_RC: Floats,
    parts: NDArray[np.uint8],
    frame: tuple[float, float],
) -> Panel:
    """Lay the attention of one head on an image.

    Args:
        image: the panel.
        outlines: of its nuclei.
        caption: above it.
        of: the compartment that the head is coloured by; None: of none.
        attention_RC: on each patch.
        parts: (S, S), the compartment of each pixel.
        frame: (shift, side) of the part of the panel that patches cover, pixels.
    """
    palette = np.array([COLOURS[name] for name in COMPARTMENTS], np.uint8)
    peak = float(attention_RC.max())
    alpha = _on_pixels(attention_RC / peak if peak > 0 else attention_RC, frame) * _OPAQUE
    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    pale = np.repeat((96 + grey * (159 / 255))[..., None], 3, axis=2)
    return Panel(
        image=pale.round().astype(np.uint8),
        outlines=outlines,
        caption=caption,
        colour=None if of is None else COLOURS[of],
        veil=np.dstack([palette[parts], np.rint(alpha * 255).astype(np.uint8)]),
    )


def _on_pixels(values_RC: Floats, frame: tuple[float, float]) -> Floats:
    """Spread the values of patches over the pixels of a panel; 0 where there is no patch."""
    low, side = frame
    at = (np.arange(PANEL_PX) + 0.5 - low) / side
    inside = (at >= 0) & (at < 1)
    row, column = (np.floor(at * n).astype(np.int64).clip(0, n - 1) for n in values_RC.shape)
    spread: Floats = values_RC[row[:, None], column[None]] * (inside[:, None] & inside[None])
    return spread


def placed(page: Page) -> tuple[list[tuple[int, int, str]], list[tuple[int, int, Panel]], int, int]:
    """Return where titles and panels stand (x, y), and width and height of the page."""
    titles: list[tuple[int, int, str]] = []
    panels: list[tuple[int, int, Panel]] = []
    y = GAP_PX + LINE_PX * (len(page.head) + 1)
    widest = max([width_of(line) for line in page.head] + [_legend_width()])
    for strip in page.strips:
        y += GAP_PX
        titles.append((GAP_PX, y, strip.title))
        widest = max(widest, width_of(strip.title))
        y += LINE_PX
        for first in range(0, len(strip.panels), page.columns):
            row = strip.panels[first : first + page.columns]
            for place, panel in enumerate(row):
                panels.append((GAP_PX + place * (PANEL_PX + GAP_PX), y, panel))
            widest = max(widest, len(row) * (PANEL_PX + GAP_PX) - GAP_PX)
            y += LINE_PX + PANEL_PX + GAP_PX // 2
    return titles, panels, widest + 2 * GAP_PX, y + GAP_PX


def draw(page: Page) -> Image:
    """Return the page as pixels, (H, W, 3)."""
    titles, panels, width, height = placed(page)
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    for number, line in enumerate(page.head):
        write(canvas, line, GAP_PX, GAP_PX + number * LINE_PX)
    for x, text, colour in _legend():
        y = GAP_PX + len(page.head) * LINE_PX
        canvas[y + 2 : y + 14, x : x + 12] = colour
        write(canvas, text, x + 18, y)
    for x, y, text in titles:
        write(canvas, text, x, y)
    for x, y, panel in panels:
        start = x
        if panel.colour is not None:
            canvas[y + 3 : y + 13, x : x + 10] = panel.colour
            start += 15
        write(canvas, panel.caption, start, y + 1, size=_size(panel, start - x))
        shown = painted(panel)
        canvas[y + LINE_PX : y + LINE_PX + PANEL_PX, x : x + PANEL_PX] = shown
    return canvas


def painted(panel: Panel) -> Image:
    """Return a panel with its patches, outlines and scale bar."""
    image = panel.image.copy()
    if panel.veil is not None:
        alpha = panel.veil[..., 3:] / 255
        image = np.rint(image * (1 - alpha) + panel.veil[..., :3] * alpha).astype(np.uint8)
    shapes.polygons(image, panel.outlines, INK)
    if panel.mpp is not None:
        draw_scale_bar(image, panel.mpp)
    return image


def svg(page: Page) -> str:
    """Return the page as SVG; photographs are in it, text and outlines stay lines."""
    titles, panels, width, height = placed(page)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="{hex_of(PAPER)}"/>',
    ]
    for number, line in enumerate(page.head):
        parts.append(_text(line, GAP_PX, GAP_PX + number * LINE_PX))
    y = GAP_PX + len(page.head) * LINE_PX
    for x, text, colour in _legend():
        parts += [_box(x, y + 2, 12, 12, colour), _text(text, x + 18, y)]
    parts += [_text(text, x, y) for x, y, text in titles]
    for x, y, panel in panels:
        parts += _svg_panel(x, y, panel)
    return "\n".join([*parts, "</svg>\n"])


def _svg_panel(x: int, y: int, panel: Panel) -> list[str]:
    start = x if panel.colour is None else x + 15
    parts = [] if panel.colour is None else [_box(x, y + 3, 10, 10, panel.colour)]
    parts.append(_text(panel.caption, start, y + 1, _size(panel, start - x)))
    parts.append(f'<svg x="{x}" y="{y + LINE_PX}" width="{PANEL_PX}" height="{PANEL_PX}">')
    layers = [jpeg_bytes(panel.image, 92)]
    layers += [] if panel.veil is None else [png_bytes(panel.veil)]
    parts += [
        f'<image width="{PANEL_PX}" height="{PANEL_PX}" href="{data_uri(layer)}"/>'
        for layer in layers
    ]
    for outline in panel.outlines:
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in outline.tolist())
        parts.append(f'<polygon points="{points}" fill="none" stroke="{hex_of(INK)}"/>')
    if panel.mpp is not None:
        parts += _svg_bar(panel.mpp)
    return [*parts, "</svg>"]


def _svg_bar(mpp: float) -> list[str]:
    length_um = nice_length_um(0.3 * PANEL_PX * mpp)
    bottom = PANEL_PX - 8
    label = _text(label_of(length_um), 6, bottom - 18, SMALL)
    halo = label.replace("<text", f'<text stroke="{hex_of(PAPER)}" stroke-width="3"')
    return [
        _box(5, bottom - 1, length_um / mpp + 2, 5, PAPER),
        _box(6, bottom, length_um / mpp, 3, INK),
        halo,
        label,
    ]


def _legend() -> list[tuple[int, str, Colour]]:
    """Return where each colour of the legend stands, from the left, and its word."""
    entries, x = [], GAP_PX
    for name in COMPARTMENTS:
        entries.append((x, name, COLOURS[name]))
        x += 18 + width_of(name) + 2 * GAP_PX
    return entries


def _legend_width() -> int:
    x, text, _ = _legend()[-1]
    return x + 18 + width_of(text)


def _size(panel: Panel, taken: int) -> int:
    return LARGE if width_of(panel.caption) + taken <= PANEL_PX else SMALL


def _text(text: str, x: float, y: float, size: int = LARGE) -> str:
    """Write a line whose upper end is at y; a name keeps all its letters, control signs do not."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    return (
        f'<text x="{x:g}" y="{y + size:g}" font-size="{size - 1}" fill="{hex_of(INK)}">'
        f"{escape(kept)}</text>"
    )


def _box(x: float, y: float, w: float, h: float, colour: Colour) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" fill="{hex_of(colour)}"/>'
    )


def fitted(square: Image, size: int = PANEL_PX) -> Image:
    """Resize a square picture to a panel."""
    from cytofm_cli.work.opencv import opencv

    cv2: Any = opencv()
    method = cv2.INTER_AREA if len(square) > size else cv2.INTER_CUBIC
    out: Image = cv2.resize(square, (size, size), interpolation=method).astype(np.uint8)
    return out
