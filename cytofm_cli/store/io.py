"""Find and open stores, and tell which steps lie in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cytofm_cli.errors import DAMAGE, StoreError, blaming
from cytofm_cli.store import schema
from cytofm_cli.store.checksum import read_node, read_unchecked
from cytofm_cli.store.records import SlideRecord, StepRecord
from cytofm_cli.store.staging import check_slide_id, claim_step, staging, tidy
from cytofm_cli.store.store import Store
from cytofm_cli.work.files import read_plain

# All that a step needs of a store is found here, and in `store.commit`.
__all__ = [
    "Store",
    "check_slide_id",
    "claim_step",
    "is_store",
    "list_arrays",
    "open_store",
    "staging",
    "store_path",
    "tidy",
]


def store_path(stores: Path, slide_id: str) -> Path:
    """Return where the store of a slide lies."""
    return stores / f"{slide_id}{schema.STORE_SUFFIX}"


def is_store(path: Path) -> bool:
    """Tell whether a folder is one of our stores, damaged or not."""
    return schema.ATTRIBUTES_KEY in _attributes(path) or (
        path.name.endswith(schema.STORE_SUFFIX) and _is_marked(path / "zarr.json")
    )


def _is_marked(node: Path) -> bool:
    """Tell whether a node that cannot be read, or is not what was written, names cytofm."""
    try:
        return f'"{schema.ATTRIBUTES_KEY}"'.encode() in read_plain(node)
    except OSError:
        return False


def open_store(path: Path) -> Store:
    """Open a finished store.

    Raises:
        StoreError: missing, no cytofm store, damaged, or of a newer schema.
    """
    content = _attributes(path).get(schema.ATTRIBUTES_KEY)
    if not isinstance(content, dict):
        raise _no_store(path)
    version = content.get("schema")
    if version != schema.SCHEMA_VERSION:
        raise StoreError(
            f"{path}: has store schema {version}, this cytofm reads {schema.SCHEMA_VERSION}.",
            hint="update cytofm, or tile the slide again.",
        )
    listed, slide = content.get("steps"), content.get("slide")
    if not isinstance(listed, dict) or not isinstance(slide, dict):
        raise StoreError(f"{path}: its root is damaged.", hint="`cytofm tile --overwrite` it.")
    groups = told_by_groups(path)
    there = {
        name: StepRecord.from_json(stored, f"{path}: the record of {name}")
        for name, stored in {**listed, **orphans(path, listed, groups)}.items()
        if name in groups or _has_group(path, name)
    }
    return Store(path, SlideRecord.from_json(slide, f"{path}: the record of its slide"), there)


def _attributes(path: Path | str) -> dict[str, Any]:
    try:
        attributes: dict[str, Any] = read_node(path).get("attributes", {})
    except DAMAGE:
        return {}
    return attributes


def _no_store(path: Path) -> StoreError:
    """Return why a path whose root tells nothing of cytofm cannot be opened."""
    if not path.exists():
        return StoreError(f"{path}: no such store.")
    if (path / "zarr.json").is_file():
        try:
            read_node(path)
        except DAMAGE as error:
            return StoreError(
                f"{path}: its root is damaged ({error}).", hint="`cytofm tile --overwrite` it."
            )
    return StoreError(f"{path}: is no store of cytofm.", hint="make one with `cytofm tile`.")


def _groups(path: Path) -> Iterator[str]:
    """Name the groups of the steps that lie in a store, but for the tiles."""
    for kind in ("nuclei", "classes"):
        yield from _folders(path, kind)
    for kind in ("embeddings", "attention"):
        for outer in _folders(path, kind):
            yield from _folders(path, outer)


def _folders(path: Path, group: str) -> list[str]:
    """Name the folders in a group, sorted; [] if it is not there."""
    try:
        with os.scandir(f"{path}/{group}") as entries:
            return [f"{group}/{name}" for name in sorted(e.name for e in entries if e.is_dir())]
    except OSError:
        return []


def list_arrays(path: Path) -> list[dict[str, Any]]:
    """Return path, dtype and shape of all arrays of a store, as their nodes say.

    Raises:
        StoreError: a node is damaged.
    """
    rows = []
    for node in sorted(path.rglob("zarr.json")):
        where = node.parent.relative_to(path).as_posix()
        with blaming(
            lambda error, where=where: StoreError(  # type: ignore[misc]
                f"{path}: {where} cannot be read ({type(error).__name__}: {error}).",
                hint="the store is damaged; make what is there again with --overwrite.",
            )
        ):
            content = read_node(node.parent)
            if content["node_type"] == "array":
                dtype, shape = content["data_type"], list(content["shape"])
                rows.append({"path": where, "dtype": dtype, "shape": shape})
    return rows


def _has_group(path: Path, step: str) -> bool:
    """Tell whether a step's arrays are there: a user may have removed them to save space."""
    group = "tiles" if step == schema.TILE_STEP else step
    return Path(f"{path}/{group}/zarr.json").is_file()


def told_by_groups(path: Path) -> dict[str, Any]:
    """Return what the group of each step, but for the tiles, says of it, unchecked."""
    told = {}
    for step in _groups(path):
        with contextlib.suppress(*DAMAGE):
            attributes = read_unchecked(f"{path}/{step}").get("attributes", {})
            told[step] = attributes.get(schema.ATTRIBUTES_KEY)
    return told


def orphans(
    path: Path, listed: Mapping[str, Any], groups: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the JSON of steps that are complete and not (or otherwise) listed in the root.

    Args:
        path: the store.
        listed: by the root, which has a checksum of its own.
        groups: as of `told_by_groups`.
    """
    records: dict[str, dict[str, Any]] = {}
    for step, told in groups.items():
        if told == listed.get(step):
            continue  # nearly always
        record = _attributes(f"{path}/{step}").get(schema.ATTRIBUTES_KEY)
        if record is not None:
            records[step] = record
    return records
