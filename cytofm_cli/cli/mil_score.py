"""`cytofm mil score`: the answers of a RUN for slides, as table, attention and maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytofm_cli.api.inputs import take_shard
from cytofm_cli.cli.options import ConfigOptions, DryRun, Sharded
from cytofm_cli.cli.out import out
from cytofm_cli.errors import (
    CytofmError,
    OutputError,
    SomeSlidesFailedError,
    UsageError,
)
from cytofm_cli.mil.config import ScoreConfig
from cytofm_cli.store.schema import STORE_SUFFIX

if TYPE_CHECKING:
    from cytofm_cli.api.scoring import Scoring
    from cytofm_cli.mil.score import SlideScore
    from cytofm_cli.work.signals import StopFlag


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(DryRun, Sharded, ConfigOptions):
    """Settings of [run] that scoring has: a table of scores is always made anew."""


def score(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Made by `mil train`.")],
    stores: Annotated[
        list[str], typer.Argument(metavar="STORES", help="Stores, or a folder of h5 or pt files.")
    ],
    table: Annotated[Path, typer.Option("-o", "--out", help="Table of scores to write.")] = Path(
        "scores.csv"
    ),
    *,
    config: ScoreConfig,
    run: ScoreOptions,
) -> None:
    """Score slides with the ensemble of a RUN; needs no labels.

    A slide that the RUN was trained on is scored by the models that never saw it; with --groups
    also a new slide of a patient that the RUN was trained on. Each --shard has its own table.

    Examples:

      cytofm mil score run stores -o scores.csv

      cytofm mil score run new-stores -o new.csv --no-attention --geojson maps
    """
    from cytofm_cli.api.scoring import Scoring, encoder_of, find_all
    from cytofm_cli.mil.score import load_run

    ensemble = load_run(run_folder)
    encoder = encoder_of(ensemble, config.encoder)
    paths = find_all(stores, encoder or ensemble.origin.encoder)
    if config.attention:
        _refuse_files(paths)
    if config.groups is not None:
        known = ensemble.known.with_table(config.groups, [path.stem for path in paths])
        ensemble = replace(ensemble, known=known)
    paths = take_shard(paths, run.shard, key=lambda path: path.stem)
    table = _table_of(table, run.shard)
    if run.dry_run:
        out.note(f"would score {len(paths)} slides into {table}")
        return
    task = Scoring(
        run=run_folder.absolute(),
        ensemble=ensemble,
        encoder=encoder,
        device=config.device,
        allow_mixed=config.allow_mixed,
        attention=config.attention is not False,
        geojson=config.geojson,
    )
    _score_into(table, paths, task)


def _refuse_files(paths: Sequence[Path]) -> None:
    if files := [path.name for path in paths if path.suffix != STORE_SUFFIX]:
        raise UsageError(
            f"--attention: is written into stores, which {files[0]} is not.",
            hint="leave it out; --geojson FOLDER writes maps",
        )


def _table_of(table: Path, shard: str | None) -> Path:
    """Name the table of a part.

    Raises:
        OutputError: it is a folder.
    """
    if shard:
        table = table.with_name(f"{table.stem}.{shard.replace('/', '-of-')}{table.suffix}")
    if table.is_dir():
        raise OutputError(f"{table}: is a folder.", hint=f"-o {table / 'scores.csv'}")
    return table


def _score_into(table: Path, paths: Sequence[Path], task: Scoring) -> None:
    """Score slides, write the table of those that could be, and say what it rests on.

    Raises:
        CytofmError: some slides failed, or all, or a signal came.
    """
    from cytofm_cli.mil.score import scores_csv
    from cytofm_cli.work.files import output_errors, write_text

    with output_errors(table):
        table.parent.mkdir(parents=True, exist_ok=True)
    scores, failures, stop = _score_all(paths, task)
    if not scores and (stop or failures):
        raise stop.error() if stop else _all_failed(failures)
    write_text(table, scores_csv(scores, task.ensemble.card.classes))
    out.data(str(table), {"scores": str(table), "slides": len(scores)})
    if stop and len(scores) + len(failures) < len(paths):
        raise type(stop.error())(
            f"stopped by a signal after {len(scores) + len(failures)} of {len(paths)} slides; "
            f"those that are done are in {table}.",
            hint="run the same command again for all of them.",
        )
    _say(task, scores)
    if failures:
        raise SomeSlidesFailedError(
            f"{len(failures)} of {len(paths)} slides failed, the others are in {table}.",
            hint="mend them, or leave them out, and score again.",
        )


def _say(task: Scoring, scores: Sequence[SlideScore]) -> None:
    """Say what the scores rest on that cannot be seen from them."""
    from cytofm_cli.mil.describe import positive_line
    from cytofm_cli.mil.origin import unstated
    from cytofm_cli.words import named

    out.note(f"{len(scores)} slides scored by {task.run.name}")
    out.note(positive_line(task.ensemble.card.classes))
    known = task.ensemble.known
    for what, count in Counter(what for score in scores for what in score.differs).items():
        out.warn(f"{count} slide(s) scored with --allow-mixed: {what}")
    if missing := unstated(task.ensemble.origin):
        out.note(f"not checked, because the RUN does not remember it: {', '.join(missing)}")
    elif task.unstated:
        told = ", ".join(f"{what} ({count} slides)" for what, count in task.unstated.items())
        out.note(f"not checked, because the bags do not state it: {told}")
    lacking = [score.slide_id for score in scores if known.lacks(score.slide_id)]
    if lacking and (known.grouped or known.table):
        out.note(
            f"patients of {len(lacking)} slide(s) are not known ({named(lacking)}): if the RUN was "
            "trained on other slides of theirs, they are not out-of-fold; --groups TABLE tells"
        )
    trained = [score.slide_id for score in scores if score.basis.startswith("training")]
    if trained:
        out.warn(
            f"all models were trained on {len(trained)} slide(s) or on their patients: "
            f"{named(trained)}; do not judge the RUN by them"
        )


def _score_all(
    paths: Sequence[Path], task: Scoring
) -> tuple[list[SlideScore], list[CytofmError], StopFlag]:
    """Score slides until a signal asks to stop; the slide at hand is finished."""
    from cytofm_cli.api.scoring import score_one
    from cytofm_cli.work.signals import catch_signals

    scores: list[SlideScore] = []
    failures: list[CytofmError] = []
    hints: set[str | None] = set()
    with catch_signals() as stop, out.progress_bar("score", len(paths)) as bar:
        for path in paths:
            if stop:
                break
            try:
                scores.append(score_one(path, task, warn=out.warn, note=out.note))
            except CytofmError as error:
                failures.append(error)
                if len(paths) > 1:  # the only slide's error is raised, and printed, at the end
                    out.error(error, hint=error.hint not in hints)
                hints.add(error.hint)
            bar.finish(path.stem)
    return scores, failures, stop


def _all_failed(failures: Sequence[CytofmError]) -> CytofmError:
    first = failures[0]
    if len(failures) == 1:
        return first
    return type(first)(
        f"none of {len(failures)} slides could be scored.", hint="the lines above say why."
    )
