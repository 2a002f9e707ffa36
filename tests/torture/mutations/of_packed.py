"""Mutations of weights, pickles and bags."""

from __future__ import annotations

import io
import pickle
import random
import re
import struct
import zipfile
from typing import Any

from .of_any import BYTES, CANARY, NUMBERS
from .of_text import json_document


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Lie in the header, or in its length."""
    n = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice(NUMBERS)) + data[8:]
    header = json_document(data[8 : 8 + n], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + n :]


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (CANARY,)


def zipped(data: bytes, rng: random.Random) -> bytes:
    """Change one member of a zip file (a checkpoint of torch): its bytes, its name, a pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = [(name, old.read(name)) for name in old.namelist()]
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return rng.choice(BYTES)(data, rng)
    what = rng.choice(("bytes", "pickle", "opcodes", "opcodes", "drop", "name", "outer"))
    if what == "outer" or not members:
        return rng.choice(BYTES)(data, rng)
    which = rng.randrange(len(members))
    if what in ("pickle", "opcodes"):
        which = next((i for i, (name, _) in enumerate(members) if name.endswith(".pkl")), which)
    name, body = members[which]
    if what == "drop":
        del members[which]
    elif what == "name":
        members[which] = rng.choice(("../../x", "/x", "x" * 5000, "constants.pkl")), body
    elif what == "pickle":
        members[which] = name, pickle.dumps(_Hostile(), 2)
    else:
        members[which] = name, rng.choice(BYTES)(body, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((0, 0, 8))) as new:
        for name, body in members:
            new.writestr(name, body)
    return buffer.getvalue()


def pickled(_data: bytes, _rng: random.Random) -> bytes:
    """Return a pickle that makes a folder when it is loaded."""
    return pickle.dumps(_Hostile(), 2)


def h5(data: bytes, rng: random.Random) -> bytes:
    """Put another dataset, link or attribute in the place of one."""
    import h5py
    import numpy as np

    if rng.random() < 0.4:
        return h5_bytes(data, rng)
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        what = rng.choice(("shape", "type", "link", "outside", "drop", "attribute", "group", "nan"))
        if what == "attribute":
            holder = rng.choice((file, file[name]))
            key = rng.choice([*holder.attrs, "x"])
            value = rng.choice((0, -1, 2**63 - 1, "x", "é" * 9000, b"\xff", [1, 2], float("nan")))
            holder.attrs[key] = value
            return buffer.getvalue()
        old = file[name]
        values = old[()] if isinstance(old, h5py.Dataset) else None
        del file[name]
        if what == "shape":
            shape = rng.choice(((0, 0), (2**40, 4), (3,), (), (1, 3, 2**20), (2**31, 2**10)))
            chunks = tuple(min(64, side) or 1 for side in shape) if all(shape) and shape else None
            file.create_dataset(name, shape, "f4", chunks=chunks)
        elif what == "type":
            text = np.array([b"x", b"\xff"], dtype=object)
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
        elif what == "link":
            file[name] = h5py.SoftLink(rng.choice((f"/{name}", "/", "/nowhere")))
        elif what == "outside":
            file[name] = h5py.ExternalLink("/etc/passwd", "x")
        elif what == "group":
            file.create_group(name)
        elif what == "nan" and values is not None and np.asarray(values).dtype.kind in "iuf":
            wrong = rng.choice((np.nan, np.inf, -1.0, 1e300))
            file[name] = np.full(np.shape(values), wrong)
    return buffer.getvalue()


def h5_bytes(data: bytes, rng: random.Random) -> bytes:
    """Lie right behind one of the signatures of the format."""
    spots = [spot.start() for spot in re.finditer(rb"\x89HDF|TREE|HEAP|SNOD|OHDR|GCOL|FRHP", data)]
    out = bytearray(data)
    at = rng.choice(spots or [0]) + rng.randrange(4, 64)
    size = rng.choice((1, 2, 4, 8))
    out[at : at + size] = (rng.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out)
