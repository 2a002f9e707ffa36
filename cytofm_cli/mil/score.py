"""Score slides with the models of a RUN; no labels needed.

Legend: N instances, C classes, M models, K columns.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, WeightsError
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil.artefacts import ModelCard, load_model
from cytofm_cli.mil.bag import Bag, check_bags
from cytofm_cli.mil.base import MilModel, MilOutput
from cytofm_cli.mil.origin import Origin
from cytofm_cli.mil.run_folder import (
    DECISIONS,
    RUN,
    SPLITS,
    models_of,
    read_config,
    refuse_exchanged,
)
from cytofm_cli.mil.train import bag_tensor, one_thread, slide_seed
from cytofm_cli.mil.unseen import Known, read_splits
from cytofm_cli.runs.folder import CONFIG
from cytofm_cli.stats.judge import Decision, decide
from cytofm_cli.store.records import OUT_OF_FOLD, TRAINING
from cytofm_cli.table_text import TableWriter
from cytofm_cli.words import named
from cytofm_cli.work.device import find_device


@dataclass(frozen=True, eq=False)
class Ensemble:
    """All models of a RUN: every fold and seed.

    Attributes:
        models: in evaluation mode.
        cards: what each is.
        decisions: temperature and threshold of each fold.
        known: the slides of the RUN and their patients.
        origin: what the RUN learnt from.
    """

    models: tuple[MilModel, ...]
    cards: tuple[ModelCard, ...]
    decisions: tuple[Decision, ...]
    known: Known
    origin: Origin

    @property
    def card(self) -> ModelCard:
        """Return what all models share: head, classes, encoder, width."""
        return self.cards[0]


@dataclass(frozen=True, eq=False)
class SlideScore:
    """The answer for one slide.

    Attributes:
        slide_id: its name.
        p_C: mean probability over models.
        spread_C: standard deviation over models.
        predicted: class name.
        n_models: how many models were asked.
        basis: "new": the RUN does not know the slide; "out-of-fold": only models that never
            saw it were asked; "training": every model was trained on it, so do not judge by it;
            the latter two with " (patient)": so it is with another slide of its patient.
        columns: name of each instance column; the class of a map is in its name.
        instances_NK: float32; attention sums to 1 over the slide, scores are of `score_kind`.
        score_kind: what the `score_<class>` columns hold.
        differs: in what its features differ from those of the RUN.
    """

    slide_id: str
    p_C: NDArray[np.float64]
    spread_C: NDArray[np.float64]
    predicted: str
    n_models: int
    basis: str
    columns: tuple[str, ...]
    instances_NK: NDArray[np.float32]
    score_kind: str = "none"
    differs: tuple[str, ...] = ()


def load_run(run: Path) -> Ensemble:
    """Load the models of a RUN.

    Raises:
        InputError: no finished RUN, or models are missing.
        WeightsError: a model file is damaged, exchanged, or of another head than the others.
    """
    refuse_exchanged(run, (SPLITS, DECISIONS))
    with RUN.reading(run, DECISIONS):
        decisions = tuple(Decision(**record) for record in RUN.read_json(run, DECISIONS, list))
    with RUN.reading(run, SPLITS):
        known = read_splits(run / SPLITS)
    record = read_config(run).get(origins.SECTION)
    files = [run / name for name in models_of(run)]
    if gone := [path.name for path in files if not path.is_file()]:
        raise InputError(
            f"{run}: lacks {len(gone)} of {len(files)} models: {named(gone, 6)}.",
            hint="put them back, or run its `cytofm mil train` again, which makes what is gone",
        )
    loaded = [load_model(path) for path in files]
    cards = tuple(card for _, card in loaded)
    for path, card in zip(files, cards, strict=True):
        if _kind(card) != _kind(cards[0]) or card.fold >= len(decisions):
            raise WeightsError(
                f"{path}: is of head {card.method!r} for {card.encoder or 'unknown'} features, "
                f"the RUN is of {cards[0].method!r} for {cards[0].encoder or 'unknown'}.",
                hint="keep the models of different RUNs in their own folders",
            )
    refuse_exchanged(run, models_of(run))
    plain = Origin(encoder=cards[0].encoder, unit=cards[0].unit)  # what older RUNs remember
    with RUN.reading(run, CONFIG):
        origin = plain if record is None else origins.from_record(record)
    return Ensemble(tuple(model for model, _ in loaded), cards, decisions, known, origin)


def check_bag(ensemble: Ensemble, bag: Bag, *, allow_mixed: bool = False) -> list[str]:
    """Refuse a bag that the models cannot read, or that is made from other things.

    Args:
        ensemble: models.
        bag: features.
        allow_mixed: go on with another encoder, tile size or resolution.

    Returns:
        in what it differs, with both values.

    Raises:
        InputError: other origin, or an unknown encoder; other width, empty, not finite, too large.
    """
    card, width = ensemble.card, bag.features_ND.shape[1]
    differs = [
        f"{name} {theirs}, the RUN learnt {ours}"
        for name, ours, theirs in origins.differences(ensemble.origin, bag.origin)
    ]
    if ensemble.origin.encoder and not bag.encoder:
        differs.append(f"encoder not stated, the RUN learnt {ensemble.origin.encoder}")
    if differs and not allow_mixed:
        raise InputError(f"{bag.slide_id}: {'; '.join(differs)}.", hint=_advice(ensemble, bag))
    if width != card.n_features:
        raise InputError(
            f"{bag.slide_id}: features are {width} wide, the models read {card.n_features}."
        )
    check_bags([bag])
    return differs


def score_bag(
    ensemble: Ensemble,
    bag: Bag,
    *,
    device: str = "cpu",
    out_of_fold: bool = True,
    allow_mixed: bool = False,
) -> SlideScore:
    """Score one slide.

    Args:
        ensemble: models.
        bag: features; labels are not needed.
        device: where to compute; see `find_device`.
        out_of_fold: for a slide of the RUN itself, ask only the models that never saw it.
        allow_mixed: see `check_bag`.
    """
    device = str(find_device(device))
    differs = check_bag(ensemble, bag, allow_mixed=allow_mixed)
    chosen, basis = choose_models(ensemble, bag.slide_id, out_of_fold=out_of_fold)
    x_1ND = bag_tensor(bag, device)[None]
    p_MC, instances_MNK, thresholds = [], [], []
    columns: tuple[str, ...] = ()
    score_kind = "none"
    with one_thread(device), torch.inference_mode():
        for index in chosen:
            decision = ensemble.decisions[ensemble.cards[index].fold]
            out = ensemble.models[index].to(device)(x_1ND, seeds=[slide_seed(bag.slide_id)])
            logits = out.logits_BC.to("cpu", torch.float64).numpy()
            p_MC.append(decision.probabilities(logits)[0])
            thresholds.append(decision.threshold)
            columns, values_NK = instance_columns(out, ensemble.card.classes)
            score_kind = out.score_kind
            instances_MNK.append(values_NK)
    p_C = np.mean(p_MC, axis=0)
    answer = int(decide(p_C[None], float(np.mean(thresholds)))[0])
    return SlideScore(
        slide_id=bag.slide_id,
        p_C=p_C,
        spread_C=np.std(p_MC, axis=0),
        predicted=ensemble.card.classes[answer],
        n_models=len(chosen),
        basis=basis,
        columns=columns,
        instances_NK=np.mean(instances_MNK, axis=0).astype(np.float32),
        score_kind=score_kind,
        differs=tuple(differs),
    )


def instance_columns(
    out: MilOutput, classes: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Lay the maps and scores of one bag side by side, named by the class they speak for.

    Returns:
        names, float64 (N, K): `attention` (of the slide as a whole), `attention_<class>`,
        `score_<class>`.
    """
    names, values = [], []
    unnamed = sum(of_class is None for of_class in out.map_classes)
    for number, of_class in enumerate(out.map_classes):
        name = f"attention_{number}" if unnamed > 1 else "attention"
        names.append(name if of_class is None else f"attention_{classes[of_class]}")
        values.append(out.attention_BKN[0, number])
    if out.score_BCN is not None:
        names += [f"score_{name}" for name in classes]
        values += list(out.score_BCN[0])
    return tuple(names), torch.stack(values, dim=1).to("cpu", torch.float64).numpy()


def model_columns(ensemble: Ensemble) -> tuple[str, ...]:
    """Return the columns that the models give of every slide; see `instance_columns`."""
    return instance_columns(_of_nothing(ensemble), ensemble.card.classes)[0]


def score_kind(ensemble: Ensemble) -> str:
    """Return what the instance scores of the models are, "none" where they give none."""
    return _of_nothing(ensemble).score_kind


def _of_nothing(ensemble: Ensemble) -> MilOutput:
    """Return what a model says of a bag of one row of zeros."""
    x_1ND = torch.zeros((1, 1, ensemble.card.n_features))
    with torch.inference_mode():
        out: MilOutput = ensemble.models[0].to("cpu")(x_1ND, seeds=[0])
    return out


def scores_csv(scores: Iterable[SlideScore], classes: Sequence[str]) -> str:
    """Write `slide_id,prob_<class>…,sd_<class>…,predicted,models,basis[,differs]`.

    The last column is there if a slide's features are made from other things than the RUN's.
    """
    scores = list(scores)
    mixed = any(score.differs for score in scores)
    text = io.StringIO()
    writer = TableWriter(text)
    header = ["slide_id", *(f"prob_{c}" for c in classes), *(f"sd_{c}" for c in classes)]
    writer.writerow([*header, "predicted", "models", "basis", *(["differs"] if mixed else [])])
    for score in scores:
        numbers = [f"{value:.6f}" for value in (*score.p_C, *score.spread_C)]
        row = [score.slide_id, *numbers, score.predicted, score.n_models, score.basis]
        writer.writerow([*row, *(["; ".join(score.differs)] if mixed else [])])
    return text.getvalue()


def _kind(card: ModelCard) -> tuple[object, ...]:
    return (card.method, card.n_features, card.classes, card.encoder, card.unit)


def choose_models(
    ensemble: Ensemble, slide_id: str, *, out_of_fold: bool = True
) -> tuple[Sequence[int], str]:
    """Return which models are asked of a slide, and on what ground; see `SlideScore.basis`."""
    everything = range(len(ensemble.models))
    folds, basis = ensemble.known.folds(slide_id)
    if folds and not out_of_fold:
        return everything, basis.replace(OUT_OF_FOLD, TRAINING)
    return [i for i in everything if ensemble.cards[i].fold in folds] or everything, basis


def _advice(ensemble: Ensemble, bag: Bag) -> str:
    wanted = ensemble.origin.encoder
    if wanted and not bag.encoder:
        return f"`--encoder {wanted}` if they are its features, or `--allow-mixed`"
    if wanted != bag.encoder and wanted:
        return f"`cytofm embed --encoder {wanted}`"
    return "tile and embed it as the RUN's slides, or `--allow-mixed` if you know better"
