"""What a user asks a generator for: a cell to be like, a class, or anything.

Letters: E width of an encoder's vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.plan import PLAIN, one_view
from cytofm_cli.pretrain.data import open_index
from cytofm_cli.pretrain.tile_index import TileIndex
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.make import make_views


@dataclass(frozen=True)
class Asked:
    """A condition of each image.

    Attributes:
        given: (n, E) vectors, (n,) classes, or None for the null condition.
        words: of each image: what its condition is, for its metadata.
        labels: of each image: the class it was asked to be, "" for none.
    """

    given: Tensor | None
    words: tuple[str, ...]
    labels: tuple[str, ...]


def ask(
    about: Mapping[str, Any],
    n: int,
    *,
    like: Sequence[str] = (),
    of_class: str | None = None,
    encoder: str | None = None,
    detector: str | None = None,
    slides: Path | None = None,
) -> Asked:
    """Return the conditions of n images.

    Args:
        about: of the generator.
        n: images.
        like: STORE:NUMBER of cells (or tiles), taken in turn.
        of_class: a class.
        encoder: whose vectors, instead of the one that it was trained with.
        detector: whose nuclei the numbers count.
        slides: folder where the slides lie now.

    Raises:
        UsageError: the generator takes no such condition; no such class.
        InputError: no such cell; another encoder than the one of training.
    """
    kind = about["sit"]["condition"]["kind"]
    if like and of_class is not None:
        raise UsageError("--like and --class: one condition, not two.")
    if of_class is not None:
        if kind != "class":
            raise UsageError(
                f"--class {of_class}: this generator has no classes, its condition is {kind}.",
                hint="--like STORE:CELL" if kind == "encoder" else None,
            )
        number = _number_of(of_class, about.get("classes", []))
        return Asked(torch.full((n,), number), (f"class {of_class}",) * n, (of_class,) * n)
    if like:
        if kind != "encoder":
            raise UsageError(
                f"--like: this generator takes no encoder's vector, its condition is {kind}.",
                hint="--class NAME" if kind == "class" else None,
            )
        images = torch.cat(
            [read_like(word, about, detector=detector, slides=slides) for word in like]
        )
        seen = condition_encoder(about, encoder)(images).vector_BV
        turns = [at % len(like) for at in range(n)]
        return Asked(seen[turns], tuple(f"like {like[at]}" for at in turns), ("",) * n)
    return Asked(None, ("none",) * n, ("",) * n)


def condition_encoder(about: Mapping[str, Any], word: str | None = None) -> FrozenEncoder:
    """Open the encoder whose vectors a generator takes.

    Raises:
        UsageError: nobody says which one; vectors of another width.
        InputError: other weights than those of training.
    """
    name = word or about.get("encoder")
    if not name:
        raise UsageError(
            "the file does not say whose vectors its condition is.", hint="--encoder NAME=FILE"
        )
    encoder = FrozenEncoder(name, grid=1)
    width = about["sit"]["condition"]["dim"]
    if encoder.dim != width:
        raise UsageError(
            f"encoder {encoder.spec.name} gives vectors of width {encoder.dim}; the generator was "
            f"trained with {width}.",
            hint="name the encoder that it was trained with",
        )
    trained = about.get("encoder_sha256")
    if trained and encoder.spec.weights_sha256 != trained:
        raise InputError(
            f"encoder {encoder.spec.name} has other weights than the generator was trained with "
            f"(SHA-256 {str(encoder.spec.weights_sha256)[:12]}…, then {trained[:12]}…).",
            hint="--encoder NAME=FILE with those weights",
        )
    return encoder


def read_like(
    word: str,
    about: Mapping[str, Any],
    *,
    detector: str | None = None,
    slides: Path | None = None,
) -> Tensor:
    """Return the image of STORE:NUMBER as the generator saw such, float (1, 3, H, W) in [0, 1].

    Raises:
        UsageError: not STORE:NUMBER.
        InputError, StoreError: no such store, or cell.
    """
    store, colon, number = word.rpartition(":")
    if not colon or not number.isdigit():
        raise UsageError(f"--like {word}: must be STORE:NUMBER.", hint="--like stores/a.zarr:0")
    index = open_like([Path(store)], about, detector=detector, slides=slides)
    with contextlib.closing(index):
        if int(number) >= index.n_tiles:
            raise InputError(
                f"{word}: the store has {index.n_tiles} {index.unit}s, counted from 0."
            )
        return plain_images(index, [int(number)], size_of(about))


def open_like(
    stores: Sequence[Path],
    about: Mapping[str, Any],
    *,
    detector: str | None = None,
    slides: Path | None = None,
) -> TileIndex:
    """Open stores so that their cells, or tiles, are those that a generator was trained on."""
    cells = about.get("unit", "cell") == "cell"
    side_um = about.get("side_um")
    if cells and not side_um:
        raise UsageError(
            "the file does not say how large a square its images show.", hint="--side-um 112"
        )
    return open_index(
        stores,
        detector,
        need_nuclei=cells,
        cell_um=side_um if cells else None,
        slides=slides,
    )


def plain_images(index: TileIndex, tiles: Sequence[int], size_px: int) -> Tensor:
    """Return tiles or cells as images of a generator, unturned: float (B, 3, H, W) in [0, 1]."""
    batch = index.read(tiles, PLAIN)
    views = make_views(
        batch.tile_BCHW,
        batch.xy_BM2,
        batch.valid_BM,
        recipe=one_view(size_px, turned=False),
        ncp=PLAIN,
        mpp=index.mpp,
        keys_B=sample_keys(0, tiles),
        margin_px=batch.margin_px,
    )
    return views.views[0].clamp(0, 1)


def size_of(about: Mapping[str, Any]) -> int:
    """Return the side of a generator's images, pixels."""
    factor = 2 ** (len(about["vae"]["multipliers"]) - 1)
    return int(about["sit"]["side"] * factor)


def _number_of(name: str, classes: Sequence[str]) -> int:
    """Return the number of a class; classes of a file that names none are numbers.

    Raises:
        UsageError: there is none.
    """
    if name in classes:
        return list(classes).index(name)
    if not classes and name.isdigit():
        return int(name)
    known = f"known: {', '.join(classes)}" if classes else "its classes are numbers"
    raise UsageError(f"--class {name}: the generator was trained on no such class.", hint=known)
