"""`cytofm info` opens slides in a child: what crashes or takes everything there ends one line."""

from __future__ import annotations

import os
from pathlib import Path

READER = """
import os, signal
from cytofm_cli.registry import ReaderPlugin


class Reader:
    def probe(self, path):
        return None if path.endswith(".odd") else "not mine"

    def open(self, path):
        if path.endswith("crash.odd"):
            os.kill(os.getpid(), signal.SIGSEGV)
        held = bytearray(6 << 30)  # more than the child may have, and never touched
        raise AssertionError("it was given")


PLUGIN = ReaderPlugin(make=Reader, summary="odd", needs=(), suffixes=(".odd",), turn=1)
"""


def test_info__a_slide_that_crashes_or_takes_all_memory_is_a_line(
    cytofm, fields: Path, tmp_path: Path, monkeypatch
) -> None:
    plugins = tmp_path / "path" / "cytofm_plugins" / "readers"
    plugins.mkdir(parents=True)
    (plugins / "odd.py").write_text(READER)
    path = os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    crash, greedy = tmp_path / "crash.odd", tmp_path / "greedy.odd"
    crash.write_bytes(b"x")
    greedy.write_bytes(b"x")
    field = min(fields.glob("*.*"))
    done = cytofm("info", crash, greedy, field)
    assert done.returncode == 4
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert errors[0].startswith(f"error: {crash}: crashed the reading library (SIGSEGV)")
    assert errors[1].startswith(f"error: {greedy}: out of memory")
    assert done.stdout.splitlines()[0] == str(field)
