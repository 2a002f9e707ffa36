"""Refuse what was made from something else than a store holds now; see `store.lineage`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cytofm_cli.errors import StoreError
from cytofm_cli.store import lineage, schema

if TYPE_CHECKING:
    from cytofm_cli.store.io import Store


def require_fresh(store: Store, step: str) -> None:
    """Refuse a step that was made from something else than the store holds now.

    Raises:
        StoreError: it is stale; says how to make it again.
    """
    if (why := why_stale(store, step)) is not None:
        raise StoreError(
            f"{store.path}: {step} is out of date: {why}.",
            hint=again(store, step),
        )


def why_stale(store: Store, step: str) -> str | None:
    """Say why a step does not belong to what it was made from; None if it does."""
    changed = lineage.changed_parent(store.steps, step)
    if changed is not None:
        return f"it was made from other {changed} than the store holds now"
    source = lineage.rows_from(store.steps, step)
    if source is None:
        return None
    n, n_source = (_rows(store.path, one) for one in (step, source))
    if n is None or n_source is None or n == n_source:
        return None
    return f"it has {n} rows and {source}, which it was made from, has {n_source}"


def loss_note(store: Path, step: str, gone: Sequence[str]) -> str:
    """Return the warning that a step was replaced, and what went with it."""
    return f"warning: {store.name}: {step} is replaced; it drops {', '.join(gone)}"


def say_risk(store: Store, step: str | None, note: Callable[[str], None]) -> None:
    """Say in a dry run what would go with a step that is to be made anew, if it is there."""
    below = lineage.descendants(store.steps, step) if step in store.steps else []
    if below:
        note(
            f"warning: {store.path.name}: if {step} comes out other than before, "
            f"it drops {', '.join(sorted(below))}"
        )


def _rows(path: Path, step: str) -> int | None:
    """Return the rows of a step's main array, without reading it; None if it cannot be told."""
    inner = {schema.TILE_STEP: schema.TILE_XY.path}.get(step, f"{step}/values")
    try:
        node = path / (f"{step}/xy_px0" if step.startswith("nuclei/") else inner) / "zarr.json"
        return int(json.loads(node.read_text(encoding="utf-8"))["shape"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def again(store: Store, step: str) -> str:
    """Return the hint to make a step again, with its command."""
    kind, name, unit = (*step.split("/"), "", "")[:3]
    record = store.steps.get(step, {})
    if kind == "nuclei":
        command = f"detect {store.path} --detector {name} --overwrite"
    elif kind == "embeddings":
        encoder = record.get("encoder") or name
        command = f"embed {store.path} --encoder {encoder} --unit {unit} --overwrite"
    elif kind == "attention":  # replaces its own
        command = f"mil score {record.get('run_folder', name)} {store.path}"
    else:
        command = f"tile {store.slide.get('path', '')} -o {store.path.parent} --overwrite"
    return f"make it again: cytofm {command}"
