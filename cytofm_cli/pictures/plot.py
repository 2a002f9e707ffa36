"""Charts as SVG text: small, sharp at any size, read out by screen readers, told apart in grey.

Matplotlib would take half a second to load and tens of kilobytes a chart. Lines differ in colour
and in dashes, points in colour and in being filled; every chart has a title and says in words what
it shows. All words are escaped.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from cytofm_cli.pictures.colours import CLASSES, hex_of

# Of the palette of classes, what is seen as a thin line on white, first the darkest.
_LINES: Final = tuple(hex_of(CLASSES[i]) for i in (4, 5, 2, 6, 0, 1))
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "1 2", "12 4")
_INK: Final = "#282828"
_GREY: Final = "#6b6b6b"
_GRID: Final = "#e2e2dd"
_LEFT, _RIGHT, _TOP, _AXIS = 52, 16, 12, 44
_LEGEND_PX: Final = 17
_LETTER_PX: Final = 6.1  # mean width of a letter at 11 px


def line_colour(index: int) -> str:
    """Return the colour of a line by its number, as `#rrggbb`."""
    return _LINES[index % len(_LINES)]


@dataclass
class Chart:
    """A plane from `x_range` × `y_range` onto which lines and points are put; `svg` ends it.

    Attributes:
        title: what it is.
        description: what is to be seen on it, for those who do not see it.
        x_label, y_label: of the axes.
        x_range, y_range: of the values: left and right, lower and upper end.
        width, height: of the plane, px.
        y_names: names of the rows 0, 1, … instead of numbers on the y axis.
        left: room for numbers or names beside the y axis, px.
        x_ticks: where numbers stand; None: six, evenly.
    """

    title: str
    description: str
    x_label: str
    y_label: str = ""
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    width: int = 260
    height: int = 260
    y_names: Sequence[str] = ()
    left: int = _LEFT
    x_ticks: Sequence[float] | None = None
    _body: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str]] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Return where a value lies, px."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        """Return where a value lies, px from above."""
        low, high = self.y_range
        return _TOP + (high - value) / (high - low) * self.height

    def line(
        self, x: Sequence[float], y: Sequence[float], index: int = 0, *, name: str = "",
        steps: bool = False, points: bool = False,
    ) -> None:  # fmt: skip
        """Add a line of the colour and dashes of a number.

        Args:
            x, y: its points.
            index: number of the line.
            name: in the legend; "": not there.
            steps: level from each point to the one before, as a precision over recall.
            points: mark them.
        """
        corners: list[tuple[float, float]] = []
        for at, (px, py) in enumerate(zip(x, y, strict=True)):
            if steps and at:
                corners.append((self.x(float(x[at - 1])), self.y(float(py))))
            corners.append((self.x(float(px)), self.y(float(py))))
        look = f'stroke="{line_colour(index)}" stroke-width="2"{_dash(index)}'
        self._body.append(f'<polyline fill="none" {look} points="{_points(corners)}"/>')
        if points:
            for px, py in zip(x, y, strict=True):
                self.dot(px, py, index, radius=3)
        if name:
            self._legend.append((f'<line x1="0" x2="24" {look}', name))

    def dot(
        self, x: float, y: float, index: int = 0, *, radius: float = 4.0, filled: bool = True,
        name: str = "",
    ) -> None:  # fmt: skip
        """Add a point; `name` is shown where the mouse rests on it."""
        colour = line_colour(index)
        look = f'fill="{colour if filled else "#ffffff"}" stroke="{colour}" stroke-width="1.5"'
        inner = f"<title>{escape(name)}</title>" if name else ""
        self._body.append(
            f'<circle cx="{self.x(float(x)):.1f}" cy="{self.y(float(y)):.1f}" r="{radius:.1f}" '
            f"{look}>{inner}</circle>"
        )

    def bar(self, x: tuple[float, float], y: tuple[float, float], index: int = 0) -> None:
        """Add a filled box between two values on each axis."""
        left, right, top, bottom = self.x(x[0]), self.x(x[1]), self.y(y[1]), self.y(y[0])
        self._body.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 0.5):.1f}" '
            f'height="{max(0.0, bottom - top):.1f}" fill="{line_colour(index)}"/>'
        )

    def interval(self, low: float, high: float, y: float, index: int = 0) -> None:
        """Add a level line with ends; what lies beyond the plane is cut off at its edge."""
        ends = [min(max(v, self.x_range[0]), self.x_range[1]) for v in (low, high)]
        left, right = (self.x(v) for v in ends)
        at, colour = self.y(y), line_colour(index)
        marks = f"M{left:.1f} {at:.1f}H{right:.1f}"
        marks += "".join(f"M{x:.1f} {at - 5:.1f}V{at + 5:.1f}" for x in (left, right))
        self._body.append(f'<path d="{marks}" stroke="{colour}" stroke-width="2"/>')

    def rule(
        self, *, x: float | None = None, y: float | None = None, diagonal: bool = False,
        name: str = "",
    ) -> None:  # fmt: skip
        """Add a grey dashed line across: at `x`, at `y`, or from corner to corner."""
        left, right = self.x(self.x_range[0]), self.x(self.x_range[1])
        bottom, top = self.y(self.y_range[0]), self.y(self.y_range[1])
        ends = (left, bottom, right, top)
        if x is not None:
            ends = (self.x(x), bottom, self.x(x), top)
        elif y is not None:
            ends = (left, self.y(y), right, self.y(y))
        elif not diagonal:
            return
        look = f'stroke="{_GREY}" stroke-width="1.2" stroke-dasharray="4 4"'
        x1, y1, x2, y2 = (f"{value:.1f}" for value in ends)
        self._body.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {look}/>')
        if name:
            self._legend.append((f'<line x1="0" x2="24" {look}', name))

    def key(self, text: str, index: int, *, filled: bool = True) -> None:
        """Add a line to the legend for points."""
        colour = line_colour(index)
        look = f'fill="{colour if filled else "#ffffff"}" stroke="{colour}" stroke-width="1.5"'
        self._legend.append((f'<circle cx="12" r="4" {look}', text))

    def svg(self) -> str:
        """Return the chart; its ids are unlike those of another chart on the same page."""
        content = f"{self.title}{self.description}{self._body}{self._legend}"
        number = f"{zlib.crc32(content.encode('utf-8', 'replace')):08x}"
        rows = self._legend
        width = self.left + self.width + _RIGHT
        longest = max((len(name) for _, name in rows), default=0)
        width = max(width, math.ceil(44 + longest * _LETTER_PX))
        height = _TOP + self.height + _AXIS + _LEGEND_PX * len(rows) + (6 if rows else 0)
        ids = f"chart-{number}-t", f"chart-{number}-d"
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img" '
            f'aria-labelledby="{ids[0]} {ids[1]}" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-size="11" fill="{_INK}">'
            f'<title id="{ids[0]}">{escape(self.title)}</title>'
            f'<desc id="{ids[1]}">{escape(self.description)}</desc>'
            f"{self._axes()}{''.join(self._body)}{self._legend_rows(rows)}</svg>"
        )

    def _axes(self) -> str:
        left, right = self.left, self.left + self.width
        bottom = _TOP + self.height
        parts = []
        low, high = self.x_range
        ticks = self.x_ticks
        if ticks is None:
            ticks = [low + (high - low) * i / 5 for i in range(6)]
        for value in ticks:
            at = self.x(value)
            parts.append(f'<path d="M{at:.1f} {_TOP}V{bottom}" stroke="{_GRID}"/>')
            parts.append(_text(at, bottom + 15, _number(value), "middle"))
        parts += self._names() if self.y_names else self._heights()
        frame = f'<path d="M{left} {_TOP}V{bottom}H{right}" fill="none" stroke="{_INK}"/>'
        middle = left + self.width / 2
        parts.append(_text(middle, bottom + 33, self.x_label, "middle"))
        if self.y_label:
            at = _TOP + self.height / 2
            turn = f' transform="rotate(-90 13 {at:.1f})"'
            parts.append(_text(13, at, self.y_label, "middle", turn))
        return "".join(parts) + frame

    def _heights(self) -> list[str]:
        low, high = self.y_range
        parts = []
        for value in (low + (high - low) * i / 5 for i in range(6)):
            at, right = self.y(value), self.left + self.width
            parts.append(f'<path d="M{self.left} {at:.1f}H{right}" stroke="{_GRID}"/>')
            parts.append(_text(self.left - 6, at + 4, _number(value), "end"))
        return parts

    def _names(self) -> list[str]:
        letters = max(4, int((self.left - 10) / _LETTER_PX))
        return [
            _text(self.left - 6, self.y(row) + 4, shortened(name, letters), "end")
            for row, name in enumerate(self.y_names)
        ]

    def _legend_rows(self, rows: Sequence[tuple[str, str]]) -> str:
        start = _TOP + self.height + _AXIS + 6
        parts = []
        for row, (shape, name) in enumerate(rows):
            parts.append(
                f'<g transform="translate(8 {start + row * _LEGEND_PX})">{shape}/>'
                f"{_text(32, 4, name, 'start')}</g>"
            )
        return "".join(parts)


def room_for(names: Sequence[str], most: int = 190) -> int:
    """Return how much room beside the y axis names need, px, at most so much."""
    longest = max((len(name) for name in names), default=0)
    return min(most, max(_LEFT, math.ceil(16 + longest * _LETTER_PX)))


def shortened(text: str, letters: int) -> str:
    """Return a text of at most so many letters; what was longer ends in …"""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _dash(index: int) -> str:
    dash = _DASHES[index % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{round(value, 6):g}".replace("-", "\N{MINUS SIGN}")
