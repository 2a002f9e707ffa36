"""A RUN + bags → probabilities of slides."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.cohort import Listen, Started, Warnings
from cytofm_cli.api.given import PathLike, Paths, path_of, words_of
from cytofm_cli.api.inputs import take_shard
from cytofm_cli.errors import CytofmError, OutputError, SomeSlidesFailedError, UsageError
from cytofm_cli.store.schema import STORE_SUFFIX
from cytofm_cli.work.batch import Note, Outcome, Status
from cytofm_cli.work.shard import resolve_shard

if TYPE_CHECKING:
    import pandas as pd

    from cytofm_cli.api.scoring import Scoring
    from cytofm_cli.mil.bag import Bag
    from cytofm_cli.mil.score import SlideScore
    from cytofm_cli.work.signals import StopFlag


@dataclass(frozen=True)
class Scores(Sequence["SlideScore"]):
    """The answers of a RUN, one a slide, and the slides that could not be scored.

    Attributes:
        scores: `slide_id`, `p_C`, `spread_C`, `predicted`, `n_models`, `basis`, …
        classes: names of the columns of `p_C`.
        failures: errors of slides, by slide id.
        table: where they are written; None: nowhere.
    """

    scores: tuple[SlideScore, ...]
    classes: tuple[str, ...]
    failures: Mapping[str, CytofmError] = field(default_factory=dict)
    table: Path | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Any:
        return self.scores[index]

    def __iter__(self) -> Iterator[SlideScore]:
        return iter(self.scores)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Scores of {len(self)} slides for {', '.join(self.classes)}{failed}>"

    def csv(self) -> str:
        """Return the table as `cytofm mil score` writes it."""
        from cytofm_cli.mil.score import scores_csv

        return scores_csv(self.scores, self.classes)

    def frame(self) -> pd.DataFrame:
        """Return the table as a DataFrame, indexed by slide_id.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        from cytofm_cli.api.frames import require

        rows = [
            {
                "slide_id": score.slide_id,
                **{f"prob_{c}": p for c, p in zip(self.classes, score.p_C, strict=True)},
                **{f"sd_{c}": s for c, s in zip(self.classes, score.spread_C, strict=True)},
                "predicted": score.predicted,
                "models": score.n_models,
                "basis": score.basis,
            }
            for score in self.scores
        ]
        table: pd.DataFrame = require("pandas").DataFrame(rows)
        return table.set_index("slide_id") if rows else table

    def raise_failures(self) -> None:
        """Raise if a slide could not be scored; the others are.

        Raises:
            CytofmError: the error of the only slide; or that none of several could be scored.
            SomeSlidesFailedError: some failed.
        """
        errors, n = list(self.failures.values()), len(self) + len(self.failures)
        if errors and n == 1:
            raise errors[0]
        if errors and not self.scores:
            raise type(errors[0])(
                f"none of {n} slides could be scored.", hint="the lines above say why."
            )
        if errors:
            kept = f", the others are in {self.table}." if self.table else f": {errors[0]}"
            raise SomeSlidesFailedError(
                f"{len(errors)} of {n} slides failed{kept}",
                hint="mend them, or leave them out, and score again.",
            )


def score(
    run: PathLike,
    stores: Paths,
    out: PathLike | None = None,
    *,
    encoder: str | None = None,
    bag_table: PathLike | None = None,
    groups: PathLike | None = None,
    allow_mixed: bool = False,
    device: str = "cpu",
    attention: bool | None = None,
    geojson: PathLike | None = None,
    shard: str | None = None,
    dry_run: bool = False,
    listen: Listen | None = None,
) -> Scores:
    """Score slides with the ensemble of a RUN; needs no labels.

    A slide that the RUN was trained on is scored by the models that never saw it.

    Args:
        run: folder of the RUN.
        stores: stores or folders of stores, or of h5 or pt files: one or several.
        out: table to write; None: none. Each shard has one of its own: `NAME.i-of-n.csv`.
        encoder: whose features they are, for files that do not say.
        bag_table: table slide_id,file of the cells of each bag, for stores of images of cells;
            their attention is written nowhere.
        groups: table slide_id,group of patients: models that saw another slide of one are not
            asked.
        allow_mixed: score features of another encoder, tile size or resolution.
        device: cpu, cuda or cuda:N.
        attention: also write attention of every instance into the stores; None: where there are
            stores.
        geojson: folder for maps for QuPath; None: none.
        shard: score the i-th of n parts, "i/n"; "slurm": that of this task of a Slurm array.
        dry_run: find everything, score nothing.
        listen: called with `Started`, `Note` and `Outcome`; None: warnings and failures become
            Python warnings.

    Returns:
        One score a slide; slides that cannot be scored are warned of and in `.failures`.

    Raises:
        InputError: no RUN, or no bags.
        UsageError: attention is asked for in files that have no place for it.
        WeightsError: a model is damaged or exchanged.
        OutputError: `out` cannot be written.
        StoppedError: a signal asked to stop; what is scored by then is in `out`.
    """
    from cytofm_cli.api.scoring import Scoring, bags_of_table, encoder_of, find_all, slide_of
    from cytofm_cli.mil.score import load_run
    from cytofm_cli.work.signals import catch_signals

    run, table = Path(run), table_of(path_of(out), shard)
    ensemble = load_run(run)
    encoder = encoder_of(ensemble, encoder)
    paths = find_all(words_of(stores), encoder or ensemble.origin.encoder)
    if attention:
        _refuse_files(paths, bag_table)
    how = Scoring(
        run=run.absolute(),
        ensemble=ensemble,
        encoder=encoder,
        device=device,
        allow_mixed=allow_mixed,
        attention=attention is not False,
        geojson=path_of(geojson),
    )
    items: Sequence[Path | Bag] = paths
    if bag_table is not None:
        items = bags_of_table(paths, Path(bag_table), how)
    if groups is not None:
        known = ensemble.known.with_table(Path(groups), [slide_of(item) for item in items])
        how = dataclasses.replace(how, ensemble=dataclasses.replace(ensemble, known=known))
    items = take_shard(items, shard, key=slide_of)
    listen = listen or Warnings()
    listen(Started(len(items)))
    if dry_run:
        return Scores((), ensemble.card.classes, table=table)
    if table is not None:
        _make_folder(table)
    with catch_signals() as stop:
        answers = dataclasses.replace(_score_all(items, how, listen, stop), table=table)
    _keep(answers, len(items), stop)
    _say_basis(answers, how, listen)
    return answers


def table_of(table: Path | None, shard: str | None) -> Path | None:
    """Name the table of a part.

    Raises:
        OutputError: it is a folder.
    """
    if table is None:
        return None
    if shard := resolve_shard(shard):
        table = table.with_name(f"{table.stem}.{shard.replace('/', '-of-')}{table.suffix}")
    if table.is_dir():
        raise OutputError(f"{table}: is a folder.", hint=f"-o {table / 'scores.csv'}")
    return table


def _refuse_files(paths: Sequence[Path], bag_table: PathLike | None) -> None:
    if bag_table is not None:
        raise UsageError(
            "--attention and --bag-table: a cell may be in several bags, and has one place.",
            hint="leave --attention out",
        )
    if files := [path.name for path in paths if path.suffix != STORE_SUFFIX]:
        raise UsageError(
            f"--attention: is written into stores, which {files[0]} is not.",
            hint="leave it out; --geojson FOLDER writes maps",
        )


def _make_folder(table: Path) -> None:
    from cytofm_cli.work.files import output_errors

    with output_errors(table):
        table.parent.mkdir(parents=True, exist_ok=True)


def _score_all(items: Sequence[Path | Bag], how: Scoring, listen: Listen, stop: StopFlag) -> Scores:
    """Score slides until a signal asks to stop; the slide at hand is finished."""
    from cytofm_cli.api.scoring import score_one, slide_of

    scores: list[SlideScore] = []
    failures: dict[str, CytofmError] = {}
    for item in items:
        if stop:
            break
        begun, error, slide_id = time.monotonic(), None, slide_of(item)
        try:
            scores.append(score_one(item, how, note=_noting(listen, slide_id)))
        except CytofmError as failure:
            failures[slide_id] = error = failure
        seconds = time.monotonic() - begun
        status: Status = "failed" if error else "done"
        place = str(item) if isinstance(item, Path) else slide_id
        listen(Outcome(slide_id, place, status, seconds, error=error))
    return Scores(tuple(scores), how.ensemble.card.classes, failures)


def _noting(listen: Listen, slide_id: str) -> Callable[[str], None]:
    return lambda text: listen(Note(slide_id, text))


def _keep(answers: Scores, n_items: int, stop: StopFlag) -> None:
    """Write the table of the slides that could be scored.

    Raises:
        StoppedError: a signal came before all were.
    """
    from cytofm_cli.work.files import write_text

    n, table = len(answers) + len(answers.failures), answers.table
    if table is not None and (answers.scores or not n_items):
        write_text(table, answers.csv())
    if stop and not answers.scores:
        raise stop.error()
    if stop and n < n_items:
        kept = f"; those that are done are in {table}" if table else ""
        raise type(stop.error())(
            f"stopped by a signal after {n} of {n_items} slides{kept}.",
            hint="run the same command again for all of them.",
        )


def _say_basis(answers: Scores, how: Scoring, listen: Listen) -> None:
    """Say what the scores rest on that cannot be seen from them."""
    from cytofm_cli.api.scoring import remarks

    if answers.scores:
        for text in remarks(answers.scores, how):
            listen(Note("", text))
