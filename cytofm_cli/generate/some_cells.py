"""Some real cells of stores as a generator sees them.

Letters: N cells, H W pixels, E width of an encoder's vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import InputError
from cytofm_cli.generate.asked import open_like, plain_images, size_of
from cytofm_cli.generate.evaluate import features
from cytofm_cli.generate.frozen import FrozenEncoder

_CHUNK: Final = 64
Images = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cells:
    """Real cells.

    Attributes:
        image_N3HW: float in [0, 1], of the generator's size.
        words: STORE:NUMBER of each.
    """

    image_N3HW: Tensor
    words: tuple[str, ...]


def is_numbered(word: str) -> bool:
    """Tell STORE:NUMBER from STORE."""
    _, colon, number = word.rpartition(":")
    return bool(colon) and number.isdigit()


def store_of(word: str) -> Path:
    """Return the store of STORE:NUMBER, or of STORE."""
    return Path(word.rpartition(":")[0] if is_numbered(word) else word)


def some_cells(
    stores: Sequence[Path],
    about: Mapping[str, Any],
    n: int,
    *,
    detector: str | None = None,
    slides: Path | None = None,
) -> Cells:
    """Read up to n cells, or tiles, of stores, evenly spaced over all of them.

    Raises:
        InputError, StoreError: no such store; fewer than two cells.
    """
    with contextlib.closing(
        open_like(list(stores), about, detector=detector, slides=slides)
    ) as index:
        if index.n_tiles < 2:
            raise InputError(
                f"{', '.join(map(str, stores))}: {index.n_tiles} {index.unit}(s): how they differ "
                "cannot be told.",
                hint="name a store of at least two",
            )
        chosen = np.unique(np.linspace(0, index.n_tiles - 1, n).round().astype(np.int64)).tolist()
        parts = [
            plain_images(index, chosen[first : first + _CHUNK], size_of(about))
            for first in range(0, len(chosen), _CHUNK)
        ]
        path_of = {path.stem: path for path in stores}
        places = [index.locate(number) for number in chosen]
        words = [f"{path_of[index.slides[at].slide_id]}:{within}" for at, within in places]
    return Cells(torch.cat(parts), tuple(words))


def vectors_of(encoder: FrozenEncoder, image_N3HW: Tensor) -> Floats:
    """Return an encoder's vectors of images in [0, 1], float64 (N, E)."""
    return features(encoder, levels_of(image_N3HW))


def levels_of(image_N3HW: Tensor) -> Images:
    """Return images in [0, 1] as uint8 (N, H, W, 3)."""
    levels: Images = (image_N3HW * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return levels
