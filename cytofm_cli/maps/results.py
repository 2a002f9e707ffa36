"""The tables of attention: CSV for people and R, JSON with where it comes from."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cytofm_cli.maps.compartments import COMPARTMENTS
from cytofm_cli.maps.enrichment import Row, SlideShares
from cytofm_cli.maps.networks import Looker
from cytofm_cli.stats.intervals import Estimate
from cytofm_cli.table_text import TableWriter

_NUMBERS = ("mass", "area", "enrichment", "place")


def table_csv(lookers: Sequence[Looker], tables: Mapping[str, Sequence[Row]], n: Any) -> str:
    """Write a line a network, head and compartment.

    Args:
        lookers: the networks.
        tables: their rows, by label.
        n: (slides, images).
    """
    text = io.StringIO()
    writer = TableWriter(text)
    numbers = [name + end for name in _NUMBERS for end in ("", "_low", "_high")]
    writer.writerow(
        ["encoder", "weights", "keys", "query", "head", "compartment", *numbers, "prefix_mass",
         "slides", "images"]
    )  # fmt: skip
    for looker in lookers:
        for row in tables[looker.label]:
            values = [v for name in _NUMBERS for v in _ends(getattr(row, name))]
            told = [looker.encoder, looker.weights, looker.keys, looker.query]
            writer.writerow([*told, row.head, row.compartment, *values, _number(row.prefix), *n])
    return text.getvalue()


def slides_csv(
    lookers: Sequence[Looker], of_slides: Mapping[str, Mapping[str, SlideShares]]
) -> str:
    """Write a line a slide, network and head: shares of attention and area, as they are."""
    text = io.StringIO()
    writer = TableWriter(text)
    names = [f"{kind}_{name}" for kind in ("mass", "area") for name in COMPARTMENTS]
    writer.writerow(["slide_id", "encoder", "weights", "keys", "head", *names, "images"])
    for slide_id, found in of_slides.items():
        for looker in lookers:
            shares = found[looker.label]
            for head, mass_K in enumerate(shares.mass_HK.tolist(), start=1):
                values = [_number(v) for v in (*mass_K, *shares.area_K.tolist())]
                told = [slide_id, looker.encoder, looker.weights, looker.keys, head]
                writer.writerow([*told, *values, shares.n_images])
    return text.getvalue()


def record_of(
    lookers: Sequence[Looker], tables: Mapping[str, Sequence[Row]]
) -> list[dict[str, Any]]:
    """Return all networks with their heads as JSON values."""
    return [
        {
            "label": looker.label,
            "encoder": looker.encoder,
            "weights": looker.weights,
            "weights_sha256": looker.spec.weights_sha256,
            "keys": looker.keys,
            "query": looker.query,
            "grid": list(looker.grid),
            "input_px": looker.spec.input_px,
            "heads": [
                {
                    "head": row.head,
                    "compartment": row.compartment,
                    **{name: getattr(row, name).record() for name in _NUMBERS},
                    "prefix_mass": row.prefix,
                }
                for row in tables[looker.label]
            ],
        }
        for looker in lookers
    ]


def _ends(estimate: Estimate) -> list[str]:
    return [_number(v) for v in (estimate.value, estimate.low, estimate.high)]


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
