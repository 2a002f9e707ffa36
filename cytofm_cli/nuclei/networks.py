"""What detectors that run networks share: reading weight files, and too little memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from cytofm_cli.errors import WeightsError
from cytofm_cli.work.memory import out_of_memory
from cytofm_cli.work.unpickle import load_pickle


def load_tensors(path: Path) -> dict[str, Any]:
    """Load a dictionary of tensors and plain values without running code that it may hold.

    Raises:
        WeightsError: not such a file, or it holds other objects.
    """
    content = load_pickle(path, kind=WeightsError, hint="save it again as a dictionary of tensors")
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dictionary.")
    return content


def load_strictly(network: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load a state dictionary in which every key and shape must fit.

    Raises:
        WeightsError: names how many keys miss or do not belong, and the first of them.
    """
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    foreign = sorted(state.keys() - own.keys())
    if missing or foreign:
        example = (missing or foreign)[0]
        raise WeightsError(
            f"{path}: does not fit: {len(missing)} tensors are missing, {len(foreign)} do not "
            f"belong, e.g. {example!r}."
        )
    for key, tensor in own.items():
        shape = getattr(state[key], "shape", None)
        if shape != tensor.shape:
            raise WeightsError(f"{path}: {key} is {shape}, expected {tuple(tensor.shape)}.")
    network.load_state_dict(state, strict=True, assign=True)


def memory_errors(detector: str) -> contextlib.AbstractContextManager[None]:
    """Turn "out of memory" into the error after which a tile is done in quarters."""
    return out_of_memory(
        f"detector {detector!r}: the device has too little memory for one tile.",
        hint="smaller tiles, or device cpu",
    )
