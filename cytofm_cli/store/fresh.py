"""Tell what was made from something else than a store holds now; see `store.lineage`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cytofm_cli.errors import DAMAGE
from cytofm_cli.store import lineage, schema
from cytofm_cli.store.lineage import Steps
from cytofm_cli.store.records import SlideRecord
from cytofm_cli.work.files import read_plain


def why_stale(path: Path, steps: Steps, step: str) -> str | None:
    """Say why a step does not belong to what it was made from; None if it does.

    Args:
        path: the store.
        steps: its records.
        step: name of the step.
    """
    return _why_stale(steps, step, functools.partial(_rows, path))


def all_stale(path: Path, steps: Steps) -> dict[str, str]:
    """Say of each step that is out of date why, as `why_stale`; each array is asked once."""
    rows = functools.cache(functools.partial(_rows, path))
    told = {step: _why_stale(steps, step, rows) for step in steps}
    return {step: why for step, why in told.items() if why is not None}


def _why_stale(steps: Steps, step: str, rows: Callable[[str], int | None]) -> str | None:
    changed = lineage.changed_parent(steps, step)
    if changed is not None:
        return f"it was made from other {changed} than the store holds now"
    source = lineage.rows_from(steps, step)
    if source is None:
        return None
    n, n_source = rows(step), rows(source)
    if n is None or n_source is None or n == n_source:
        return None
    return f"it has {n} rows and {source}, which it was made from, has {n_source}"


def loss_note(store: Path, step: str, gone: Sequence[str]) -> str:
    """Return the warning that a step was replaced, and what went with it."""
    return f"warning: {store.name}: {step} is replaced; it drops {', '.join(gone)}"


def say_risk(path: Path, steps: Steps, step: str | None, note: Callable[[str], None]) -> None:
    """Say in a dry run what would go with a step that is to be made anew, if it is there."""
    below = lineage.descendants(steps, step) if step is not None and step in steps else []
    if below:
        note(
            f"warning: {path.name}: if {step} comes out other than before, "
            f"it drops {', '.join(sorted(below))}"
        )


def _rows(path: Path, step: str) -> int | None:
    """Return the rows of a step's main array, without reading it; None if it cannot be told."""
    names = {"nuclei": "xy_px0", "classes": "class"}
    inner = f"{step}/{names.get(step.partition('/')[0], 'values')}"
    try:
        inner = schema.TILE_XY.path if step == schema.TILE_STEP else inner
        return int(json.loads(read_plain(f"{path}/{inner}/zarr.json"))["shape"][0])
    except DAMAGE:
        return None


def again(path: Path, slide: SlideRecord, steps: Steps, step: str) -> str:
    """Return the hint to make a step again, with its command."""
    kind, name, unit = (*step.split("/"), "", "")[:3]
    told = steps[step].to_json() if step in steps else {}
    if kind == "nuclei":
        command = f"detect {path} --detector {name} --overwrite"
    elif kind == "embeddings":
        encoder = told.get("encoder") or name
        command = f"embed {path} --encoder {encoder} --unit {unit} --overwrite"
    elif kind == "classes":
        command = f"cells apply {told.get('run_folder', name)} {path} --overwrite"
    elif kind == "attention":  # replaces its own
        command = f"mil score {told.get('run_folder', name)} {path}"
    else:
        command = f"tile {slide.path} -o {path.parent} --overwrite"
    return f"make it again: cytofm {command}"
