"""The RUN folder of a cell classifier: model.safetensors with model.json beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells.classifier import Classifier, classifier_of
from cytofm_cli.errors import InputError, WeightsError, blaming
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.runs.folder import Kind, is_whole, refuse_changes
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.runs.record import Record, changes
from cytofm_cli.work.files import plain, write_bytes, write_text

MODEL: Final = "model.safetensors"
CARD: Final = "model.json"
METRICS: Final = "metrics.json"
PREDICTIONS: Final = "predictions.csv"
FEATURES: Final = "features"
WHOLE: Final = "whole"
ADAPTERS: Final = "adapters.safetensors"  # of lora
RUN: Final = Kind(
    "cytofm cells train",
    frozenset({"cells", "data"}),
    frozenset({FEATURES}),
    frozenset({MODEL, CARD, METRICS, PREDICTIONS, ADAPTERS}),
)
# What two makers of features must have in common to make the same of a crop.
SEEN_AS: Final = ("input_px", "resize_px", "mean", "std", "interpolation", "pooling")
Arrays = Mapping[str, NDArray[Any]]


def fold_name(fold: int | None) -> str:
    """Return the name of a fold's classifier; None: that of all cells."""
    return WHOLE if fold is None else f"fold{fold}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a classifier is beside its arrays; model.json.

    Attributes:
        model: "linear", "mlp", "lora" or "one-class".
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
        adapters: of lora: `scale` (α / r), `epochs` of each fold and of all, `sha256` of
            adapters.safetensors.
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
    adapters: Mapping[str, Any] | None = None

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
        adapters: of lora: the encoder's updates for each classifier, by `fold_name`.
    """

    path: Path
    card: Card
    folds: tuple[Classifier, ...]
    whole: Classifier
    digest: str
    adapters: Mapping[str, Arrays]


def save_model(out: Path, folds: tuple[Classifier, ...], whole: Classifier) -> str:
    """Write the arrays of all classifiers; return the digest of the file."""
    named = {WHOLE: whole, **{fold_name(number): of for number, of in enumerate(folds)}}
    return _save(out / MODEL, {name: of.arrays() for name, of in named.items()})


def save_adapters(out: Path, adapters: Mapping[str, Arrays]) -> str:
    """Write the encoder's updates for all classifiers; return the digest of the file."""
    return _save(out / ADAPTERS, adapters)


def _save(path: Path, of: Mapping[str, Arrays]) -> str:
    from safetensors.numpy import save

    flat = {
        f"{name}/{key}": np.ascontiguousarray(values)
        for name, arrays in of.items()
        for key, values in arrays.items()
    }
    write_bytes(path, save(flat))
    return sha256_file(path)


def save_card(out: Path, card: Card) -> None:
    """Write model.json."""
    told = {k: v for k, v in card.__dict__.items() if k != "adapters" or v is not None}
    write_text(out / CARD, json.dumps(told, indent=1, ensure_ascii=False))


def load_run(run: Path) -> Trained:
    """Load the classifiers of a RUN.

    Raises:
        InputError: no finished RUN.
        WeightsError: the model is damaged, or of another RUN.
    """
    card = _read_card(run)
    arrays = _read_whole(run, MODEL, card.sha256)
    tuned = card.adapters
    with RUN.reading(run, CARD):
        adapters = {} if tuned is None else _read_whole(run, ADAPTERS, tuned["sha256"])
    with blaming(lambda error: WeightsError(f"{run / MODEL}: holds no classifier ({error}).")):
        of = {name: classifier_of(values) for name, values in arrays.items()}
        folds = tuple(of[fold_name(number)] for number in range(len(card.temperatures)))
        if any(len(card.classes) != one.n_classes for one in (*folds, of[WHOLE])):
            raise ValueError(f"{CARD} names other classes")
        changing = sha256_file(run / CARD)[:16]
        return Trained(run, card, folds, of[WHOLE], changing, adapters)


def _read_whole(run: Path, name: str, sha256: str) -> dict[str, dict[str, Any]]:
    """Read a file of arrays that must be the one that was written."""
    path = run / name
    if not path.is_file():
        raise RUN.unfinished(run)
    if not is_whole(path, sha256):
        raise WeightsError(
            f"{path}: is not the file that {CARD} beside it describes.",
            hint="put it back, or train again with --overwrite",
        )
    return _read_arrays(path)


def _read_card(run: Path) -> Card:
    stored = RUN.read_json(run, CARD)
    with RUN.reading(run, CARD):
        frozen: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()
        }
        card = Card(**frozen)
        _refuse_other_kinds(card)
        return card


def _refuse_other_kinds(card: Card) -> None:
    """Refuse what no step could compute with: it would fail every store, and seem their fault."""
    adapters = {} if card.adapters is None else card.adapters
    groups = card.groups_of_slide
    _refuse_other(dict, "record", card.encoder, card.facts, card.fold_of_group, groups, adapters)
    seen = [side for key in ("mean", "std") for side in card.facts.get(key) or ()]
    numbers = (card.crop_um, card.temperature, *card.temperatures, card.abstain, card.outlier)
    _refuse_other((int, float), "number", *numbers, *seen)
    _refuse_other(int, "fold", *card.fold_of_group.values())
    _refuse_other((list, tuple), "list", card.classes, card.normal, *groups.values())
    _refuse_other(str, "name", *card.classes, *card.normal, *itertools.chain(*groups.values()))
    for lacking in {"dim", *SEEN_AS} - card.facts.keys():
        raise KeyError(lacking)
    if not all(number > 0 for number in (card.temperature, *card.temperatures, card.crop_um)):
        raise ValueError("a temperature or a crop that is not above 0")
    if any(not 0 <= fold < len(card.temperatures) for fold in card.fold_of_group.values()):
        raise ValueError("a fold without a temperature")
    _ = card.choice  # its fields are those of an encoder


def _refuse_other(kinds: type | tuple[type, ...], what: str, *values: object) -> None:
    for value in values:
        if not isinstance(value, kinds):
            raise TypeError(f"a {type(value).__name__} where a {what} belongs")


def _read_arrays(path: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        flat = load_file(plain(path))
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
    former = RUN.former(out, overwrite=overwrite)
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
