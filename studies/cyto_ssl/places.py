"""Where the study's data, runs and results lie, and how `cytofm` is called."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
COLLECTIONS: Final = Path(
    os.environ.get("CYTO_SSL_COLLECTIONS", ROOT.parent / "shared" / "data")
).resolve()
WORK: Final = Path(os.environ.get("CYTO_SSL_WORK", ROOT / "build" / "cyto_ssl")).resolve()
RESULTS: Final = HERE / "results"


def cytofm(words: Iterable[object], log: Path, *, limit_s: float | None = None) -> int:
    """Run `cytofm` on one thread, its messages appended to a file; return its exit code.

    Args:
        words: arguments.
        log: file for both streams.
        limit_s: after so long it is asked to stop (SIGTERM); it keeps what it has.

    Raises:
        SystemExit: it failed otherwise than by being stopped.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cytofm_cli", *map(str, words)]
    with log.open("a") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        stopped = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            stopped = True
            process.terminate()
            process.wait()
    if process.returncode and not stopped:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}, see {log}")
    return process.returncode
