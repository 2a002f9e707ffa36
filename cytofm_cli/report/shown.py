"""Instances as the templates take them: the picture with what is drawn over it, and the words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cytofm_cli.pictures.scale_bar import label_of, nice_length_um
from cytofm_cli.report.crops import PICTURE_PX, CellPicture
from cytofm_cli.report.page import Pictures

_BAR_SHARE: Final = 0.4


@dataclass(frozen=True)
class ShownCell:
    """A cell or tile on a page.

    Attributes:
        rank: from 1.
        value: what it is ordered by, in words.
        x, y: where it lies, level-0 pixels.
        slide: its slide, where cells of several stand together; "" else.
        alt: what the picture shows.
        href: of the picture; "" without.
        side: of the picture, px.
        outline: points of the polygon; "" without.
        bar_px, bar_text: scale bar.
    """

    rank: int
    value: str
    x: int
    y: int
    slide: str
    alt: str
    href: str = ""
    side: int = PICTURE_PX
    outline: str = ""
    bar_px: float = 0.0
    bar_text: str = ""


def show_cell(
    picture: CellPicture | None, pictures: Pictures, *, rank: int, value: str, at: tuple[int, int],
    slide: str = "", alt: str,
) -> ShownCell:  # fmt: skip
    """Return a cell as it stands on a page."""
    plain = ShownCell(rank=rank, value=value, x=at[0], y=at[1], slide=slide, alt=alt)
    if picture is None:
        return plain
    length_um = nice_length_um(_BAR_SHARE * PICTURE_PX * picture.mpp)
    return ShownCell(
        **{
            **plain.__dict__,
            "href": pictures.address(picture.jpeg),
            "outline": " ".join(f"{x:g},{y:g}" for x, y in picture.outline),
            "bar_px": round(length_um / picture.mpp, 1),
            "bar_text": label_of(length_um),
        }
    )
