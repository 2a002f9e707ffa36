"""Read files of `torch.save` without running what they may hold.

A pickle is a program. PyTorch's weights-only reader knows tensors and plain containers; beside
these a short list is let through, which training scripts leave in: constructors of plain numbers
(NumPy's refuses objects), and `argparse.Namespace`, which only ever gets attributes.
"""

from __future__ import annotations

import argparse
import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import InputError
from cytofm_cli.work.budget import FREE_BYTES
from cytofm_cli.work.files import plain

# How torch names what it refuses.
_DEPTH: Final = 6  # of containers in containers; checkpoints have three
_REFUSED: Final = re.compile(r"GLOBAL ([\w.]+)")


def load_pickle(path: Path, *, kind: type[InputError], hint: str, mapped: bool = False) -> Any:
    """Return what a file of `torch.save` holds, on the CPU.

    Args:
        path: the file.
        kind: class of the error.
        hint: what to do about a file that holds other objects.
        mapped: read tensors from the disk as they are used; the older format is read whole.

    Raises:
        InputError: of `kind`: it cannot be read, is damaged, or holds other objects than tensors
            and plain values.
    """
    import torch

    try:
        plain(path)  # a pipe waits for a writer
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        mapped = mapped and zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which are read or refused
            _refuse_packed(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            _refuse_spread(content)
            return content
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise _damaged(path, kind) from error
        # torch's own text advises to load such files with code execution allowed: not quoted.
        raise kind(
            f"{path}: holds a Python object ({refused[1]}) and not only tensors and plain values; "
            "it was not loaded, because such a file can run code.",
            hint=hint,
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a cut file: torch looks for its end before its start
            raise _damaged(path, kind, "it is cut or damaged") from error
        raise kind(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # what is no pickle can stop the reader in any way
        told = isinstance(error, RuntimeError | EOFError | ValueError)
        said = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise _damaged(path, kind, said if told else "") from error


def _refuse_packed(path: Path) -> None:
    """Refuse an archive whose members unpack to far more than the file: torch packs none."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > path.stat().st_size + FREE_BYTES:
        raise ValueError(f"it unpacks to {size} bytes, far more than the file has")


def _refuse_spread(content: Any, depth: int = 0) -> None:
    """Refuse tensors that repeat few numbers so often that a copy of them would fill memory."""
    import torch

    if isinstance(content, torch.Tensor):
        if content.layout is not torch.strided:
            return
        size = content.numel() * content.element_size()
        if size > content.untyped_storage().nbytes() + FREE_BYTES:
            raise ValueError(f"a tensor of {size} bytes, far more than the file has")
    elif depth < _DEPTH and isinstance(content, Mapping | list | tuple):
        for held in content.values() if isinstance(content, Mapping) else content:
            _refuse_spread(held, depth + 1)


def _damaged(path: Path, kind: type[InputError], said: str = "") -> InputError:
    why = said or "not written by torch.save"
    return kind(f"{path}: not a readable file of tensors: {why}.", hint="fetch or copy it again")


def _harmless() -> list[Any]:
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    # The same function under the name of NumPy 1, which old files spell.
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *kinds, *((scalar, name) for name in names)]
