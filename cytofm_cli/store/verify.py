"""Read every chunk of every array of a store, and hold its records against its arrays.

What the steps read they check as they go; this finds what nobody has read yet, before it is needed.
Nothing is decoded where a checksum says that the bytes are those that were written.
"""

from __future__ import annotations

import functools
import glob
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cytofm_cli.config import digest
from cytofm_cli.errors import CytofmError
from cytofm_cli.store import budget, lineage, schema
from cytofm_cli.store.checksum import ATTRIBUTE, has_checksum, read_node, without
from cytofm_cli.store.chunks import ShardedArrayReader, read_chunk
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.store.records import StepRecord
from cytofm_cli.store.rows import DAMAGE, ZarrRows
from cytofm_cli.store.zarr3 import refuse_undecodable

Report = Callable[[int, int], None]
_SHARDING: Final = "sharding_indexed"
_BLOCK_ROWS: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found in a store.

    Attributes:
        damage: what is not as it was written, a line each.
        notes: what is no damage: steps out of date, what killed processes left.
        n_arrays: arrays.
        n_chunks: chunks read.
        n_unchecked: those of them without a checksum, which were decoded.
        n_bytes: of the chunks, as they lie on the disk.
    """

    damage: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    n_arrays: int = 0
    n_chunks: int = 0
    n_unchecked: int = 0
    n_bytes: int = 0


def verify_store(path: Path, report: Report = lambda done, total: None) -> Verified:
    """Read all of a store.

    Args:
        path: the store.
        report: called with (files read, of how many).
    """
    nodes, damage = _nodes(path)
    arrays = {name: node for name, node in nodes.items() if node.get("node_type") == "array"}
    sums = Verified(n_arrays=len(arrays))
    for number, (name, node) in enumerate(arrays.items()):
        report(number, len(arrays))
        sums, wrong = _read_array(path / name, node, sums)
        damage += [f"{name}: {told}" for told in wrong]
    notes = _left_over(path)
    try:
        store = open_store(path)
        damage += _wrong_records(store, {line.partition(":")[0] for line in damage})
        stale = sorted(store.all_stale().items())
        notes += [f"{step} is out of date: {why}" for step, why in stale]
    except CytofmError as error:
        damage.append(error.message.removeprefix(f"{path}: ").removesuffix("."))
    return replace(sums, damage=tuple(dict.fromkeys(damage)), notes=tuple(notes))


def _nodes(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return every node by its path inside the store, and what is wrong with the others."""
    nodes: dict[str, dict[str, Any]] = {}
    damage = []
    for file in sorted(path.rglob("zarr.json")):
        name = file.parent.relative_to(path).as_posix()
        try:
            node = nodes[name] = read_node(file.parent)
            if node.get("node_type") == "array" and _lost_checksum(node):
                raise ValueError("its checksum is gone")
        except DAMAGE as error:
            told = str(error).removeprefix(f"{file}: ")
            damage.append(f"{'the root' if name == '.' else name}: zarr.json: {told}")
    return nodes, damage


def _lost_checksum(node: Mapping[str, Any]) -> bool:
    """Tell whether a node has no checksum though its chunks, written with it, have."""
    return has_checksum(_inner_codecs(node)) and ATTRIBUTE not in node.get("attributes", {})


def _read_array(path: Path, node: Mapping[str, Any], sums: Verified) -> tuple[Verified, list[str]]:
    """Read an array; return the sums with it, and what is wrong."""
    wrong: list[str] = []
    try:
        chunks = _chunks(path, node)
        checked = has_checksum(_inner_codecs(node))
        for size, told in chunks:
            sums = replace(
                sums,
                n_chunks=sums.n_chunks + 1,
                n_bytes=sums.n_bytes + size,
                n_unchecked=sums.n_unchecked + (not checked),
            )
            wrong += [told] if told else []
    except DAMAGE as error:
        wrong.append(str(error) or type(error).__name__)
    return sums, wrong


def _inner_codecs(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    first = node["codecs"][0]
    codecs: list[dict[str, Any]] = node["codecs"]
    return first["configuration"]["codecs"] if first["name"] == _SHARDING else codecs


def _chunks(path: Path, node: Mapping[str, Any]) -> Iterator[tuple[int, str | None]]:
    """Yield the size of each chunk and what is wrong with it, if anything."""
    budget.refuse_claim(path, node)
    if node["chunk_key_encoding"].get("configuration", {}).get("separator") != ".":
        yield from _other_layout(path)
        return
    shape, grid = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
    if not all(shape):
        return
    counts = [-(-side // chunk) for side, chunk in zip(shape, grid, strict=True)]
    n_files = sum(1 for _ in path.glob("c.*"))
    if math.prod(counts) != n_files:
        yield 0, f"{n_files} of {math.prod(counts)} files of chunks are there"
    sharded = node["codecs"][0]["name"] == _SHARDING
    if sharded:
        with ShardedArrayReader(path) as reader:
            for file in sorted(path.glob("c.*")):
                yield from _shard(reader, int(file.name.split(".")[1]), node)
        return
    for file in sorted(path.glob("c.*")):
        read = functools.partial(read_chunk, file, node["codecs"])
        yield file.stat().st_size, _problem(read, node, file.name)


def _shard(
    reader: ShardedArrayReader, shard: int, node: Mapping[str, Any]
) -> Iterator[tuple[int, str | None]]:
    try:
        n_chunks = reader.n_chunks(shard)
    except DAMAGE as error:
        yield 0, str(error)
        return
    for place in range(n_chunks):
        read = functools.partial(reader.chunk_in, shard, place)
        told = _problem(read, node, f"chunk {place} of shard {shard}")
        yield reader.size_of(shard, place), told


def _problem(read: Callable[[], bytes | None], node: Mapping[str, Any], where: str) -> str | None:
    """Read a chunk; decode one that has no checksum. Say what is wrong, if anything."""
    codecs = _inner_codecs(node)
    try:
        data = read()
        if data is not None and not has_checksum(codecs):
            shape = budget.chunk_shapes(node)[0]
            refuse_undecodable(data, without(codecs), shape, node["data_type"])
    except DAMAGE as error:
        told = str(error)
        return told if where in told else f"{where}: {told}"
    return None


def _other_layout(path: Path) -> Iterator[tuple[int, str | None]]:
    """Read an array that cytofm did not write in blocks, by zarr, which checks what it can."""
    rows = ZarrRows(path)
    for start in range(0, rows.shape[0], _BLOCK_ROWS):
        block = rows.read(start, start + _BLOCK_ROWS)
        yield block.nbytes, None


def _wrong_records(store: Store, damaged: set[str]) -> list[str]:
    """Hold each step's record against its copy in the root, its settings and its arrays."""
    wrong = []
    listed = read_node(store.path)["attributes"][schema.ATTRIBUTES_KEY]["steps"]
    for step, record in sorted(store.steps.items()):
        group = "tiles" if step == schema.TILE_STEP else step
        if any(name == group or name.startswith(f"{group}/") for name in damaged):
            continue  # said already
        try:
            node = read_node(store.path / group)
        except DAMAGE:
            continue
        # The very name "attributes" may be damaged, and the checksum in it gone.
        own = node.get("attributes", {}).get(schema.ATTRIBUTES_KEY)
        if step in listed and listed[step] != own:
            wrong.append(f"{step}: its record is another in the root")
        wrong += [f"{step}: {told}" for told in _wrong_record(store, step, group, record)]
    return wrong


def _wrong_record(store: Store, step: str, group: str, record: StepRecord) -> Iterator[str]:
    if digest(record.config) != record.config_hash:
        yield "its settings are not those of its digest"
    if record.id is None:
        return
    if lineage.content_id(store.path / group, record) != record.id:
        yield "its arrays and what is said of them are not those that were committed"


def _left_over(path: Path) -> list[str]:
    """Name what killed processes left in and beside a store."""
    slide_id = path.name.removesuffix(schema.STORE_SUFFIX)
    beside = path.parent.glob(f".{glob.escape(slide_id)}.*")
    inside = path.rglob(".*.partial")
    left = sorted(itertools.chain(beside, inside))
    return [f"left by a process that was killed, or is at work: {file}" for file in left]
