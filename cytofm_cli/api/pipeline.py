"""All steps for one slide, one after the other, in one process.

Each step is the one that its own command runs, told the same; what is finished is skipped by the
step itself. Between them nothing is kept but decoded tiles (`cytofm_cli.tiles.kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli.api.detect import Detecting
from cytofm_cli.api.embed import Embedding
from cytofm_cli.api.export import Exporting, ExportJob
from cytofm_cli.api.tile import tile_one
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.errors import CytofmError
from cytofm_cli.mil.config import ScoreConfig
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.memory import give_back

if TYPE_CHECKING:
    from cytofm_cli.api.scoring import Scoring
    from cytofm_cli.encoders.run import EmbedJob
    from cytofm_cli.nuclei.run import DetectJob

Answer = tuple[Status, dict[str, Any]]
# About how long the steps take beside each other: for the progress display.
_WEIGHTS: Final = {"tile": 2.0, "detect": 40.0, "embed tile": 20.0, "embed cell": 40.0}


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """How one slide is scored.

    Attributes:
        path: the store.
        run: folder of the RUN.
        config: the settings.
        slide_ids: all slides, where a table of patients has to be matched to them.
    """

    path: Path
    run: Path
    config: ScoreConfig
    slide_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """What to do with one slide; a step that is None is left out.

    Attributes:
        slide_id: name of its store.
        path: the slide.
        store: where its store goes.
        tile, detect, embed, score, export: what each step is told.
        dry_run: say what would be done.
    """

    slide_id: str
    path: str
    store: Path
    tile: TileJob
    detect: DetectJob | None = None
    embed: tuple[EmbedJob, ...] = ()
    score: ScoreJob | None = None
    export: ExportJob | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class _Step:
    name: str
    work: Callable[[Task, Reporter], Answer]
    payload: Any


class Running:
    """Does all steps of slide after slide; models stay loaded. Each process gets its own."""

    def __init__(self) -> None:
        self._detecting, self._exporting, self._scorer = Detecting(), Exporting(), _Scorer()
        self._embedding: dict[EmbedConfig, Embedding] = {}

    def __call__(self, task: Task, report: Reporter) -> Answer:
        """Do the steps of one slide, up to the first that fails.

        Raises:
            CytofmError: of that step; `facts` tell its name and what became of the others.
        """
        from cytofm_cli.tiles.kept import keep_tiles

        job: RunJob = task.payload
        steps = list(self._steps(job))
        told: dict[str, dict[str, Any]] = {}
        if job.detect is not None and not job.dry_run and not job.store.exists():
            self._detecting.prepare(job.detect)
        with keep_tiles():
            for step in steps:
                part = _part(report, steps, step, told)
                try:
                    told[step.name] = self._do(job, step, part, told)
                except CytofmError as error:
                    error.facts |= {"step": step.name, "steps": told}
                    raise
                give_back()  # or the next step's peak comes on top of it
        # A score is always made anew: it makes no finished slide an unfinished one.
        done = any(of["status"] == "done" for name, of in told.items() if name != "score")
        return ("done" if done else "skipped"), {"store": str(job.store), "steps": told}

    def _do(
        self, job: RunJob, step: _Step, report: Reporter, told: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the status and the facts of a step."""
        ahead = any(of["status"] == "done" for of in told.values()) or step.name == "score"
        if job.dry_run and ahead:  # it would read what is not there yet
            return {"status": "done"}
        task = Task(name=job.slide_id, path=str(job.store), payload=step.payload)
        status, facts = step.work(task, report)
        facts = {key: value for key, value in facts.items() if key not in ("store", "step")}
        return {"status": status, **facts}

    def _steps(self, job: RunJob) -> Iterator[_Step]:
        yield _Step("tile", tile_one, job.tile)
        if job.detect is not None:
            yield _Step("detect", self._detecting, job.detect)
        for embed in job.embed:
            embedding = self._embedding.setdefault(_same_model(embed.config), Embedding())
            yield _Step(f"embed {embed.config.unit}", _Chosen(embedding, job.detect), embed)
        if job.score is not None:
            yield _Step("score", self._scorer, job.score)
        if job.export is not None:
            yield _Step("export", self._exporting, job.export)


class _Chosen:
    """Embeds the cells that the step before has found, where a store holds others too."""

    def __init__(self, embedding: Embedding, detect: DetectJob | None) -> None:
        self._embedding, self._detect = embedding, detect

    def __call__(self, task: Task, report: Reporter) -> Answer:
        """Embed one slide."""
        from cytofm_cli.store.io import open_store

        job: EmbedJob = task.payload
        config = job.config
        if config.unit == "cell" and config.detector is None and self._detect is not None:
            there = [step for step in open_store(job.store).steps if step.startswith("nuclei/")]
            if len(there) > 1:
                named = self._detect.config.detector
                job = replace(job, config=replace(config, detector=named))
        return self._embedding(replace(task, payload=job), report)


class _Scorer:
    """Scores slide after slide; the models of the RUN stay loaded."""

    def __init__(self) -> None:
        self._how: Scoring | None = None

    def __call__(self, task: Task, report: Reporter) -> Answer:
        """Score one slide, and write its attention into its store."""
        from cytofm_cli.api.scoring import score_one

        job: ScoreJob = task.payload
        if self._how is None:
            self._how = _scoring(job)
        result = score_one(job.path, self._how, note=report.note)
        classes = self._how.ensemble.card.classes
        return "done", {
            "prob": dict(zip(classes, result.p_C.tolist(), strict=True)),
            "sd": dict(zip(classes, result.spread_C.tolist(), strict=True)),
            "predicted": result.predicted,
            "models": result.n_models,
            "basis": result.basis,
            "differs": list(result.differs),
        }


def _scoring(job: ScoreJob) -> Scoring:
    from cytofm_cli.api.scoring import Scoring, encoder_of
    from cytofm_cli.mil.score import load_run

    config = job.config
    try:
        ensemble = load_run(job.run)
        encoder = encoder_of(ensemble, config.encoder)
        if config.groups is not None:
            known = ensemble.known.with_table(config.groups, job.slide_ids)
            ensemble = replace(ensemble, known=known)
    except CytofmError as error:
        error.of_all_slides = True
        raise
    return Scoring(
        run=job.run.absolute(),
        ensemble=ensemble,
        encoder=encoder,
        device=config.device,
        allow_mixed=config.allow_mixed,
        attention=config.attention is not False,
        geojson=config.geojson,
    )


def _same_model(config: EmbedConfig) -> EmbedConfig:
    """Return settings that are equal for bags that one loaded encoder can make."""
    return replace(config, unit="cell", cell_um=None, detector=None, dtype="float32", slides=None)


class _PartOfSlide(Reporter):
    """Tells how far a step is as a share of all steps of the slide, counted in its tiles."""

    def __init__(self, report: Reporter, start: float, share: float, n_tiles: int | None) -> None:
        self._report, self._start, self._share, self._n_tiles = report, start, share, n_tiles

    def progress(self, done: int, total: int) -> None:
        """Report `done` of `total` parts of the step."""
        n_tiles = self._n_tiles or total
        share = self._start + self._share * done / max(1, total)
        self._report.progress(round(n_tiles * share), n_tiles)

    def note(self, text: str) -> None:
        """Say a line to the user."""
        self._report.note(text)


def _part(
    report: Reporter, steps: Sequence[_Step], step: _Step, told: dict[str, dict[str, Any]]
) -> Reporter:
    weights = {other.name: _WEIGHTS.get(other.name, 2.0) for other in steps}
    total = sum(weights.values())
    start = sum(weights[name] for name in told) / total
    n_tiles = told.get("tile", {}).get("n_tiles")
    return _PartOfSlide(report, start, weights[step.name] / total, n_tiles)
