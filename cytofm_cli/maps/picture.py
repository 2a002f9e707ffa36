"""A map on the slide's thumbnail, with what it shows, its colours and a scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.maps.heat import LEVELS, Levels
from cytofm_cli.pictures.colours import INK, PAPER, colour_map
from cytofm_cli.pictures.scale_bar import draw_scale_bar
from cytofm_cli.pictures.text import LINE_PX, SMALL, width_of, write
from cytofm_cli.work.opencv import opencv

Image = NDArray[np.uint8]
LONG_SIDE_PX: Final = 1200
_OPACITY: Final = 0.65
_MARGIN: Final = 14
_BAR: Final = (220, 12)  # width and height of the colour bar, px


def thumbnail(image: Image) -> Image:
    """Return a slide's thumbnail at the size of the picture: its longer side 1200 px."""
    cv2 = opencv()
    height, width = image.shape[:2]
    zoom = LONG_SIDE_PX / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    shown: Image = cv2.resize(image, size, interpolation=method).astype(np.uint8)
    return shown


def overlaid(slide: Image, tones_HW: NDArray[np.uint8], colours: str) -> Image:
    """Lay a map over a picture of its size; where nothing lies the picture is grey.

    Args:
        slide: (H, W, 3).
        tones_HW: of `Painter.paint`.
        colours: name of the map.
    """
    grey = slide.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    base = np.repeat(grey[..., None], 3, axis=2)
    tint = table_of(colours)[tones_HW]
    alpha = np.where(tones_HW > 0, _OPACITY, 0.0)[..., None].astype(np.float32)
    mixed: Image = np.rint(base * (1 - alpha) + tint * alpha).astype(np.uint8)
    return mixed


def table_of(colours: str) -> Image:
    """Return the colour of each tone of `Painter.paint`, (256, 3); white is where nothing lies."""
    table = np.full((LEVELS + 1, 3), 255, np.uint8)
    table[1:] = colour_map(colours)[np.rint(np.linspace(0, 255, LEVELS)).astype(int)]
    return table


def page(
    slide: Image, tones_HW: NDArray[np.uint8], levels: Levels, lines: Sequence[str],
    *, colours: str, mpp: float,
) -> Image:  # fmt: skip
    """Set the picture between what it shows and its colours.

    Args:
        slide: see `thumbnail`.
        tones_HW: the map at its size.
        levels: what the colours mean.
        lines: what is drawn.
        colours: name of the colour map.
        mpp: µm to a pixel of the picture.
    """
    picture = overlaid(slide, tones_HW, colours)
    draw_scale_bar(picture, mpp)
    height, width = picture.shape[:2]
    legend = _legend(levels, colours)
    head = LINE_PX * len(lines)
    wide = max([width, legend.shape[1], *(width_of(line) for line in lines)]) + 2 * _MARGIN
    canvas = np.full((head + height + legend.shape[0] + 4 * _MARGIN, wide, 3), PAPER, np.uint8)
    for number, line in enumerate(lines):
        write(canvas, line, _MARGIN, _MARGIN + number * LINE_PX)
    top = head + 2 * _MARGIN
    canvas[top : top + height, _MARGIN : _MARGIN + width] = picture
    low = top + height + _MARGIN
    canvas[low : low + legend.shape[0], _MARGIN : _MARGIN + legend.shape[1]] = legend
    return canvas


def _legend(levels: Levels, colours: str) -> Image:
    """Draw the colour bar with the raw values at its ends and middle."""
    bar_w, bar_h = _BAR
    what = "percentile within the slide (raw value)" if levels.ranked else "raw value"
    names = ("0", "50", "100") if levels.ranked else ("", "", "")
    values = (levels.low, levels.middle, levels.high)
    labels = [
        f"{name} ({value:.3g})" if name else f"{value:.3g}"
        for name, value in zip(names, values, strict=True)
    ]
    widths = [width_of(label, SMALL) for label in labels]
    left = max(widths[0] // 2, 0)
    need = max(bar_w, (widths[0] + widths[1]) + 16, (widths[1] + widths[2]) + 16)
    total = max(left + need + widths[2] // 2 + 4, width_of(what, SMALL))
    canvas = np.full((bar_h + 2 * LINE_PX, total, 3), PAPER, np.uint8)
    ramp = table_of(colours)[1 + np.rint(np.linspace(0, LEVELS - 1, need)).astype(int)]
    write(canvas, what, 0, 0, INK, SMALL)
    canvas[LINE_PX : LINE_PX + bar_h, left : left + need] = ramp
    for label, wide, share in zip(labels, widths, (0.0, 0.5, 1.0), strict=True):
        x = left + round(share * (need - 1))
        canvas[LINE_PX + bar_h : LINE_PX + bar_h + 3, x : x + 1] = INK
        write(canvas, label, max(0, x - wide // 2), LINE_PX + bar_h + 3, INK, SMALL)
    return canvas
