"""`cytofm mil score`: the answers of a RUN for slides, as table, attention and maps."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.api.cohort import WARNING, Started
from cytofm_cli.cli.options import ConfigOptions, DryRun, Sharded
from cytofm_cli.cli.out import out
from cytofm_cli.cli.progress import Progress as Bar
from cytofm_cli.errors import StoppedError
from cytofm_cli.mil.config import ScoreConfig
from cytofm_cli.work.batch import Event, Note, Outcome


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
    also a new slide of a patient that the RUN was trained on. The answer is the mean of the
    models' probabilities (not of their logits), each calibrated in its fold. Each --shard has its
    own table.

    Examples:

      cytofm mil score run stores -o scores.csv

      cytofm mil score run new-stores -o new.csv --no-attention --geojson maps
    """
    from cytofm_cli.api.score import score as score_slides
    from cytofm_cli.api.score import table_of

    with ExitStack() as stack:
        screen = _Screen(stack)
        try:
            scores = score_slides(
                *(run_folder, stores, table),
                encoder=config.encoder,
                bag_table=config.bag_table,
                groups=config.groups,
                allow_mixed=config.allow_mixed,
                device=config.device,
                attention=config.attention,
                geojson=config.geojson,
                shard=run.shard,
                dry_run=run.dry_run,
                listen=screen,
            )
        except StoppedError:
            if screen.n_scored:
                _say_table(table_of(table, run.shard), screen.n_scored)
            raise
    if run.dry_run:
        out.note(f"would score {screen.n_slides} slides into {scores.table}")
        return
    if scores.scores or not scores.failures:
        _say_table(scores.table, len(scores))
    scores.raise_failures()


def _say_table(table: Path | None, n_scored: int) -> None:
    out.data(str(table), {"scores": str(table), "slides": n_scored})


class _Screen:
    """Shows the events of scoring as they come.

    Attributes:
        n_slides: to be scored.
        n_scored: those that are.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.n_slides = self.n_scored = 0
        self._stack = stack
        self._bar = Bar("score", 0)
        self._hints: set[str | None] = set()

    def __call__(self, event: Event | Started) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self.n_slides = event.n_slides
            self._bar = self._stack.enter_context(out.progress_bar("score", event.n_slides))
        elif isinstance(event, Note):
            warns = event.text.startswith(WARNING)
            (out.warn if warns else out.note)(event.text.removeprefix(WARNING))
        elif isinstance(event, Outcome):
            self.n_scored += event.status == "done"
            if event.error is not None and self.n_slides > 1:  # the only slide's error is raised
                out.error(event.error, hint=event.error.hint not in self._hints)
                self._hints.add(event.error.hint)
            self._bar.finish(event.slide_id)
