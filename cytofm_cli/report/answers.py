"""What a RUN of `mil train` says, as a report shows it.

Legend: S slides, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.mil.answers import read_answers
from cytofm_cli.mil.run_folder import (
    LOG,
    METRICS,
    PREDICTIONS,
    RUN,
    SPLITS,
    read_config,
    read_metrics,
    read_rows,
    run_digest,
)
from cytofm_cli.runs.folder import CONFIG
from cytofm_cli.stats.compare import Answers
from cytofm_cli.work.files import read_plain


@dataclass(frozen=True)
class Split:
    """One fold.

    Attributes:
        name: its number.
        test, test_groups: slides and groups that judge it.
        rest: slides that it is trained and validated on.
    """

    name: str
    test: int
    test_groups: int
    rest: int


@dataclass(frozen=True, eq=False)
class RunAnswers:
    """A finished RUN.

    Attributes:
        path: its folder.
        name: what it is called in the report, unlike the others.
        digest: what it is known by in the records of attention.
        metrics: content of metrics.json.
        config: content of config.toml.
        answers: out-of-fold probabilities, by slide.
        predicted_S: class indices.
        threshold_S: mean threshold of the folds that tested the slide; NaN for more than two
            classes.
        splits: of each fold.
        finished: when it was, UTC; "" if it does not say.
        config_text: config.toml as it stands.
    """

    path: Path
    name: str
    digest: str
    metrics: Mapping[str, Any]
    config: Mapping[str, Mapping[str, Any]]
    answers: Answers
    predicted_S: NDArray[np.int64]
    threshold_S: NDArray[np.float64]
    splits: Sequence[Split]
    finished: str = ""
    config_text: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the last of two is the positive one."""
        return self.answers.classes

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Where each slide stands in the answers."""
        return {slide: row for row, slide in enumerate(self.answers.slide_ids)}

    @property
    def positive(self) -> str | None:
        """The positive class; None for more than two."""
        return self.classes[1] if len(self.classes) == 2 else None

    @property
    def unit(self) -> str:
        """What its instances are, "tile" or "cell"."""
        return str(self.metrics["unit"])


def read_run(path: Path, name: str | None = None) -> RunAnswers:
    """Read a RUN.

    Raises:
        InputError: no finished RUN of `mil train`.
        WeightsError: its files are not what was trained.
    """
    refuse_others(path)
    answers, metrics = read_answers(path, name), read_metrics(path)
    with RUN.reading(path, METRICS):
        if metrics["unit"] not in ("tile", "cell"):
            raise ValueError(f"its unit is {metrics['unit']!r}")
        threshold_S = _thresholds(read_rows(path / PREDICTIONS), answers, metrics)
    with RUN.reading(path, SPLITS):
        splits = _splits(path)
    if len(answers.classes) == 2:
        predicted_S = (answers.p_SC[:, 1] >= threshold_S).astype(np.int64)
    else:
        predicted_S = answers.p_SC.argmax(1).astype(np.int64)
    return RunAnswers(
        path=path,
        name=answers.name,
        digest=run_digest(path),
        metrics=metrics,
        config=read_config(path),
        answers=answers,
        predicted_S=predicted_S,
        threshold_S=threshold_S,
        splits=splits,
        finished=_finished(path),
        config_text=read_plain(path / CONFIG).decode("utf-8"),
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return names that tell RUNs apart: of their folders, or as they were typed."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def refuse_others(path: Path) -> None:
    """Refuse what is no RUN of `mil train`, and say what it is.

    Raises:
        InputError: no such folder, or a RUN of another command.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such RUN.", hint="give what -o of `cytofm mil train` named")
    if RUN.is_run(path):
        return
    sections = read_config(path).keys()
    for command, section in (("evaluate probe", "evaluate"), ("cells train", "cells")):
        if section in sections:
            raise InputError(
                f"{path}: is a RUN of `cytofm {command}`; a report takes those of "
                "`cytofm mil train`.",
                hint=f"{path / METRICS} holds its numbers",
            )
    raise RUN.unfinished(path)


def _thresholds(
    rows: Sequence[Mapping[str, str]], answers: Answers, metrics: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the mean threshold of the models that answered for each slide."""
    n = len(answers.slide_ids)
    if len(answers.classes) != 2:
        return np.full(n, np.nan)
    by_fold: Sequence[float] = metrics["threshold"]["by_fold"]
    at = {slide: i for i, slide in enumerate(answers.slide_ids)}
    total_S, count_S = np.zeros(n), np.zeros(n)
    for row in rows:
        total_S[at[row["slide_id"]]] += by_fold[int(row["fold"])]
        count_S[at[row["slide_id"]]] += 1
    return total_S / count_S


def _splits(path: Path) -> list[Split]:
    rows = read_rows(path / SPLITS)
    splits = []
    for column in (key for key in rows[0] if key.startswith("fold")):
        tested = [row for row in rows if row[column] == "test"]
        splits.append(
            Split(
                name=column.removeprefix("fold"),
                test=len(tested),
                test_groups=len({row["group"] for row in tested}),
                rest=sum(row[column] not in ("test", "") for row in rows),
            )
        )
    return splits


def _finished(path: Path) -> str:
    """Return when a RUN was finished, as the last line of its log says."""
    try:
        last = read_plain(path / LOG).decode("utf-8").rstrip().rpartition("\n")[2]
        return str(json.loads(last).get("utc", ""))
    except (OSError, ValueError, AttributeError):
        return ""
