"""Strips of cells that turn from normal to abnormal, as files.

DIR/strip.png        a row a cell and noise: the cell itself, then the frames; under each its scores
    images/00000.png the frames, marked as synthetic as the strip is
    scores.csv       of each frame: what the condition scores, and the picture encoded again
    metrics.json     whether the pictures followed; all settings are in config.toml

Letters: C cells, N noises, F frames, R = C · N strips, E width of the encoder's vector.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.generate.counterfactual import Floats, Scorer, followed, probability
from cytofm_cli.generate.use_folder import png_text, write_images
from cytofm_cli.pictures.files import png_bytes, with_text
from cytofm_cli.pictures.sheet import below, beside
from cytofm_cli.pictures.strip import captioned, enlarged
from cytofm_cli.work.files import write_bytes, write_text

METRICS: Final = "metrics.json"
_COLUMNS: Final = (
    "file", "cell", "noise", "frame", "p_condition", "p_image", "log_odds_condition",
    "log_odds_image", "moved", "cosine",
)  # fmt: skip
_SHOWN_PX: Final = 128
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Strips:
    """What was made.

    Attributes:
        cells: STORE:NUMBER of each.
        cell_CHWC: the cells themselves, uint8.
        image_RFHWC: the frames, uint8.
        own_C: log-odds of the cells.
        asked_RF, shown_RF: log-odds of conditions, and of pictures encoded again.
        moved_RF: how far the conditions lie from the cell's, in median distances of real cells.
        cosine_RF: of each picture's vector with its condition.
        judged_RF: log-odds of the pictures by another model; None: there is none.
        judged_C: of the cells likewise.
    """

    cells: tuple[str, ...]
    cell_CHWC: Images
    image_RFHWC: Images
    own_C: Floats
    asked_RF: Floats
    shown_RF: Floats
    moved_RF: Floats
    cosine_RF: Floats
    judged_RF: Floats | None = None
    judged_C: Floats | None = None


def flat(image_RFHWC: Images) -> Images:
    """Return the images of all strips, one after the other."""
    return image_RFHWC.reshape(-1, *image_RFHWC.shape[2:])


def metrics_of(strips: Strips, scorer: Scorer, judge: Scorer | None) -> dict[str, Any]:
    """Return what metrics.json says."""
    n = len(strips.asked_RF) // len(strips.cells)
    metrics: dict[str, Any] = {
        "score": scorer.said,
        "class": scorer.of_class,
        "cells": [
            {"cell": cell, "p": float(probability(own))}
            for cell, own in zip(strips.cells, strips.own_C, strict=True)
        ],
        "strips": len(strips.asked_RF),
        "frames": strips.asked_RF.shape[1],
        "followed": followed(strips.asked_RF, strips.shown_RF),
        "first_frame_less_cell": float((strips.shown_RF[:, 0] - np.repeat(strips.own_C, n)).mean()),
        "moved_last": float(strips.moved_RF[:, -1].mean()),
        "cosine_first": float(strips.cosine_RF[:, 0].mean()),
        "cosine_last": float(strips.cosine_RF[:, -1].mean()),
    }
    if judge is not None and strips.judged_RF is not None and strips.judged_C is not None:
        metrics["judge"] = {
            "score": judge.said,
            "followed": followed(strips.asked_RF, strips.judged_RF),
            "cells": [float(probability(own)) for own in strips.judged_C],
        }
    return metrics


def write_strips(
    staging: Path,
    strips: Strips,
    scorer: Scorer,
    judge: Scorer | None,
    made: dict[str, Any],
) -> None:
    """Write all files but config.toml into a folder.

    Args:
        staging: the folder.
        strips: what was made.
        scorer, judge: by what.
        made: what each image says of how it was made.
    """
    n = len(strips.asked_RF) // len(strips.cells)
    names = [
        f"strip {strip}, frame {frame}: {strips.cells[strip // n]} moved towards {scorer.of_class}"
        for strip, frame in np.ndindex(strips.asked_RF.shape)
    ]
    files = write_images(staging, flat(strips.image_RFHWC), made, names)
    write_text(staging / "scores.csv", _table(strips, files, n))
    shown = f"strips of {', '.join(strips.cells)}; the first of each row is the cell itself"
    picture = with_text(png_bytes(_picture(strips, scorer, n)), png_text(made, shown))
    write_bytes(staging / "strip.png", picture)
    metrics = metrics_of(strips, scorer, judge)
    write_text(staging / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False))


def _table(strips: Strips, files: Sequence[str], n: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    judged = [] if strips.judged_RF is None else ["p_judge"]
    writer.writerow([*_COLUMNS, *judged])
    for number, (strip, frame) in enumerate(np.ndindex(strips.asked_RF.shape)):
        at = strip, frame
        asked, shown = strips.asked_RF[at], strips.shown_RF[at]
        numbers = [probability(asked), probability(shown), asked, shown]
        numbers += [strips.moved_RF[at], strips.cosine_RF[at]]
        if strips.judged_RF is not None:
            numbers.append(probability(strips.judged_RF[at]))
        place = [files[number], strips.cells[strip // n], strip % n, frame]
        writer.writerow([*place, *(f"{value:.6g}" for value in numbers)])
    return text.getvalue()


def _picture(strips: Strips, scorer: Scorer, n: int) -> Images:
    rows = []
    for strip, image_FHWC in enumerate(strips.image_RFHWC):
        own = probability(strips.own_C[strip // n])
        cell = captioned(
            enlarged(strips.cell_CHWC[strip // n], _SHOWN_PX), ["the cell itself", f"{own:.2f}"]
        )
        frames = [
            captioned(
                enlarged(image, _SHOWN_PX),
                [f"condition {probability(asked):.2f}", f"picture {probability(shown):.2f}"],
            )
            for image, asked, shown in zip(
                image_FHWC, strips.asked_RF[strip], strips.shown_RF[strip], strict=True
            )
        ]
        rows.append(beside([cell, *frames]))
    head = captioned(
        np.full((1, rows[0].shape[1], 3), 255, np.uint8),
        [f"synthetic: probability of {scorer.of_class} of each condition and of its picture"],
    )
    return below([head, *rows])
