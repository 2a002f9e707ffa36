"""Temporary files on a disk of the node: nothing is staged there unless it is asked for."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cytofm_cli.errors import UsageError
from cytofm_cli.work.files import output_errors

AUTO: Final = "auto"
# Some sites give each job a folder of its own and name it so; TMPDIR may be that of the submitter.
_VARIABLES: Final = ("SLURM_TMPDIR", "TMPDIR")


@contextlib.contextmanager
def temporary_in(where: str | None) -> Iterator[None]:
    """Let temporary files, also of children started in the block, lie in a folder of our own.

    It is made anew, private, and removed at the end with all that is in it: job schedulers hand
    the submitter's TMPDIR on, so that two jobs may share one.

    Args:
        where: folder that is there; `auto`: what SLURM_TMPDIR or else TMPDIR names; None: leave
            temporary files where they are.

    Raises:
        UsageError: `auto` finds none.
        OutputError: it is not there or cannot be written.
    """
    if where is None:
        yield
        return
    parent = _found() if where == AUTO else Path(where)
    before = os.environ.get("TMPDIR")
    with (
        output_errors(parent),
        tempfile.TemporaryDirectory(
            prefix="cytofm-", dir=parent, ignore_cleanup_errors=True
        ) as folder,
    ):
        _point_to(folder)
        try:
            yield
        finally:
            _point_to(before)


def _found() -> Path:
    named = [os.environ[name] for name in _VARIABLES if os.environ.get(name)]
    if not named:
        raise UsageError(
            f"--scratch auto: neither {' nor '.join(_VARIABLES)} names a folder.",
            hint="--scratch FOLDER",
        )
    return Path(named[0])


def _point_to(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder  # libvips looks there too
    tempfile.tempdir = None  # it is looked up anew
