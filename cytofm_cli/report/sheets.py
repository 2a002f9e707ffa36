"""Contact sheets of cells as PNG: outline, scale bar, rank, number and slide of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import CLASSES, INK, PAPER, Colour
from cytofm_cli.pictures.files import png_bytes
from cytofm_cli.pictures.scale_bar import draw_scale_bar
from cytofm_cli.pictures.shapes import polygons
from cytofm_cli.pictures.sheet import below, beside
from cytofm_cli.pictures.text import SMALL, text_line, write
from cytofm_cli.report.chosen import Chosen, Gallery
from cytofm_cli.report.crops import PICTURE_PX, CellPicture
from cytofm_cli.work.opencv import opencv

COLUMNS: Final = 10
PER_SHEET: Final = 60
# A sheet is for eyes and slides of a talk; the page has all cells.
MOST_SHEETS: Final = 5
_SOFT: Final[Colour] = (96, 96, 96)
_LINE_PX: Final = round(1.35 * SMALL)
_LETTERS: Final = 18


def sheets(gallery: Gallery, pictures: Mapping[tuple[str, int], CellPicture]) -> Iterator[bytes]:
    """Yield the sheets of a gallery as PNG, at most `MOST_SHEETS`.

    Args:
        gallery: its cells.
        pictures: by slide and row; cells without one are left out.
    """
    cells = [cell for cell in gallery.cells if (cell.slide_id, cell.row) in pictures]
    cells = cells[: PER_SHEET * MOST_SHEETS]
    for start in range(0, len(cells), PER_SHEET):
        part = cells[start : start + PER_SHEET]
        drawn = [_cell(cell, pictures[cell.slide_id, cell.row]) for cell in part]
        title = text_line(f"{gallery.title}: {gallery.says}")
        rows = [beside(drawn[i : i + COLUMNS]) for i in range(0, len(drawn), COLUMNS)]
        yield png_bytes(below([title, *rows]))


def file_name(number: int, gallery: Gallery, sheet: int) -> str:
    """Return the name of a sheet, which any file system takes."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "_", gallery.title.replace(": ", "-")).strip("._")
    return f"{number:02}-{words[:60] or 'cells'}-{sheet}.png"


def _cell(cell: Chosen, picture: CellPicture) -> NDArray[np.uint8]:
    """Draw one cell with its words below."""
    image = decoded(picture.jpeg)
    if picture.outline:
        polygons(image, [np.array(picture.outline)], CLASSES[0])
    draw_scale_bar(image, picture.mpp)
    words: Sequence[tuple[str, Colour]] = (
        (f"{cell.rank}   {cell.value:.3g}", INK),
        (_end(cell.slide_id), _SOFT),
        (f"{cell.x_px0}, {cell.y_px0}", _SOFT),
    )
    label = np.full((_LINE_PX * len(words), PICTURE_PX, 3), PAPER, np.uint8)
    for line, (text, colour) in enumerate(words):
        write(label, text, 0, line * _LINE_PX, colour, SMALL)
    return np.concatenate([image, label])


def decoded(jpeg: bytes) -> NDArray[np.uint8]:
    """Return the picture of a JPEG, (H, W, 3), which may be drawn on."""
    cv2 = opencv()
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _end(name: str) -> str:
    """Return a slide's name, of a long one the end, which tells slides apart."""
    return name if len(name) <= _LETTERS else f"...{name[3 - _LETTERS :]}"
