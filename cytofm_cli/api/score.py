"""A RUN + bags → probabilities of slides."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, path_of, words_of
from cytofm_cli.api.inputs import take_shard
from cytofm_cli.errors import CytofmError, CytofmWarning, OutputError, SomeSlidesFailedError

if TYPE_CHECKING:
    import pandas as pd

    from cytofm_cli.mil.score import SlideScore


@dataclass(frozen=True)
class Scores(Sequence["SlideScore"]):
    """The answers of a RUN, one a slide, and the slides that could not be scored.

    Attributes:
        scores: `slide_id`, `p_C`, `spread_C`, `predicted`, `n_models`, `basis`, …
        classes: names of the columns of `p_C`.
        failures: errors of slides, by slide id.
    """

    scores: tuple[SlideScore, ...]
    classes: tuple[str, ...]
    failures: Mapping[str, CytofmError] = field(default_factory=dict)

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
        """Raise if a slide could not be scored: the error of the only one, or how many failed."""
        errors, n = list(self.failures.values()), len(self) + len(self.failures)
        if errors and n == 1:
            raise errors[0]
        if errors:
            raise SomeSlidesFailedError(f"{len(errors)} of {n} slides failed: {errors[0]}")


def score(
    run: PathLike,
    stores: Paths,
    out: PathLike | None = None,
    *,
    encoder: str | None = None,
    groups: PathLike | None = None,
    allow_mixed: bool = False,
    device: str = "cpu",
    attention: bool = True,
    geojson: PathLike | None = None,
    shard: str | None = None,
) -> Scores:
    """Score slides with the ensemble of a RUN; needs no labels.

    A slide that the RUN was trained on is scored by the models that never saw it.

    Args:
        run: folder of the RUN.
        stores: stores or folders of stores, or of h5 or pt files: one or several.
        out: table to write; None: none.
        encoder: whose features they are, for files that do not say.
        groups: table slide_id,group of patients: models that saw another slide of one are not
            asked.
        allow_mixed: score features of another encoder, tile size or resolution.
        device: cpu, cuda or cuda:N.
        attention: also write attention of every instance into the stores.
        geojson: folder for maps for QuPath; None: none.
        shard: score the i-th of n parts, "i/n".

    Returns:
        One score a slide; slides that cannot be scored are warned of and in `.failures`.

    Raises:
        InputError: no RUN, or no bags.
        WeightsError: a model is damaged or exchanged.
        OutputError: `out` cannot be written.
    """
    from cytofm_cli.api.scoring import Scoring, encoder_of, find_all, score_one
    from cytofm_cli.mil.score import load_run

    run, table = Path(run), path_of(out)
    if table is not None and table.is_dir():
        raise OutputError(f"{table}: is a folder.", hint="name the table, e.g. scores.csv")
    ensemble = load_run(run)
    encoder = encoder_of(ensemble, encoder)
    paths = find_all(words_of(stores), encoder or ensemble.origin.encoder)
    if groups is not None:
        known = ensemble.known.with_table(Path(groups), [path.stem for path in paths])
        ensemble = dataclasses.replace(ensemble, known=known)
    how = Scoring(
        run=run.absolute(),
        ensemble=ensemble,
        encoder=encoder,
        device=device,
        allow_mixed=allow_mixed,
        attention=attention,
        geojson=path_of(geojson),
    )
    scores: list[SlideScore] = []
    failures: dict[str, CytofmError] = {}
    for path in take_shard(paths, shard, key=lambda path: path.stem):
        try:
            scores.append(score_one(path, how, warn=_warn))
        except CytofmError as error:
            failures[path.stem] = error
            _warn(error.one_line())
    answers = Scores(tuple(scores), ensemble.card.classes, failures)
    if table is not None and scores:
        _write(table, answers.csv())
    return answers


def _write(table: Path, text: str) -> None:
    from cytofm_cli.work.files import output_errors, write_text

    with output_errors(table):
        table.parent.mkdir(parents=True, exist_ok=True)
    write_text(table, text)


def _warn(text: str) -> None:
    warnings.warn(text, CytofmWarning, stacklevel=3)
