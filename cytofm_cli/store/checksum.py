"""Checksums of a store: CRC-32C behind every chunk, and of what each node says.

A flipped bit of a disk is no error of reading it. Chunks carry the checksum of Zarr's own codec
`crc32c` (four bytes behind the encoded data, little-endian; Zarr core v3, codec crc32c v1.0), so
that every reader of Zarr checks them; nodes carry ours in an attribute. Stores of versions
without either stay readable, unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cytofm_cli.work.files import read_plain, write_json

Codec = dict[str, Any]

CRC32C: Final[Codec] = {"name": "crc32c"}
N_BYTES: Final = 4
# The attribute of a node: of all that Zarr reads in it, and of our own records.
ATTRIBUTE: Final = "cytofm_crc32c"
_OURS: Final = "cytofm"
# When a step ended is not of its content: the same step made twice has the same checksum.
_NOT_CONTENT: Final = "time_utc"
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_LISTS: Final = (list, tuple)
_OBJECTS: Final = (dict, Mapping)  # dict first: asking for a Mapping takes longer


def checksum(data: bytes | memoryview) -> bytes:
    """Return the CRC-32C of data as the codec `crc32c` stores it: 4 bytes, little-endian."""
    import google_crc32c

    return int(google_crc32c.value(bytes(data))).to_bytes(N_BYTES, "little")


def has_checksum(codecs: Sequence[Codec]) -> bool:
    """Tell whether chunks that were encoded so end with a checksum."""
    return bool(codecs) and codecs[-1].get("name") == CRC32C["name"]


def without(codecs: Sequence[Codec]) -> list[Codec]:
    """Return how chunks are encoded but for the checksum."""
    return list(codecs[:-1] if has_checksum(codecs) else codecs)


def checked(data: bytes, where: str) -> bytes:
    """Return a chunk without the checksum that it ends with.

    Args:
        data: as it lies on the disk.
        where: what a message starts with.

    Raises:
        ValueError: it is not what was written.
    """
    body, told = data[:-N_BYTES], data[-N_BYTES:]
    if len(data) < N_BYTES or checksum(body) != told:
        raise ValueError(
            f"{where}: its checksum is wrong, so bits have changed since it was written"
        )
    return body


def write_node(path: Path, node: Mapping[str, Any], *, flush: bool) -> None:
    """Write the `zarr.json` of an array or a group, with its checksum.

    Args:
        path: the folder of the node.
        node: what it says.
        flush: wait until it is on the disk; not for what is staged, which is flushed whole.
    """
    attributes = {**node.get("attributes", {}), ATTRIBUTE: _of_node(node)}
    write_json(path / "zarr.json", {**node, "attributes": attributes}, indent=1, flush=flush)


def read_node(path: Path | str) -> dict[str, Any]:
    """Read the `zarr.json` of an array or a group, and check it if it can be checked.

    Raises:
        OSError: it is not there.
        ValueError: it is no JSON object, or not what was written.
    """
    node = read_unchecked(path)
    told = node.get("attributes", {}).get(ATTRIBUTE)
    if told is not None and told != _of_node(node):
        raise ValueError(f"{path}/zarr.json: its checksum is wrong")
    return node


def read_unchecked(path: Path | str) -> dict[str, Any]:
    """Read a node as `read_node` does, but for its checksum: to compare with what was checked."""
    try:
        node = json.loads(read_plain(f"{path}/zarr.json"))
    except RecursionError as error:
        raise ValueError(f"{path}/zarr.json: is nested too deep") from error
    if not isinstance(node, dict) or not isinstance(node.get("attributes", {}), dict):
        raise ValueError(f"{path}/zarr.json: is no node of Zarr")
    return node


def _of_node(node: Mapping[str, Any]) -> str:
    """Return the checksum of what Zarr and cytofm read of a node; others' attributes are free."""
    said = {key: value for key, value in node.items() if key != "attributes"}
    attributes = node.get("attributes", {}).items()
    ours = {key: value for key, value in attributes if key.startswith(_OURS) and key != ATTRIBUTE}
    text = json.dumps([said, _timeless(ours)], sort_keys=True)
    return checksum(text.encode()).hex()


def _timeless(value: Any) -> Any:
    if isinstance(value, _LISTS):
        return [held if type(held) in _PLAIN else _timeless(held) for held in value]
    if isinstance(value, _OBJECTS):
        return {
            key: held if type(held) in _PLAIN else _timeless(held)
            for key, held in value.items()
            if key != _NOT_CONTENT
        }
    return value
