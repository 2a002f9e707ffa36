"""The images that the picture of heads shows, and the pages that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.maps.compartments import (
    COMPARTMENTS,
    Floats,
    ground_of,
    parts_of,
    rings_near,
)
from cytofm_cli.maps.config import AttentionConfig
from cytofm_cli.maps.enrichment import Row
from cytofm_cli.maps.figure import COLUMNS, PANEL_PX, Image, Page, Panel, Strip, fitted, head_panel
from cytofm_cli.maps.look import look, open_images, unit_of
from cytofm_cli.maps.networks import Looker
from cytofm_cli.store import io


@dataclass(frozen=True)
class Example:
    """One image with the attention of every network.

    Attributes:
        slide_id: where it is from.
        row: which tile or nucleus of the store.
        image: uint8 (S, S, 3), of a panel's size.
        outlines: of nuclei, pixels of the panel.
        mpp: µm to a pixel of the panel.
        attention: by network: (heads, rows, columns).
        parts: (S, S), the compartment of each pixel.
        frame: by network: see `head_panel`.
    """

    slide_id: str
    row: int
    image: Image
    outlines: Sequence[Floats]
    mpp: float
    attention: Mapping[str, Floats]
    parts: NDArray[np.uint8]
    frame: Mapping[str, tuple[float, float]]


def examples_of(
    paths: Sequence[Path], lookers: Sequence[Looker], config: AttentionConfig
) -> list[Example]:
    """Read the attention on `config.shown` images, one of each slide in turn, as lots have it."""
    shares = [len(part) for part in np.array_split(np.arange(config.shown), len(paths))]
    chosen = [(path, n) for path, n in zip(paths, shares, strict=True) if n]
    return [example for path, n in chosen for example in _of_slide(path, n, lookers, config)]


def _of_slide(
    path: Path, n: int, lookers: Sequence[Looker], config: AttentionConfig
) -> list[Example]:
    few = replace(config, images=n)
    store = io.open_store(path)
    ground, unit = ground_of(store, config.detector), unit_of(config, lookers)
    with open_images(store, ground, few, lookers[0], unit) as images:
        seen = {
            looker.label: look(
                images, ground, looker, batch_size=config.batch_size, threads=1,
                report=lambda done, total: None,
            )
            for looker in lookers
        }  # fmt: skip
        grids = {looker.label: looker.grid for looker in lookers}
        zoom = PANEL_PX / images.side
        return [
            Example(
                slide_id=store.slide_id,
                row=int(images.rows[i]),
                image=fitted(images.pixels.read(i)),
                outlines=[
                    (ring - images.left_top[i]) * zoom
                    for ring in rings_near(ground.nuclei, images.left_top[i], images.side)
                ],
                mpp=store.slide.mpp / zoom,
                attention={
                    label: of.attention_BHP[i].astype(np.float64).reshape(-1, *grids[label])
                    for label, of in seen.items()
                },
                parts=parts_of(ground, images.left_top[i], images.side, (PANEL_PX, PANEL_PX)),
                frame={
                    label: (of.frame[0] * PANEL_PX, of.frame[1] * PANEL_PX)
                    for label, of in seen.items()
                },
            )
            for i in range(len(images.rows))
        ]


def page_of(
    examples: Sequence[Example], lookers: Sequence[Looker], tables: Mapping[str, Sequence[Row]]
) -> Page:
    """Lay out a strip an image and network: the image, then each head.

    Args:
        examples: at least one.
        lookers: the networks.
        tables: the rows of each, by label: they say what a head is coloured by.
    """
    strips = []
    for example in examples:
        for together in _abreast(lookers):
            photograph = Panel(example.image, example.outlines, example.slide_id, mpp=example.mpp)
            heads = [
                _head(example, looker, head, tables[looker.label])
                for looker in together
                for head in range(looker.n_heads)
            ]
            title = " | ".join(looker.label for looker in together)
            strips.append(Strip(title, [photograph, *heads]))
    queries = " and ".join(sorted({looker.query for looker in lookers}))
    lines = [
        f"Attention of the last layer ({queries}) in the colours of what lies under it; opaque: "
        "the patch most looked at.",
        "Mark and number of a head: what it looks at most for its area, over all slides.",
    ]
    return Page(lines, strips)


def _abreast(lookers: Sequence[Looker]) -> list[list[Looker]]:
    """Set the networks of the same weights beside each other, if their heads fit into a strip."""
    rows: list[list[Looker]] = []
    for looker in lookers:
        last = rows[-1] if rows else []
        alike = bool(last) and (last[0].encoder, last[0].weights) == (
            looker.encoder,
            looker.weights,
        )
        if alike and sum(of.n_heads for of in [*last, looker]) < COLUMNS:
            last.append(looker)
        else:
            rows.append([looker])
    return rows


def _head(example: Example, looker: Looker, head: int, rows: Sequence[Row]) -> Panel:
    name, times = preferred(rows, str(head + 1))
    caption = f"{looker.keys} {head + 1}" + (f": {name} ×{times:.2f}" if name else "")
    return head_panel(
        example.image,
        example.outlines,
        caption,
        name,
        example.attention[looker.label][head],
        example.parts,
        example.frame[looker.label],
    )


def preferred(rows: Sequence[Row], head: str) -> tuple[str | None, float]:
    """Return the compartment that a head looks at most for its area, and how much more."""
    times = {row.compartment: row.enrichment.value for row in rows if row.head == head}
    known = {name: value for name, value in times.items() if np.isfinite(value)}
    if not known:
        return None, float("nan")
    name = max(COMPARTMENTS, key=lambda compartment: known.get(compartment, -1.0))
    return name, known[name]
