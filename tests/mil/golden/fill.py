"""Numbers that both sides of the comparison make for themselves, so that no weight is stored.

The official implementations (`make_golden.py`) and our heads (`test_mil_golden.py`) are filled
with the same numbers: a name gives a seed, the seed the raw words of PCG64, whose stream NumPy
guarantees. All of them are exact in float32.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

UNIT = 3**0.5  # numbers in (-√3, √3) have variance 1
DIRECTIONS = 2


def numbers(name: str, *shape: int, scale: float = UNIT, around: float = 0.0) -> Tensor:
    """Return float64 numbers in around ± scale; a shorter leading axis gives the first of them."""
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    values = ((words >> np.uint64(40)) * 2.0**-23 - 1) * scale + around
    return torch.from_numpy(values.astype(np.float32).astype(np.float64)).reshape(shape)


def bag(name: str, n: int, width: int) -> Tensor:
    """Return n instances (n, width) of variance 1."""
    return numbers(f"bag {name}", n, width)


def permutation(name: str, n: int) -> Tensor:
    """Return a permutation of n."""
    return numbers(f"permutation {name}", n).argsort()


def weights(model: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return a state for the parameters of an official model, by their official names."""
    return {name: _weight(name, f"{model} {name}", tuple(shape)) for name, shape in shapes.items()}


def _weight(name: str, seed: str, shape: tuple[int, ...]) -> Tensor:
    if "token" in name:
        return numbers(seed, *shape)
    if len(shape) > 1:  # half again as wide as keeps the variance: attention is far from even
        return numbers(seed, *shape, scale=1.5 * UNIT / math.prod(shape[1:]) ** 0.5)
    return numbers(seed, *shape, scale=0.2, around=1.0 if name.endswith("weight") else 0.0)


def digest(model: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum tensors up, a row each: their norm and their products with random directions.

    The products tell what a norm does not: a sign, a swapped row, a factor on one element.
    """
    rows = []
    for name, tensor in tensors.items():
        flat = tensor.detach().double().flatten()
        rows.append(
            torch.cat([flat.norm()[None], _directions(f"{model} {name}", len(flat)) @ flat])
        )
    return torch.stack(rows)


@cache
def _directions(name: str, n: int) -> Tensor:
    return numbers(f"direction {name}", DIRECTIONS, n)
