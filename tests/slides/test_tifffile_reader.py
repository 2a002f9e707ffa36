"""The last reader of a TIFF: what it cannot open is an error alone."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from cytofm_cli.slides.readers.tifffile import _File


def test_file__that_cannot_be_opened_says_nothing_when_it_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    (tmp_path / "a.tif").write_bytes(b"no TIFF at all")
    with pytest.raises(Exception, match="TIFF"):
        _File(str(tmp_path / "a.tif"))
    gc.collect()
    assert said == []
