"""A bag: the features of one slide in memory, and what makes it unfit to learn from.

Legend: N instances, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.mil.origin import UNKNOWN, Origin
from cytofm_cli.store.records import OUT_OF_FOLD, TRAINING
from cytofm_cli.words import named

# A head multiplies features, the gradient of a product of two grows with the third power, and
# Adam squares it: up to 1e6 the sixth power (1e36) stays below float32's 3.4e38. No encoder gives
# as much; damaged files do.
LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Bag:
    """The instances of one slide.

    Attributes:
        slide_id: name of the slide.
        features_ND: float16 or float32 (N, D), finite, N ≥ 1; may be mapped from a file.
        xy_px0: int32 (N, 2), level-0 pixels (x, y), or None where the file has none.
        origin: what made the features from what, as far as the file says.
        basis: of classes of cells: whether what made them had seen the slide; "" for embeddings.
    """

    slide_id: str
    features_ND: NDArray[np.float16] | NDArray[np.float32]
    xy_px0: NDArray[np.int32] | None = None
    origin: Origin = UNKNOWN
    basis: str = ""

    @property
    def encoder(self) -> str:
        """Return what made the features; "" if nothing says."""
        return self.origin.encoder

    def __reduce__(self) -> tuple[object, ...]:
        """Send a mapped bag to a worker process as the place in its file."""
        features = self.features_ND
        if not isinstance(features, np.memmap):
            return Bag, (self.slide_id, features, self.xy_px0, self.origin, self.basis)
        place = (features.filename, features.offset, features.shape, features.dtype.str)
        return _mapped_bag, (self.slide_id, place, self.xy_px0, self.origin, self.basis)


def map_features(path: Path, start: int, shape: tuple[int, ...], dtype: str) -> Any:
    """Map features from a file; writing to the array changes memory, never the file."""
    return np.memmap(path, dtype=dtype, mode="c", offset=start, shape=shape)


def _mapped_bag(
    slide_id: str, place: tuple[Any, ...], xy_px0: Any, origin: Origin, basis: str
) -> Bag:
    return Bag(slide_id, map_features(*place), xy_px0, origin, basis)


def check_bags(bags: Sequence[Bag]) -> None:
    """Refuse bags that cannot be trained on or scored.

    Raises:
        InputError: empty bag, features that are NaN, infinite or beyond `LARGEST`, mixed widths,
            doubled ids.
    """
    ids = [bag.slide_id for bag in bags]
    _refuse({i for i in ids if ids.count(i) > 1} if len(set(ids)) < len(ids) else (), "come twice")
    _refuse(
        [bag.slide_id for bag in bags if len(bag.features_ND) == 0],
        "have an empty bag (no instances)",
        "leave these slides out, or lower `--min-foreground` in `cytofm tile`",
    )
    _refuse(
        [bag.slide_id for bag in bags if not np.isfinite(bag.features_ND).all()],
        "have NaN or infinite features",
        "embed these slides again with `--overwrite`",
    )
    beyond = {bag.slide_id: size for bag in bags if (size := largest(bag)) > LARGEST}
    _refuse(
        beyond,
        f"have features beyond ±{LARGEST:g} (up to {max(beyond.values(), default=0):.3g}), which "
        "float32 cannot multiply",
        "a damaged file? Embed these slides again, or scale the features of all slides",
    )
    first: dict[int, str] = {}
    for bag in bags:
        first.setdefault(bag.features_ND.shape[1], bag.slide_id)
    if len(first) > 1:
        (a, slide_a), (b, slide_b) = list(first.items())[:2]
        raise InputError(
            f"bags do not fit together: {slide_a} is {a}, {slide_b} is {b} (features wide).",
            hint="choose one encoder with `--encoder`, or use separate folders",
        )


def largest(bag: Bag) -> float:
    """Return a bound on the magnitude of a bag's features: exact for float32."""
    x_ND = bag.features_ND
    if x_ND.dtype == np.float16:  # never beyond LARGEST, and NumPy is slow at them
        return float(np.finfo(np.float16).max)
    return max(float(x_ND.max()), -float(x_ND.min())) if x_ND.size else 0.0


def notes(bags: Iterable[Bag]) -> list[str]:
    """Say which bags cannot be told from failed embeddings, or know too much."""
    bags = list(bags)
    lines = []
    if alike := [bag.slide_id for bag in bags if not bag.basis and _is_constant(bag.features_ND)]:
        lines.append(
            f"{len(alike)} slide(s) hold one number everywhere, as failed ones do: {named(alike)}"
        )
    if seen := [bag.slide_id for bag in bags if bag.basis == TRAINING]:
        lines.append(
            f"the classifier of cells has learnt from {len(seen)} of these slides or their "
            f"patients ({named(seen)}): scores on them are too good"
        )
    if crossed := [bag.slide_id for bag in bags if bag.basis == OUT_OF_FOLD]:
        lines.append(
            f"{len(crossed)} slide(s) were classified by classifiers of cells that had held them "
            "out, but not the other slides of a test fold: label cells of other patients for a "
            "score that owes nothing to them"
        )
    return lines


def _is_constant(x_ND: NDArray[Any]) -> bool:
    first = x_ND[0, 0]
    return x_ND.size > 1 and bool((x_ND[0] == first).all()) and bool((x_ND == first).all())


def fingerprint(bags: Iterable[Bag]) -> str:
    """Return a hash of ids and features, to know whether a run saw the same input."""
    state = hashlib.sha256()
    for bag in bags:
        half = "float16\0" if bag.features_ND.dtype == np.float16 else ""
        state.update(f"{bag.slide_id}\0{bag.features_ND.shape}\0{half}".encode())
        state.update(np.ascontiguousarray(bag.features_ND).view(np.uint8).data)
    return state.hexdigest()[:16]


def _refuse(ids: Iterable[str], what: str, hint: str | None = None) -> None:
    ids = list(ids)
    if ids:
        raise InputError(f"{len(ids)} slide(s) {what}: {named(ids)}.", hint=hint)
