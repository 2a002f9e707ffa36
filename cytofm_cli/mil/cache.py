"""The features of a cohort in one flat file, read by memory map.

A large cohort does not fit into memory, least of all once a worker process. The file holds
bag after bag as the store has them (float16 stays float16). All processes of a run map it and
so share one copy in the page cache, which the system drops when memory is short.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cytofm_cli.mil.bag import Bag, map_features
from cytofm_cli.work.claim import is_gone, realm_tag
from cytofm_cli.work.files import output_errors

ALIGN = 64  # bytes


@contextlib.contextmanager
def bag_file(out: Path) -> Iterator[Path]:
    """Name the file of bags of the run `out`; it is removed at the end of the block.

    It lies in the folder $CYTOFM_CACHE_DIR (a fast local disk), else beside `out`. What a
    killed process of this machine left there is removed first.
    """
    out = out.absolute()
    folder = Path(os.environ.get("CYTOFM_CACHE_DIR") or out.parent)
    host = f"{socket.gethostname()}-{realm_tag()}"
    run = f".{out.name}.{hashlib.sha256(str(out).encode()).hexdigest()[:8]}.{host}-"
    for left in folder.glob(f"{run}*.bags"):
        pid = left.name.removeprefix(run).removesuffix(".bags")
        if pid.isdigit() and is_gone(int(pid)):
            left.unlink(missing_ok=True)
    path = folder / f"{run}{os.getpid()}.bags"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def store_bags(bags: Iterable[Bag], path: Path) -> list[Bag]:
    """Write bags one by one, and return them with mapped features and without coordinates.

    Args:
        bags: read as they are asked for: one at a time is in memory.
        path: the file to write.

    Raises:
        OutputError, DiskFullError: it cannot be written.
    """
    placed: list[tuple[Bag, int]] = []
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for bag in bags:
                file.seek(-(-file.tell() // ALIGN) * ALIGN)
                placed.append((_without_features(bag), file.tell()))
                file.write(np.ascontiguousarray(bag.features_ND).data)
        return [
            replace(bag, features_ND=map_features(path, start, features.shape, features.dtype.str))
            if (features := bag.features_ND).size
            else bag
            for bag, start in placed
        ]


def _without_features(bag: Bag) -> Bag:
    # An array of the same shape and dtype that takes no memory.
    shell = np.broadcast_to(np.zeros((), bag.features_ND.dtype), bag.features_ND.shape)
    return replace(bag, features_ND=shell, xy_px0=None)
