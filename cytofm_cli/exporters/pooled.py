"""Slides as one table: a vector a slide, pooled over its tiles or cells without any training.

An AnnData file: `X` has a row a slide, `obs` how many instances it stands for, `uns["cytofm"]`
whose features were pooled and how. Nothing is learnt, so nothing can leak.

Letters: N instances, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

import cytofm_cli
from cytofm_cli.errors import InputError, StoreError
from cytofm_cli.exporters import anndata
from cytofm_cli.store import schema
from cytofm_cli.store.blocks import ROWS
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.work.files import replacing

Pool = Literal["mean", "max", "counts"]
POOLS: Final[tuple[Pool, ...]] = ("mean", "max", "counts")
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SlideVector:
    """One slide.

    Attributes:
        slide_id: its name.
        values: its numbers.
        names: what each is; the same for all slides of a table.
        n: instances that they stand for.
        about: whose features and classes they are.
    """

    slide_id: str
    values: Floats
    names: tuple[str, ...]
    n: int
    about: tuple[tuple[str, str], ...]


def pool_values(blocks: Sequence[NDArray[Any]], how: Pool) -> Floats:
    """Return the mean or the largest value of each feature over all instances, (D,).

    Args:
        blocks: (n, D) each, together at least one instance.
        how: "mean" or "max".
    """
    if how == "max":
        largest: Floats = np.max([block.max(0) for block in blocks], axis=0).astype(np.float64)
        return largest
    total: Floats = np.sum([block.sum(0, dtype=np.float64) for block in blocks], axis=0)
    return total / sum(map(len, blocks))


def class_shares(class_N: NDArray[np.integer[Any]], n_classes: int) -> Floats:
    """Return the share of cells of each class, (C,); sums to 1."""
    counts = np.bincount(class_N, minlength=n_classes).astype(np.float64)
    shares: Floats = counts / counts.sum()
    return shares


def slide_vector(
    path: Path,
    pools: Sequence[Pool],
    *,
    encoder: str | None,
    unit: str,
    detector: str | None,
    classes: str | None,
) -> SlideVector:
    """Pool what a store holds of its slide.

    Args:
        path: the store.
        pools: in the order of the numbers.
        encoder: whose embeddings, of mean and max; None: the only ones.
        unit: "tile" or "cell".
        detector: whose nuclei's classes, of counts, where no RUN of `cells apply` has any.
        classes: that RUN; None: the only one, else the detector's classes.

    Raises:
        StoreError: it holds none of these, or not one instance.
    """
    store = open_store(path)
    values: list[Floats] = []
    names: list[str] = []
    about: dict[str, str] = {}
    n = 0
    for how in pools:
        if how == "counts":
            shares, words, whose = _counts(store, detector, classes)
            values.append(shares)
            names += [f"share of {word}" for word in words]
            about["classes"] = whose
            n = n or len(store.nuclei_xy_px0(detector))
            continue
        key = store.which_encoder(encoder, unit)
        step = schema.embedding_step(key, unit)
        store.require_fresh(step)
        blocks = _blocks(store, step)
        n = sum(map(len, blocks))
        if n == 0:
            raise StoreError(f"{path}: its bag of {unit}s is empty.", hint="leave the slide out")
        values.append(pool_values(blocks, how))
        names += [f"{key} {how} {i}" for i in range(len(values[-1]))]
        about |= {"encoder": key, "unit": unit}
    joined = np.concatenate(values)
    return SlideVector(store.slide_id, joined, tuple(names), n, tuple(about.items()))


def _blocks(store: Store, step: str) -> list[NDArray[Any]]:
    with store.rows(f"{step}/values") as rows:
        return [rows.read(i, i + ROWS) for i in range(0, rows.shape[0], ROWS)]


def _counts(
    store: Store, detector: str | None, classes: str | None
) -> tuple[Floats, Sequence[str], str]:
    """Return shares, names of the classes, and whose they are."""
    by_run = classes is not None or any(step.startswith("classes/") for step in store.steps)
    if by_run:
        key = store.which_classes(classes)
        step = f"classes/{key}"
        store.require_fresh(step)
        words: Sequence[str] = store.classes_record(key).classes
        class_N = store.read(f"{step}/class")
        class_N = class_N[store.read(f"{step}/abstained") == 0]
    else:
        key = store.which_detector(detector)
        nuclei = store.nuclei(key)
        words, class_N = nuclei.classes, nuclei.class_id
    if len(class_N) == 0:
        raise StoreError(f"{store.path}: no nucleus has a class.", hint="leave the slide out")
    return class_shares(class_N, len(words)), words, key


def write_slides(path: Path, slides: Sequence[SlideVector], pools: Sequence[Pool]) -> None:
    """Write the table of all slides, complete or not at all.

    Raises:
        InputError: two slides were pooled from other things.
        OutputError, DiskFullError: it cannot be written.
    """
    first = slides[0]
    for other in slides:
        if (other.names, other.about) != (first.names, first.about):
            theirs, ours = (", ".join(f"{k} {v}" for k, v in of.about) for of in (other, first))
            raise InputError(
                f"{other.slide_id}: pooled from {theirs}; {first.slide_id} from {ours}.",
                hint="name --encoder, --unit or --classes, or export them apart",
            )
    told = {"pools": ", ".join(pools), "cytofm": cytofm_cli.__version__, **dict(first.about)}
    with replacing(path) as partial:
        _fill(partial, slides, told)


def _fill(path: Path, slides: Sequence[SlideVector], told: dict[str, str]) -> None:
    import h5py

    with h5py.File(path, "w", locking=False) as file:
        names = slides[0].names
        anndata.begin(file, n_obs=len(slides), var=names, uns={"cytofm": told})
        file["X"][:] = np.stack([slide.values for slide in slides]).astype(np.float32)
        obs = anndata.frame(file, "obs", ("n_instances",))
        ids = anndata.strings(obs, anndata.INDEX, len(slides))
        ids[:] = np.array([slide.slide_id for slide in slides], object)
        counts = anndata.array(obs, "n_instances", (len(slides),), np.int64)
        counts[:] = [slide.n for slide in slides]


def pool_slides(
    paths: Sequence[Path],
    out: Path,
    pools: Sequence[Pool],
    *,
    encoder: str | None = None,
    unit: str = "tile",
    detector: str | None = None,
    classes: str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[SlideVector]:
    """Pool every store into a row of one file; arguments as of `slide_vector`.

    Raises:
        StoreError, InputError: a store cannot be pooled, or not as the others.
    """
    slides = []
    for done, path in enumerate(paths, start=1):
        how = {"encoder": encoder, "detector": detector, "classes": classes}
        slides.append(slide_vector(path, pools, unit=unit, **how))
        report(done, len(paths))
    write_slides(out, slides, pools)
    return slides
