"""The out-of-fold answers of a finished RUN, to be compared.

Legend: S slides, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cytofm_cli.errors import DAMAGE, InputError
from cytofm_cli.mil.run_folder import (
    PREDICTIONS,
    RUN,
    SPLITS,
    read_config,
    read_rows,
    refuse_exchanged,
)
from cytofm_cli.runs.folder import CONFIG
from cytofm_cli.stats.compare import Answers


def read_answers(run: Path, name: str | None = None) -> Answers:
    """Read predictions.csv of a RUN and average the models of each slide.

    Raises:
        InputError: no finished RUN, or it cannot be read.
        WeightsError: its files are not what was trained.
    """
    with RUN.reading(run, CONFIG):
        classes = tuple(read_config(run)["task"]["classes"])
    refuse_exchanged(run, (PREDICTIONS, SPLITS))
    try:
        rows = read_rows(run / PREDICTIONS)
        layout = {row["slide_id"]: row for row in read_rows(run / SPLITS)}
        ids = sorted({row["slide_id"] for row in rows})
        at = {slide: i for i, slide in enumerate(ids)}
        total, count = np.zeros((len(ids), len(classes))), np.zeros(len(ids))
        y_S = np.zeros(len(ids), dtype=np.int64)
        for row in rows:
            i = at[row["slide_id"]]
            total[i] += [float(row[f"prob_{c}"]) for c in classes]
            count[i] += 1
            y_S[i] = classes.index(row["label"])
        groups = tuple(layout[slide]["group"] for slide in ids)
        columns = [key for key in next(iter(layout.values())) if key.startswith("fold")]
        parts = tuple("|".join(str(layout[s][c] == "test") for c in columns) for s in ids)
    except (*DAMAGE, StopIteration) as error:
        raise InputError(
            f"{run}: its predictions or splits cannot be read ({error}).", hint="train it again"
        ) from error
    p_SC = total / count[:, None]
    return Answers(name or run.name, tuple(ids), y_S, p_SC, groups, classes, parts)
