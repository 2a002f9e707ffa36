"""What each step of a store was made from, and whether that is still what is there.

A step's record has `id`, which changes exactly when its content does, and `made_from`, the
ids of the steps that it read. A step is stale when one of those has another id by now, or is
stale itself. Records of earlier versions have neither: there a step goes by its settings and
its input (`StepRecord.mark`), and what it was made from is told by `input_fingerprint`.

Pure functions over records; `Store` asks them when it reads, `store.commit` when it commits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from cytofm_cli.store import schema
from cytofm_cli.store.chunks import hash_array
from cytofm_cli.store.records import StepRecord, is_part

Steps = Mapping[str, StepRecord]

# Beside the arrays and the settings, this is content: what the numbers mean.
_FACTS = ("classes", "columns", "tile_px", "tile_px0", "mpp", "level", "scale", "fill")
# Gigabytes that follow from the slide, the settings and the places of the tiles.
_NOT_READ = frozenset({"pixels"})


def content_id(group: Path, record: StepRecord) -> str:
    """Return the id of a step: of its arrays, its settings, and what its numbers mean.

    Args:
        group: folder of the step's arrays, staged or in place.
        record: its provenance.

    Raises:
        OSError, ValueError: an array is missing or damaged.
    """
    stored = record.to_json()
    facts = {key: stored[key] for key in _FACTS if key in stored}
    arrays = sorted(node.parent for node in group.glob("*/zarr.json"))
    if any(array.name in _NOT_READ for array in arrays) or "tile_px0" in stored:
        facts["input_fingerprint"] = record.input_fingerprint
    told = json.dumps([record.config_hash, facts], sort_keys=True)
    hasher = hashlib.sha256(told.encode())
    for array in arrays:
        if array.name not in _NOT_READ:
            hasher.update(f"\0{array.name}\0".encode())
            hash_array(array, hasher)
    return hasher.hexdigest()[:16]


def made_from(steps: Steps, *parents: str) -> dict[str, str]:
    """Return what a record says of the steps that were read: their names and ids."""
    return {parent: steps[parent].identity for parent in parents if parent in steps}


def parents_of(steps: Steps, step: str, record: StepRecord | None = None) -> tuple[str, ...]:
    """Name the steps that a step was made from, as far as they are there or it tells.

    Args:
        steps: records of the store.
        step: its name.
        record: its record, if it is not among them yet.
    """
    record = steps[step] if record is None else record
    if record.made_from is not None:
        return tuple(record.made_from)
    kind, _, rest = step.partition("/")
    unit = rest.rpartition("/")[2]
    if kind == "nuclei" or (kind == "embeddings" and unit == "tile"):
        return (schema.TILE_STEP,)
    if kind == "embeddings":
        named = record.config.get("detector")
        nuclei = [schema.nuclei_step(named)] if named else _named(steps, "nuclei/")
        ends = [name for name in nuclei if _ends_with_hash(record, steps.get(name))]
        return (schema.TILE_STEP, *(ends or nuclei))
    if kind == "attention":
        bags = [name for name in _named(steps, "embeddings/") if name.endswith(f"/{unit}")]
        right = [name for name in bags if steps[name].mark == record.input_fingerprint]
        return tuple(right or bags)
    return ()


def changed_parent(steps: Steps, step: str, record: StepRecord | None = None) -> str | None:
    """Name the step that is not any more what this one was made from; None if all are.

    Arguments as `parents_of`. A step that is not there (removed to save space) is not judged.
    """
    record = steps[step] if record is None else record
    parents = [name for name in parents_of(steps, step, record) if name in steps]
    for parent in parents:
        if (above := changed_parent(steps, parent)) is not None:
            return above
    if record.made_from is not None:
        identities = record.made_from
        return next((name for name in parents if steps[name].identity != identities[name]), None)
    # Nuclei that were removed leave the mark's end untold.
    if parents and not record.input_fingerprint.startswith(_old_mark(steps, parents)):
        return parents[-1]
    return None


def descendants(steps: Steps, step: str) -> list[str]:
    """Name all steps that were made from a step, directly or not; the last made come first."""
    later: list[str] = []
    for child in sorted(steps):
        if child != step and step in parents_of(steps, child):
            later += [child, *reversed(descendants(steps, child))]
    return list(dict.fromkeys(reversed(later)))


def rows_from(steps: Steps, step: str) -> str | None:
    """Name the step whose rows a step's rows belong to, one by one; None without one.

    A bag of what lies in regions has some of the rows alone.
    """
    if in_regions(steps, step):
        return None
    kind, unit = step.partition("/")[0], step.rpartition("/")[2]
    of_kind = {"attention": "embeddings/", "embeddings": "nuclei/", "classes": "nuclei/"}
    whose = of_kind.get(kind, "none")
    if (kind, unit) == ("embeddings", "tile"):
        whose = schema.TILE_STEP
    parents = [name for name in parents_of(steps, step) if name.startswith(whose)]
    return next((name for name in parents if name in steps), None)


def in_regions(steps: Steps, step: str) -> bool:
    """Tell whether a bag holds only those tiles or cells that lie in regions."""
    if not step.startswith("embeddings/"):
        return False
    record = steps[step]
    return is_part(getattr(record, "regions", record.other.get("regions")))


def _old_mark(steps: Steps, parents: list[str]) -> str:
    """Return the `input_fingerprint` that earlier versions would write for a step now."""
    if schema.TILE_STEP in parents:
        nuclei = [steps[name].config_hash for name in parents if name != schema.TILE_STEP]
        return "-".join([steps[schema.TILE_STEP].mark, *nuclei])
    return steps[parents[-1]].mark


def _named(steps: Steps, start: str) -> list[str]:
    return sorted(name for name in steps if name.startswith(start))


def _ends_with_hash(record: StepRecord, parent: StepRecord | None) -> bool:
    return parent is not None and record.input_fingerprint.endswith(parent.config_hash)
