"""Open, stage and commit stores: every step becomes visible in one atomic rename.

A step writes into a hidden staging folder beside the store, with its provenance record in
the attributes of the staged group, and is renamed into place when complete. The root then
gets a copy of the record; a process killed between the two leaves a step that is complete
and only missing from the root's list, which the next writer adds (`_update_root`). What was
made from a step goes before the step itself is replaced (`cytofm_cli.store.lineage`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import differences
from cytofm_cli.errors import ConfigMismatchError, InputError, StoreError, TryAgainError
from cytofm_cli.store import lineage, schema
from cytofm_cli.store.fresh import again, require_fresh, why_stale
from cytofm_cli.store.staging import (
    aside_of,
    check_slide_id,
    claim_step,
    commit_claim,
    staging,
    tidy,
)
from cytofm_cli.store.zarr3 import write_group
from cytofm_cli.work.claim import claim
from cytofm_cli.work.files import flush_folder, remove_partials, write_json

# All that a step needs of a store is found here.
__all__ = ["check_slide_id", "claim_step", "require_fresh", "staging", "tidy"]

COMMIT_WAIT_S = 60.0


@dataclass(frozen=True)
class Store:
    """One slide's store, opened for reading.

    Attributes:
        path: the `.zarr` folder.
        slide: facts of the slide.
        steps: provenance record of each finished step, by name.
    """

    path: Path
    slide: dict[str, Any]
    steps: dict[str, dict[str, Any]]

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.path.name.removesuffix(schema.STORE_SUFFIX)

    def read(self, array: str) -> NDArray[Any]:
        """Read a whole array into memory.

        Raises:
            StoreError: it is not there or damaged.
        """
        import zarr

        try:
            return np.asarray(zarr.open_array(self.path / array, mode="r")[...])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            step = next((one for one in self.steps if array.startswith(f"{one}/")), None)
            raise StoreError(
                f"{self.path}: {array} cannot be read ({type(error).__name__}: {error}).",
                hint=f"the store is damaged; {again(self, step or schema.TILE_STEP)}",
            ) from error

    def has(self, array: str) -> bool:
        """Tell whether the store holds an array."""
        return (self.path / array / "zarr.json").is_file()


@dataclass(frozen=True)
class Embeddings:
    """A bag as it lies in a store.

    Attributes:
        values: float (n, d), one row an instance.
        xy_px0: int32 (n, 2), corner of a tile or centre of a cell, level-0 pixels.
        encoder: key of the encoder in the store.
        provenance: record of the step that made it.
    """

    values: NDArray[np.floating[Any]]
    xy_px0: NDArray[np.int32]
    encoder: str
    provenance: dict[str, Any]


def store_path(stores: Path, slide_id: str) -> Path:
    """Return where the store of a slide lies."""
    return stores / f"{slide_id}{schema.STORE_SUFFIX}"


def list_stores(folder: Path) -> list[Path]:
    """Return the stores in a folder, sorted by name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    found = sorted(
        path
        for path in folder.glob(f"*{schema.STORE_SUFFIX}")
        if not path.name.startswith(".") and is_store(path)
    )
    if not found:
        raise InputError(f"{folder}: holds no stores.", hint="make some with `cytofm tile`.")
    return found


def is_store(path: Path) -> bool:
    """Tell whether a folder is one of our stores."""
    return schema.ATTRIBUTES_KEY in _attributes(path)


def open_store(path: Path) -> Store:
    """Open a finished store.

    Raises:
        StoreError: missing, no cytofm store, or of a newer schema.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such store.")
    content = _attributes(path).get(schema.ATTRIBUTES_KEY)
    if not isinstance(content, dict):
        raise StoreError(f"{path}: is no store of cytofm.", hint="make one with `cytofm tile`.")
    version = content.get("schema")
    if version != schema.SCHEMA_VERSION:
        raise StoreError(
            f"{path}: has store schema {version}, this cytofm reads {schema.SCHEMA_VERSION}.",
            hint="update cytofm, or tile the slide again.",
        )
    listed, slide = content.get("steps"), content.get("slide")
    if not isinstance(listed, dict) or not isinstance(slide, dict):
        raise StoreError(f"{path}: its root is damaged.", hint="`cytofm tile --overwrite` it.")
    steps = {**listed, **_orphans(path, listed)}
    there = {name: record for name, record in steps.items() if _has_group(path, name)}
    return Store(path=path, slide=slide, steps=there)


def read_embeddings(path: Path, encoder: str | None, unit: str) -> Embeddings:
    """Read a bag from a store.

    Args:
        path: the store.
        encoder: name of the encoder; None takes the only one there is.
        unit: "tile" or "cell".

    Raises:
        StoreError: no such embedding, several and none named, or what it was made from is
            not what the store holds now.
    """
    store = open_store(path)
    step = name_of_embeddings(store, encoder, unit)
    return Embeddings(
        values=store.read(f"{step}/values"),
        xy_px0=store.read(f"{step}/xy_px0"),
        encoder=step.split("/")[1],
        provenance=store.steps[step],
    )


def name_of_embeddings(store: Store, encoder: str | None, unit: str) -> str:
    """Return the embedding step that is meant; None means the only encoder there is.

    Raises:
        StoreError: no such embedding, several and none named, or what it was made from is
            not what the store holds now.
    """
    path = store.path
    there = sorted(
        name.split("/")[1]
        for name in store.steps
        if name.startswith("embeddings/") and name.endswith(f"/{unit}")
    )
    if encoder is None:
        if len(there) != 1:
            hint = f"--encoder {there[0]}" if there else "make some with `cytofm embed`."
            found = f"{len(there)} encoders ({', '.join(there)})" if there else "no embeddings"
            raise StoreError(f"{path}: holds {found} for unit {unit}.", hint=hint)
        encoder = there[0]
    step = schema.embedding_step(encoder, unit)
    if step not in store.steps:
        hint = f"it holds {', '.join(there)}." if there else "make them with `cytofm embed`."
        raise StoreError(f"{path}: no {unit} embeddings of encoder {encoder!r}.", hint=hint)
    require_fresh(store, step)
    return step


def is_finished(
    path: Path, step: str, *, config: Mapping[str, Any], input_fingerprint: str
) -> bool:
    """Tell whether a step is done with these settings on this input.

    Raises:
        ConfigMismatchError: it is done with other settings or on another input; names them.
    """
    if not path.exists():
        return False
    store = open_store(path)
    done = store.steps.get(step)
    if done is None:
        return False
    differing = differences(done["config"], config)
    if done["input_fingerprint"] != input_fingerprint or why_stale(store, step) is not None:
        differing.append("the input itself has changed")
    if differing:
        # Only the tile step chooses its folder; the others write into the store they read.
        keep = ", another -o keeps both" if step == schema.TILE_STEP else ""
        raise ConfigMismatchError(
            f"{path}: {step} was made with other settings: {'; '.join(differing)}.",
            hint=f"--overwrite makes it anew{keep}.",
        )
    return True


def commit_store(
    staged: Path, path: Path, *, slide: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Make a new store visible; `staged` holds the nodes of the tile step.

    An older store of the slide is replaced whole: its later steps saw other tiles.

    Raises:
        ClaimHeldError: another process keeps changing the store.
    """
    record = {**record, "id": lineage.content_id(staged / "tiles", record)}
    write_group(staged / "tiles", {schema.ATTRIBUTES_KEY: record})
    content = {
        "schema": schema.SCHEMA_VERSION,
        "slide": dict(slide),
        "steps": {schema.TILE_STEP: record},
    }
    write_group(staged, {schema.ATTRIBUTES_KEY: content})
    flush_folder(staged)
    aside = aside_of(path)
    with claim(commit_claim(path), wait_s=COMMIT_WAIT_S):
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        staged.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


def commit_group(staged: Path, path: Path, step: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Make a step's group visible in an existing store, and list it in the root.

    Args:
        staged: folder with the arrays of the step.
        path: the store.
        step: name of the step.
        record: its provenance; without `made_from`, what the store holds now is noted.

    Returns:
        The steps that were made from the former content, and are gone with it.

    Raises:
        TryAgainError: what the step was made from has been replaced meanwhile.
        ClaimHeldError: another process keeps changing the store.
    """
    flush_folder(staged)  # all but its record, before others have to wait
    with claim(commit_claim(path), wait_s=COMMIT_WAIT_S):
        store = open_store(path)
        parents = lineage.parents_of(store.steps, step, record)
        record = {"made_from": lineage.made_from(store.steps, *parents), **record}
        record["id"] = _id_for(store, step, staged, record)
        _refuse_late(store, step, record)
        write_group(staged, {schema.ATTRIBUTES_KEY: record}, flush=True)
        former = store.steps.get(step)
        same = former is not None and lineage.id_of(former) == record["id"]
        gone = [] if same else lineage.descendants(store.steps, step)
        _replace(staged, path, step, gone)
    return tuple(sorted(gone))


def _id_for(store: Store, step: str, staged: Path, record: Mapping[str, Any]) -> str:
    """Return the id of a new step: that of the former one if it holds the same."""
    new, former = lineage.content_id(staged, record), store.steps.get(step)
    if former is not None and "id" not in former:
        # Of an earlier version: what was made from it knows it by its mark.
        try:
            if lineage.content_id(store.path / step, former) == new:
                return lineage.id_of(former)
        except (OSError, ValueError, KeyError, RuntimeError):
            pass  # damaged: so it is not the same
    return new


def _refuse_late(store: Store, step: str, record: Mapping[str, Any]) -> None:
    changed = lineage.changed_parent(store.steps, step, record)
    missing = [name for name in record["made_from"] if name not in store.steps]
    if changed is not None or missing:
        raise TryAgainError(
            f"{store.path}: {changed or missing[0]} was replaced while {step} was made from it.",
            hint="run the same command again.",
        )


def _replace(staged: Path, path: Path, step: str, gone: Sequence[str]) -> None:
    """Put a group into place, after those that were made from the former one are gone.

    A kill at any moment leaves the former step, no step, or the new one, and never a step
    beside something else than it was made from.
    """
    target, aside = path / step, aside_of(path, "replaced-step")
    for parent in reversed(target.relative_to(path).parents[:-1]):
        if not (path / parent / "zarr.json").exists():
            write_group(path / parent, flush=True)
    going = [name for name in (*gone, step) if (path / name).exists()]
    shutil.rmtree(aside, ignore_errors=True)
    if going:
        # The root forgets first: its list never holds a record without data.
        _update_root(path, drop=going)
        aside.mkdir()
        for number, name in enumerate(going):
            (path / name).rename(aside / str(number))
    staged.rename(target)
    _update_root(path)
    shutil.rmtree(aside, ignore_errors=True)


def _attributes(path: Path) -> dict[str, Any]:
    try:
        node = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        attributes = node.get("attributes", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _groups(path: Path) -> Iterator[str]:
    for depth in ("nuclei/*", "embeddings/*/*", "attention/*/*"):
        for group in sorted(path.glob(depth)):
            yield group.relative_to(path).as_posix()


def _has_group(path: Path, step: str) -> bool:
    """Tell whether a step's arrays are there: a user may have removed them to save space."""
    group = "tiles" if step == schema.TILE_STEP else step
    return (path / group / "zarr.json").is_file()


def _orphans(path: Path, listed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find steps that are complete and not (or otherwise) listed in the root."""
    found = {}
    for step in _groups(path):
        record = _attributes(path / step).get(schema.ATTRIBUTES_KEY)
        if record is not None and listed.get(step) != record:
            found[step] = record
    return found


def _update_root(path: Path, drop: Sequence[str] = ()) -> None:
    node = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    content = node["attributes"][schema.ATTRIBUTES_KEY]
    if not drop:
        content["steps"] |= _orphans(path, content["steps"])
    for step in drop:
        content["steps"].pop(step, None)
    remove_partials(path)  # of a killed process: this one holds the claim
    write_json(path / "zarr.json", node, indent=1)
