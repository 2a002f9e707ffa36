"""Where a result comes from: tool version, settings, input fingerprint, weights, time."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cytofm_cli import __version__
from cytofm_cli.config import digest

_PROBE_BYTES = 2**20


def fingerprint(path: Path) -> str:
    """Identify a file or folder by size and its first and last MiB.

    A slide has gigabytes: reading all of it would cost more than the step. Renaming, moving
    or copying keeps the fingerprint; re-encoding or truncating changes it.
    """
    hasher = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        size = file.stat().st_size
        hasher.update(f"{file.name if path.is_dir() else ''}:{size};".encode())
        with file.open("rb") as handle:
            hasher.update(handle.read(min(size, _PROBE_BYTES)))  # room for no more
            if size > 2 * _PROBE_BYTES:
                handle.seek(-_PROBE_BYTES, 2)
                hasher.update(handle.read(_PROBE_BYTES))
    return hasher.hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a whole file, for weights."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def utc_now() -> str:
    """Return the time as records keep it, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def record(config: Mapping[str, Any], *, input_fingerprint: str, **facts: Any) -> dict[str, Any]:
    """Make the provenance record of a finished step.

    Args:
        config: the settings that can change a stored number.
        input_fingerprint: what the step read: of the slide, or of the step before.
        facts: more JSON values: weight digest, codecs, counts.
    """
    told = stamp(config, input_fingerprint=input_fingerprint)
    time_utc = told.pop("time_utc")
    return {**told, **facts, "time_utc": time_utc}


def stamp(config: Mapping[str, Any], *, input_fingerprint: str) -> dict[str, Any]:
    """Return what every record of a step begins with, and its time; arguments as `record`."""
    return {
        "tool": f"cytofm {__version__}",
        "config": dict(config),
        "config_hash": digest(config),
        "input_fingerprint": input_fingerprint,
        "time_utc": utc_now(),
    }
