"""Load code of the official repositories by path, and run it in float64 on a CPU.

Nothing of that code is copied here: two of the licences are GPLv3, one repository has none.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor


def load(root: Path, name: str, **stubs: object) -> ModuleType:
    """Import a module of a repository, and forget its siblings: every repository has a `utils`.

    Args:
        root: folder that the repository's own imports start from.
        name: name below it, with at most one dot; what the package itself imports is left out.
        stubs: modules that are not needed for the numbers, by name with `__` for a dot.
    """
    replaced = {key.replace("__", "."): value for key, value in stubs.items()}
    top = name.partition(".")[0]
    if top != name:
        package = replaced[top] = ModuleType(top)
        package.__path__ = [str(root / top)]
    before = dict(sys.modules)
    for key in [key for key in before if key.partition(".")[0] == top]:
        del sys.modules[key]  # another version of it
    sys.modules.update(replaced)
    with patch.object(sys, "path", [str(root), *sys.path]), patch.object(sys, "argv", sys.argv[:1]):
        module = importlib.import_module(name)
    for key, imported in list(sys.modules.items()):
        own = str(root) in str(getattr(imported, "__file__", None) or "")
        if key in replaced or (own and key not in before):
            del sys.modules[key]
    sys.modules.update(before)
    return module


def transmil_optimizer(root: Path) -> tuple[type, type]:
    """Return the classes Lookahead and RAdam, without the eleven other optimisers beside them."""
    lookahead, radam = (load(root, f"MyOptimizer.{name}") for name in ("lookahead", "radam"))
    return lookahead.Lookahead, radam.RAdam


def less_crossvit(root: Path) -> ModuleType:
    """Import the aggregator, whose module reads the command line of the training script."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--features", default="VPU")
    return load(
        root / "1-WSI_aggregation",
        "models.crossvit",
        main=SimpleNamespace(get_args_parser=lambda: parser),
        prettytable=MagicMock(),
        torchsummary=MagicMock(),
    )


def less_vpu(root: Path) -> ModuleType:
    """Import the VPU training, without the data sets and pictures that it imports."""
    names = ("utils", "utils__checkpoint", "utils__func", "utils__feature")
    names += ("dataset", "dataset__dataset_urine", "matplotlib", "matplotlib__pyplot")
    module = load(root / "0-feature_extraction", "vpu", **{name: MagicMock() for name in names})
    module.AverageMeter = Meter  # a running mean, for the log; here of one batch
    return module


class Meter:
    """A running mean."""

    def __init__(self) -> None:
        self.sum = self.count = 0.0

    def update(self, value: float, n: int = 1) -> None:
        """Add n equal values."""
        self.sum, self.count = self.sum + value * n, self.count + n

    @property
    def avg(self) -> float:
        """Return the mean."""
        return self.sum / self.count


@contextmanager
def in_float64() -> Iterator[None]:
    """Turn what the code asks for, float32 and a GPU, into float64 on the CPU.

    So its arithmetic is compared, not its round-off.
    """
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(patch.object(Tensor, "float", Tensor.double))
        stack.enter_context(patch.object(Tensor, "cuda", lambda self, *_args, **_named: self))
        stack.enter_context(patch.object(torch, "float32", torch.float64))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
