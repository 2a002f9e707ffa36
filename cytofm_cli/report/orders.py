"""The orders in which a gallery shows the nuclei of a store: a number for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError, UsageError
from cytofm_cli.store import lineage, schema
from cytofm_cli.store.io import Store

CLASS, OUTLIER, CLASSES, ATTENTION = "class", "outlier", "classes", "attention"
_BASIC: Final = {
    "area_um2": "area of the nucleus, µm²",
    "probability": "confidence of the detector",
}
MEASURES: Final = _BASIC | {name: kind.doc for name, kind in schema.NUCLEI_COLUMNS.items()}
NAMES: Final = (*MEASURES, CLASS, OUTLIER, CLASSES, ATTENTION)
# What is shown where nothing is asked for, as far as a store has it.
DEFAULT: Final = (OUTLIER, CLASSES, CLASS, "area_um2", "optical_density")


@dataclass(frozen=True, eq=False)
class Order:
    """A number for each nucleus of a store.

    Attributes:
        name: as it is asked for.
        group: which of several galleries of this order: a class, or a column of a head; "" for
            the only one.
        says: what the number is.
        values_N: float64 (N,); NaN: the nucleus does not take part.
    """

    name: str
    group: str
    says: str
    values_N: NDArray[np.float64]


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no order.

    Raises:
        UsageError: names it, and lists all.
    """
    if wrong := [name for name in names if name not in NAMES]:
        raise UsageError(f"--by {wrong[0]}: no such order.", hint=f"choose of {', '.join(NAMES)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--by {twice[0]} is named twice.")


def orders_of(
    store: Store, name: str, detector: str, *, encoder: str | None, run: str | None
) -> Iterator[Order]:
    """Yield an order of a store, or several: one a class or column.

    Args:
        store: with nuclei.
        name: of the order.
        detector: whose nuclei.
        encoder: whose embeddings; None: the only ones.
        run: whose classes or attention; None: the only ones.

    Raises:
        StoreError: the store does not have what the order needs; says how to make it.
    """
    step = schema.nuclei_step(detector)
    if name == OUTLIER:
        yield _outlier(store, step, encoder)
    elif name == CLASSES:
        yield from _classes(store, step, run)
    elif name == ATTENTION:
        yield from _attention(store, step, run)
    elif name == CLASS:
        yield from _by_class(store, step, detector)
    else:
        if not store.has(f"{step}/{name}"):
            raise StoreError(
                f"{store.path}: {step} has no {name}.",
                hint="detectors measure it since version 0.2: `cytofm detect --overwrite`",
            )
        yield Order(name, "", MEASURES[name], store.read(f"{step}/{name}").astype(np.float64))


def _by_class(store: Store, step: str, detector: str) -> Iterator[Order]:
    names = store.nuclei_record(detector).classes
    class_N = store.read(f"{step}/class")
    sure_N = store.read(f"{step}/probability").astype(np.float64)
    for number, group in enumerate(names):
        mine = class_N == number
        if mine.any():
            yield Order(CLASS, group, "confidence of the detector", np.where(mine, sure_N, np.nan))


def _outlier(store: Store, step: str, encoder: str | None) -> Order:
    from cytofm_cli.cells.outliers import unlikeness

    key = store.which_encoder(encoder, "cell")
    bag = schema.embedding_step(key, "cell")
    store.require_fresh(bag)
    store.require_all_rows(bag)
    _require_rows(store, bag, step)
    x_ND = store.read(f"{bag}/values").astype(np.float64)
    if not np.isfinite(x_ND).all():
        raise StoreError(f"{store.path}: {bag} holds NaN or infinity.", hint="embed it anew")
    says = f"distance from most cells of the slide in {key}, about 1 for a cell like them"
    return Order(OUTLIER, "", says, unlikeness(x_ND))


def _classes(store: Store, step: str, run: str | None) -> Iterator[Order]:
    record, key = store.classes_record(run), store.which_classes(run)
    classes = schema.classes_step(key)
    store.require_fresh(classes)
    _require_rows(store, classes, step)
    p_NC = store.read(f"{classes}/probability").astype(np.float64)
    for number, group in enumerate(record.classes):
        says = f"probability of the class by {key} ({record.basis})"
        yield Order(CLASSES, group, says, p_NC[:, number])


def _attention(store: Store, step: str, run: str | None) -> Iterator[Order]:
    there = sorted(
        name.split("/")[1]
        for name in store.steps
        if name.startswith("attention/") and name.endswith("/cell")
    )
    key = schema.node_name(run) if run else there[0] if len(there) == 1 else ""
    record = store.attention_record(key, "cell") if key else None
    if record is None:
        what = f"attention of {len(there)} RUNs" if there and not run else "no attention of cells"
        hint = f"--run {there[0]}" if there else "`cytofm mil score RUN STORES` writes it"
        raise StoreError(f"{store.path}: holds {what}.", hint=hint)
    attention = schema.attention_step(key, "cell")
    store.require_fresh(attention)
    bag = lineage.rows_from(store.steps, attention)
    if bag is not None and bag.startswith("embeddings/"):
        store.require_all_rows(bag)
    _require_rows(store, bag or attention, step)
    values_NK = store.read(f"{attention}/values").astype(np.float64)
    for number, column in enumerate(record.columns):
        is_score = column.startswith("score_")
        # Attention sums to 1 over a slide: of slides with more cells each has less.
        values_N = values_NK[:, number] * (1 if is_score else len(values_NK))
        says = "score of the instance" if is_score else "attention, 1 if all cells counted alike"
        yield Order(ATTENTION, column, f"{says}, by {key} ({record.basis})", values_N)


def _require_rows(store: Store, made: str, step: str) -> None:
    """Refuse rows that are not those of the nuclei.

    Raises:
        StoreError: they are of another detector.
    """
    if made != step and step not in _ancestors(store, made):
        raise StoreError(
            f"{store.path}: {made} is not of {step}.", hint="--detector or --encoder names another"
        )


def _ancestors(store: Store, step: str) -> set[str]:
    seen: set[str] = set()
    todo = [step]
    while todo:
        name = todo.pop()
        parents = set(lineage.parents_of(store.steps, name)) if name in store.steps else set()
        todo += sorted(parents - seen)
        seen |= parents
    return seen


def best_rows(
    values_N: NDArray[np.float64], count: int, *, lowest: bool = False
) -> NDArray[np.int64]:
    """Return the rows of the largest (or smallest) values in order; of equal ones the first."""
    key_N = values_N if lowest else -values_N
    order_N: NDArray[Any] = np.argsort(key_N, kind="stable")
    return np.asarray(order_N[np.isfinite(values_N[order_N])][:count])
