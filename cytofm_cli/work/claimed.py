"""Look at the claims of a folder without taking part: who is at what, and when it last showed.

Reads only, so that anybody may look at any time, also from a node that may not write there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cytofm_cli.work.claim import STALE_S
from cytofm_cli.work.files import read_plain

_SUFFIX: Final = ".claim"


@dataclass(frozen=True)
class Holder:
    """Who holds a claim.

    Attributes:
        name: of the claim, without the leading dot and `.claim`.
        host: name of its machine; "" where the claim does not tell.
        pid: its process there, 0 where the claim does not tell.
        silent_s: since its last sign of life, seconds, by this machine's clock, at least 0.
        lives: whether it may still be at work: its process is there, or, of a process that cannot
            be looked up from here, its sign of life is younger than `STALE_S`.
    """

    name: str
    host: str
    pid: int
    silent_s: float
    lives: bool


def holders(folder: Path) -> list[Holder]:
    """Return who holds the claims in a folder, by name; [] for a folder that is not there."""
    return sorted(_holders(folder), key=lambda holder: holder.name)


def _holders(folder: Path) -> Iterator[Holder]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(".") and entry.name.endswith(_SUFFIX)):
                continue
            with contextlib.suppress(OSError, ValueError):  # released just now, or being written
                beat = entry.stat().st_mtime
                told = json.loads(read_plain(Path(entry.path)))
                yield _holder(entry.name[1 : -len(_SUFFIX)], told, max(0.0, time.time() - beat))


def _holder(name: str, told: object, silent_s: float) -> Holder:
    told = told if isinstance(told, Mapping) else {}
    host, pid = str(told.get("host", "")), told.get("pid")
    pid = pid if isinstance(pid, int) else 0
    lives = silent_s < STALE_S
    if lives and pid > 0 and host == socket.gethostname() and told.get("boot") == _boot():
        namespace = told.get("pid_namespace")
        lives = namespace != _namespace() or Path(f"/proc/{pid}").exists()
    return Holder(name, host, pid, silent_s, lives)


def _boot() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None


def _namespace() -> str | None:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None
