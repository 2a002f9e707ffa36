"""Weight files and devices of the detectors that run networks."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cytofm_cli.errors import OutOfMemoryError, UsageError, WeightsError


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` into a device that is there.

    Raises:
        UsageError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is called {name!r}.", hint="cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: there is no GPU here.", hint="--device cpu")
    return device


def existing_file(path: Path | None, detector: str, what: str) -> Path:
    """Return the path of a weight file that is there.

    Raises:
        WeightsError: none was given, or there is none. Nothing is ever downloaded.
    """
    if path is None:
        raise WeightsError(
            f"detector {detector!r} needs a weight file: {what}.", hint="pass --weights FILE"
        )
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; detector {detector!r} downloads nothing.",
            hint=f"pass --weights with {what}",
        )
    return path


def load_tensors(path: Path) -> dict[str, Any]:
    """Load a file of tensors and plain values without running code that it may hold.

    NumPy scalars are let through: training scripts leave them in.

    Raises:
        WeightsError: not such a file, or it holds other objects.
    """
    import numpy as np

    scalar = importlib.import_module("numpy._core.multiarray").scalar
    # The same function under the name of NumPy 1, which old files spell.
    harmless = [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]
    harmless += [type(np.dtype(kind)) for kind in "fdlibB?"]
    try:
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which are read or refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds objects other than tensors and plain values; it is not loaded, "
            "because such a file can run code.",
            hint="save it again as a dictionary of tensors",
        ) from error
    except Exception as error:  # what is no pickle can stop the unpickler in any way
        told = isinstance(error, RuntimeError | OSError | EOFError | ValueError)
        said = str(error).partition("\n")[0] if told else ""
        raise WeightsError(
            f"{path}: cannot be read as a weight file ({said or 'not written by torch.save'})."
        ) from error
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


@contextlib.contextmanager
def memory_errors(detector: str) -> Iterator[None]:
    """Turn "out of memory" of the device or of the machine into an error with a hint."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what is cached in large pieces may fit a smaller try
        raise OutOfMemoryError(
            f"detector {detector!r}: the device has too little memory for one tile.",
            hint="smaller tiles, or device cpu",
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error of torch means too little memory; some only say so in words."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
