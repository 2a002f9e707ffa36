"""Trained models on disk: safetensors with what is needed to build them again.

A model file is weights plus JSON metadata; loading it never executes anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.errors import DAMAGE, CytofmError, WeightsError, blaming
from cytofm_cli.mil.base import MilModel, make_head
from cytofm_cli.work.files import plain, write_bytes

FORMAT = "cytofm-mil-1"


@dataclass(frozen=True)
class ModelCard:
    """What a model file says about itself.

    Attributes:
        method: name of the head.
        head: its settings.
        n_features: width of the features it takes.
        classes: class names in the order of its logits.
        encoder: what made the features; "" if unknown.
        unit: "tile" or "cell".
        standardise: whether it scales features.
        fold: outer fold that it never saw, as a number.
        seed: its seed; -1 for a model trained on training and validation together.
        vpu: width of its VPU features; 0: none.
    """

    method: str
    head: dict[str, Any]
    n_features: int
    classes: tuple[str, ...]
    encoder: str
    unit: str
    standardise: bool
    fold: int
    seed: int
    vpu: int = 0


def save_model(path: Path, model: MilModel, card: ModelCard) -> None:
    """Write a model and its card; the file appears complete or not at all."""
    from safetensors.torch import save

    # One key: safetensors writes several in an order that changes from process to process.
    metadata = {"cytofm": json.dumps({"format": FORMAT, **card.__dict__}, sort_keys=True)}
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata))


def read_card(path: Path) -> ModelCard:
    """Read the card of a model file.

    Raises:
        WeightsError: missing, damaged, or not a model of `cytofm mil`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(plain(path), framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        record = json.loads(metadata.get("cytofm", "{}"))
        if record.pop("format", None) != FORMAT:
            raise WeightsError(
                f"{path}: not a model of `cytofm mil train`.",
                hint="give a RUN folder that `cytofm mil train` wrote",
            )
        return ModelCard(**{**record, "classes": tuple(record["classes"])})
    except (*DAMAGE, SafetensorError) as error:
        if isinstance(error, CytofmError):
            raise
        raise WeightsError(f"{path}: damaged model file ({error}).") from error


def load_model(path: Path) -> tuple[MilModel, ModelCard]:
    """Build the model of a file, in evaluation mode.

    Raises:
        WeightsError: missing, damaged, or weights of another head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_card(path)
    with blaming(lambda error: WeightsError(f"{path}: its card is damaged ({error}).")):
        head, _ = make_head(card.method, card.vpu or card.n_features, len(card.classes), card.head)
        model = MilModel(head, card.n_features, card.vpu)
    try:
        model.load_state_dict(load_file(plain(path)))
    except (RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path}: weights do not fit head {card.method!r} ({reason})."
        ) from error
    model.standardise = card.standardise
    return model.eval(), card
