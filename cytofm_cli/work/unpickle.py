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
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import InputError

# How torch names what it refuses.
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
        mapped = mapped and zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which are read or refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
