"""The apply step for one store: nuclei → features → classes, in `/classes/<run>` of the store.

Legend: N nuclei, D features, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells.classifier import Answer
from cytofm_cli.cells.config import ApplyConfig
from cytofm_cli.cells.run import answers_of
from cytofm_cli.cells.run_folder import SEEN_AS, Card, Trained, fold_name, load_run
from cytofm_cli.encoders.base import Encoder
from cytofm_cli.encoders.batches import WINDOW, Embedding, default_batch
from cytofm_cli.errors import CytofmError, InputError, WeightsError
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.runs import provenance
from cytofm_cli.stats.classes import spelling_key
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.fresh import loss_note, say_risk
from cytofm_cli.store.records import (
    NEW,
    OUT_OF_FOLD,
    TRAINING,
    ClassesRecord,
    EmbeddingRecord,
    is_part,
)
from cytofm_cli.work.batch import Status

Report = Callable[[int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ApplyJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        run: RUN folder of the classifier.
        config: the settings.
        group: patient of the slide, where a table says it.
        kin: other slides of that patient that the RUN has learnt from.
        overwrite: replace finished classes of this RUN.
        dry_run: write nothing.
        threads: threads for this slide.
    """

    slide_id: str
    path: str
    run: Path
    config: ApplyConfig
    group: str | None = None
    kin: tuple[str, ...] = ()
    overwrite: bool = False
    dry_run: bool = False
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of the nuclei of a slide, in the order of its table.

    Attributes:
        class_N: uint8, the most probable one.
        p_NC: float32, rows sum to 1.
        abstained_N: uint8, 1 where nothing is said.
        score_N: float32, of one-class: distance from normal cells; else None.
    """

    class_N: NDArray[np.uint8]
    p_NC: NDArray[np.float32]
    abstained_N: NDArray[np.uint8]
    score_N: NDArray[np.float32] | None


def basis_of(
    card: Card, slide_id: str, group: str | None, kin: Sequence[str] = ()
) -> tuple[int | None, str]:
    """Say which classifier may judge a slide: one that saw neither it nor its patient.

    Args:
        card: of the classifiers.
        slide_id: the slide.
        group: its patient, where a table says it.
        kin: other slides of that patient; a RUN may have learnt from them under other groups.

    Returns:
        the fold, None for the classifier of all cells; and the ground: "new", "out-of-fold", or
        "training" where every classifier has seen cells of the slide or patient.
    """
    fold_of = {spelling_key(name): fold for name, fold in card.fold_of_group.items()}
    groups = [] if group is None else [group]
    for slide in (slide_id, *kin):
        groups += card.groups_of_slide.get(slide, ())
    folds = {fold_of[key] for key in map(spelling_key, groups) if key in fold_of}
    if not folds:
        return None, NEW
    return (folds.pop(), OUT_OF_FOLD) if len(folds) == 1 else (None, TRAINING)


class Applying:
    """Classifies the nuclei of store after store; RUN and encoder are loaded once."""

    def __init__(self) -> None:
        self._trained: Trained | None = None
        self._encoder: Encoder | None = None
        self._adapted: tuple[str, Encoder] | None = None

    def apply(self, job: ApplyJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
        """Classify the nuclei of one slide.

        Returns:
            ("done" or "skipped", facts). A slide without nuclei is done, and said.

        Raises:
            CytofmError: the slide cannot be done; nothing half-written is left.
        """
        trained = self._trained = self._trained or load_run(job.run)
        store = io.open_store(Path(job.path))
        detector = store.which_detector(job.config.detector)
        nuclei = schema.nuclei_step(detector)
        store.require_fresh(nuclei)
        fold, basis = basis_of(trained.card, job.slide_id, job.group, job.kin)
        settings = settings_of(trained, job, detector, fold)
        if basis == TRAINING:  # by the classifier of all cells, as a new slide
            settings["basis"] = basis
        mark = f"{store.tile.mark}-{store.steps[nuclei].config_hash}"
        step = schema.classes_step(job.run.name)
        how: dict[str, Any] = {"config": settings, "input_fingerprint": mark}
        if not job.overwrite and commit.is_finished(store, step, **how):
            commit.settle(store.path, step)
            return "skipped", _facts(store, step)
        if job.dry_run:
            say_risk(store.path, store.steps, step, note)
            return "done", {"store": job.path, "n_nuclei": store.shape(f"{nuclei}/xy_px0")[0]}
        with io.claim_step(store.path.parent, job.slide_id, step):
            if not job.overwrite and commit.is_finished(store.path, step, **how):
                return "skipped", _facts(io.open_store(store.path), step)
            classes, used = self._classify(job, trained, store, detector, fold, report, note)
            record = ClassesRecord(
                **provenance.stamp(settings, input_fingerprint=mark),
                run_folder=str(job.run.absolute()),
                run_sha256=trained.digest,
                n=len(classes.class_N),
                classes=trained.card.classes,
                model=trained.card.model,
                detector=detector,
                encoder=trained.card.encoder["name"],
                cell_um=trained.card.crop_um,
                basis=basis,
                n_abstained=int(classes.abstained_N.sum()),
                made_from=lineage.made_from(store.steps, schema.TILE_STEP, nuclei, *used),
            )
            _say(job, record, note)
            with io.staging(store.path.parent, job.slide_id, step) as staged:
                write_classes(staged, classes, trained.card.classes)
                gone = commit.commit_group(staged, store.path, step, record)
            if gone:
                note(loss_note(store.path, step, gone))
        return "done", _facts(io.open_store(store.path), step)

    def _classify(
        self,
        job: ApplyJob,
        trained: Trained,
        store: io.Store,
        detector: str,
        fold: int | None,
        report: Report,
        note: Note,
    ) -> tuple[Classes, tuple[str, ...]]:
        """Return the classes, and the steps of embeddings that were read for them."""
        card = trained.card
        classifier = trained.whole if fold is None else trained.folds[fold]
        temperature = card.temperature if fold is None else card.temperatures[fold]
        reuse = job.config.reuse and fold_name(fold) not in trained.adapters
        step = stored_embeddings(store, card, detector) if reuse else None
        with contextlib.ExitStack() as stack:
            if not len(store.nuclei_xy_px0(detector)):
                blocks: Iterator[NDArray[np.float32]] = iter(())
            elif step is not None:
                rows = stack.enter_context(store.rows(f"{step}/values"))
                n = rows.shape[0]
                blocks = (rows.read(i, min(i + WINDOW, n)) for i in range(0, n, WINDOW))
            else:
                blocks = stack.enter_context(
                    self._embedded(job, trained, store, detector, fold, report, note)
                )
            answers = []
            for x_ND in blocks:
                if not np.isfinite(x_ND).all():
                    raise InputError(
                        f"{store.path}: NaN or infinite features of encoder "
                        f"{card.encoder['name']}.",
                        hint="check the weights, or embed the cells anew",
                    )
                answers.append(classifier.answer(x_ND))
        abstain = card.abstain if job.config.abstain is None else job.config.abstain
        return classes_of(answers, card, temperature, abstain), (() if step is None else (step,))

    @contextlib.contextmanager
    def _embedded(
        self,
        job: ApplyJob,
        trained: Trained,
        store: io.Store,
        detector: str,
        fold: int | None,
        report: Report,
        note: Note,
    ) -> Iterator[Iterator[NDArray[np.float32]]]:
        """Give the features of all nuclei, window by window."""
        card, config = trained.card, job.config
        encoder = self._updated(trained, fold_name(fold), self._load(job, card, note))
        cells = open_cells(store, detector=detector, cell_um=card.crop_um, slides=config.slides)
        with cells as crops:
            batch = config.batch_size or default_batch(config.device, encoder, crops.side_px)
            how: dict[str, Any] = {"batch_size": batch, "threads": job.threads, "report": report}
            yield iter(Embedding(crops, encoder, **how))

    def _updated(self, trained: Trained, name: str, encoder: Encoder) -> Encoder:
        """Return the encoder as a classifier has learnt with it; the last one stays at hand."""
        if name not in trained.adapters:
            return encoder
        if self._adapted is None or self._adapted[0] != name:
            from cytofm_cli.encoders.lora import adapted

            assert trained.card.adapters is not None
            scale = trained.card.adapters["scale"]
            self._adapted = (name, adapted(encoder, trained.adapters[name], scale))  # type: ignore[arg-type]
        return self._adapted[1]

    def _load(self, job: ApplyJob, card: Card, note: Note) -> Encoder:
        if self._encoder is None:
            try:
                self._encoder = load_encoder_of(card, job.config)
            except CytofmError as error:
                error.of_all_slides = True
                raise
            for line in getattr(self._encoder, "notes", ()):
                note(line)
        return self._encoder


def settings_of(trained: Trained, job: ApplyJob, detector: str, fold: int | None) -> dict[str, Any]:
    """Return what changes a stored class."""
    abstain = trained.card.abstain if job.config.abstain is None else job.config.abstain
    return {"run": trained.digest, "detector": detector, "fold": fold, "abstain": abstain}


def load_encoder_of(card: Card, config: ApplyConfig) -> Encoder:
    """Open the encoder that a classifier was trained on.

    Raises:
        WeightsError: its file is not there, or is another one.
    """
    choice = card.choice
    file = choice.weights or (Path(choice.word) if Path(choice.word).is_absolute() else None)
    if config.weights is not None:
        here = "word" if choice.weights is None and file is not None else "weights"
        value: Any = str(config.weights) if here == "word" else config.weights
        choice, file = replace(choice, **{here: value}), config.weights
    if file is not None and not file.is_file():
        raise WeightsError(
            f"{file}: the weights that the classifier was trained on are not there.",
            hint="--weights FILE says where they lie now",
        )
    encoder = choice.load(device=config.device, seed=card.seed, pooling=card.pooling)
    if encoder.spec.weights_sha256 != card.encoder["weights_sha256"]:
        raise WeightsError(
            f"{file or choice.word}: has other weights of {choice.name} than the classifier was "
            "trained on.",
            hint="--weights FILE, or train the classifier anew",
        )
    return encoder


def stored_embeddings(store: io.Store, card: Card, detector: str) -> str | None:
    """Name the embeddings of the same crops by the same encoder; None without.

    Those kept as float16 are others than the classifier has learnt from.
    """
    nuclei = schema.nuclei_step(detector)
    for step, record in store.embedding_records("cell").items():
        if (
            _is_of(record, card)
            and not is_part(record.regions)
            and nuclei in lineage.parents_of(store.steps, step)
            and record.config.get("dtype", "float32") == "float32"
            and store.why_stale(step) is None
        ):
            return step
    return None


def _is_of(record: EmbeddingRecord, card: Card) -> bool:
    facts: Mapping[str, Any] = card.facts
    return (
        record.encoder == card.encoder["name"]
        and record.weights_sha256 == card.encoder["weights_sha256"]
        and record.dim == facts["dim"]
        and record.cell_um is not None
        and abs(record.cell_um - card.crop_um) < 1e-6
        and (not card.encoder["random"] or record.seed == card.seed)
        and all(_plain(getattr(record, name)) == _plain(facts[name]) for name in SEEN_AS)
    )


def classes_of(answers: list[Answer], card: Card, temperature: float, abstain: float) -> Classes:
    """Join the answers of all blocks into what is stored."""
    empty = np.zeros((0, len(card.classes)))
    p_NC = np.concatenate([empty, *(answer.probabilities(temperature) for answer in answers)])
    p_NC = p_NC.astype(np.float32)  # what is said follows from what is stored
    one_class = card.model == "one-class"
    said_N, kept_N = answers_of(card.outlier if one_class else None, p_NC, abstain)
    scores = [answer.score_M for answer in answers if answer.score_M is not None]
    return Classes(
        said_N.astype(np.uint8),
        p_NC,
        (~kept_N).astype(np.uint8),
        np.concatenate([np.zeros(0), *scores]).astype(np.float32) if one_class else None,
    )


def write_classes(folder: Path, classes: Classes, names: tuple[str, ...]) -> None:
    """Write the arrays under `folder`, the staged group."""
    told = {"classes": list(names)}
    arrays.write(folder, schema.CLASSES_ID, classes.class_N, told)
    arrays.write(folder, schema.CLASSES_PROBABILITY, classes.p_NC, told)
    arrays.write(folder, schema.CLASSES_ABSTAINED, classes.abstained_N)
    if classes.score_N is not None:
        arrays.write(folder, schema.CLASSES_SCORE, classes.score_N)


def _say(job: ApplyJob, record: ClassesRecord, note: Note) -> None:
    if not record.n:
        note(f"warning: {job.slide_id}: {record.detector} found no nuclei: nothing to classify.")
    if record.basis == TRAINING:
        note(
            f"warning: {job.slide_id}: every classifier of {job.run.name} has learnt from cells of "
            "this slide or its patient: its classes look better than those of a new slide."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _facts(store: io.Store, step: str) -> dict[str, Any]:
    record = store.classes_record(step.partition("/")[2])
    told = {"store": str(store.path), "step": step, "n": record.n, "basis": record.basis}
    return told | ({"abstained": record.n_abstained} if record.n_abstained else {})
