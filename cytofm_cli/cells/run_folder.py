"""The RUN folder of a cell classifier: model.safetensors with model.json beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cytofm_cli.cells.classifier import Classifier, classifier_of
from cytofm_cli.errors import InputError, WeightsError
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.runs.folder import Kind, is_whole, refuse_changes
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.runs.record import Record, changes
from cytofm_cli.work.files import write_bytes, write_text

MODEL: Final = "model.safetensors"
CARD: Final = "model.json"
METRICS: Final = "metrics.json"
PREDICTIONS: Final = "predictions.csv"
FEATURES: Final = "features"
RUN: Final = Kind("cytofm cells train", frozenset({"cells", "data"}), frozenset({FEATURES}))
WHOLE: Final = "whole"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a classifier is beside its arrays; model.json.

    Attributes:
        model: "linear", "mlp" or "one-class".
        classes: their names, in order.
        ordinal: they are a scale.
        normal: of one-class: the labels that were learnt.
        encoder: `Choice`'s fields: what makes the features.
        seed: of random weights.
        pooling: as asked for; None: the encoder's own.
        crop_um: side of a crop, µm.
        facts: how the encoder sees a crop, as an `EmbeddingRecord` says it.
        temperature: of the classifier of all cells.
        temperatures: of each fold's.
        abstain: say nothing below this probability.
        outlier: of one-class: the share of normal cells that lie nearer than an outlier.
        fold_of_group: the fold that held each group out.
        groups_of_slide: groups of the labelled cells of each slide.
        sha256: of model.safetensors.
        cytofm: the version that made it.
    """

    model: str
    classes: tuple[str, ...]
    ordinal: bool
    normal: tuple[str, ...]
    encoder: Mapping[str, Any]
    seed: int
    pooling: str | None
    crop_um: float
    facts: Mapping[str, Any]
    temperature: float
    temperatures: tuple[float, ...]
    abstain: float
    outlier: float
    fold_of_group: Mapping[str, int]
    groups_of_slide: Mapping[str, tuple[str, ...]]
    sha256: str
    cytofm: str

    @property
    def choice(self) -> Choice:
        """Return the encoder."""
        weights = self.encoder["weights"]
        return Choice(**{**self.encoder, "weights": None if weights is None else Path(weights)})


@dataclass(frozen=True, eq=False)
class Trained:
    """A classifier that was learnt.

    Attributes:
        path: the RUN.
        card: what it is.
        folds: that of each fold.
        whole: that of all cells.
        digest: changes when anything of it does.
    """

    path: Path
    card: Card
    folds: tuple[Classifier, ...]
    whole: Classifier
    digest: str


def save_model(out: Path, folds: tuple[Classifier, ...], whole: Classifier) -> str:
    """Write the arrays of all classifiers; return the digest of the file."""
    from safetensors.numpy import save

    named = {WHOLE: whole, **{f"fold{number}": of for number, of in enumerate(folds)}}
    arrays = {
        f"{name}/{key}": np.ascontiguousarray(values)
        for name, of in named.items()
        for key, values in of.arrays().items()
    }
    write_bytes(out / MODEL, save(arrays))
    return sha256_file(out / MODEL)


def save_card(out: Path, card: Card) -> None:
    """Write model.json."""
    write_text(out / CARD, json.dumps(card.__dict__, indent=1, ensure_ascii=False))


def load_run(run: Path) -> Trained:
    """Load the classifiers of a RUN.

    Raises:
        InputError: no finished RUN.
        WeightsError: the model is damaged, or of another RUN.
    """
    card = _read_card(run)
    path = run / MODEL
    if not path.is_file():
        raise RUN.unfinished(run)
    if not is_whole(path, card.sha256):
        raise WeightsError(
            f"{path}: is not the file that {CARD} beside it describes.",
            hint="put it back, or train again with --overwrite",
        )
    arrays = _read_arrays(path)
    try:
        of = {name: classifier_of(values) for name, values in arrays.items()}
        folds = tuple(of[f"fold{number}"] for number in range(len(card.temperatures)))
        return Trained(run, card, folds, of[WHOLE], sha256_file(run / CARD)[:16])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: holds no classifier ({error}).") from error


def _read_card(run: Path) -> Card:
    stored = RUN.read_json(run, CARD)
    try:
        frozen: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()
        }
        return Card(**frozen)
    except (TypeError, AttributeError) as error:
        raise RUN.unfinished(run) from error


def _read_arrays(path: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        flat = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged ({error}).") from error
    nested: dict[str, dict[str, Any]] = {}
    for name, values in flat.items():
        of, _, key = name.partition("/")
        nested.setdefault(of, {})[key] = values
    return nested


def may_write(out: Path, record: Record, *, overwrite: bool) -> bool:
    """Tell whether a RUN must be made; False: it is done already.

    Raises:
        OutputError, ConfigMismatchError, InputError: see `Kind.former`; it was made with other
            settings.
    """
    former = RUN.former(out)
    if former is None:
        return True
    if not overwrite:
        refuse_changes(out, changes(former, record), overwrite="replaces it and keeps the features")
    return overwrite or not _is_finished(out)


def _is_finished(out: Path) -> bool:
    try:
        load_run(out)
        return isinstance(RUN.read_json(out, METRICS), dict) and (out / PREDICTIONS).is_file()
    except (InputError, WeightsError):
        return False
