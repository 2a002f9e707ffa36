"""Temporary files go where they are told to, and what lay there is left alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from cytofm_cli.errors import OutputError, UsageError
from cytofm_cli.work.scratch import temporary_in


def test_temporary_in__a_private_folder_is_made_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "before"))
    (tmp_path / "others").touch()
    with temporary_in(str(tmp_path)):
        folder = Path(tempfile.gettempdir())
        assert folder.parent == tmp_path
        assert os.environ["TMPDIR"] == str(folder)
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "left").touch()
    assert os.environ["TMPDIR"] == str(tmp_path / "before")
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


def test_temporary_in__auto_takes_the_job_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with temporary_in("auto"):
        assert Path(tempfile.gettempdir()).parent == tmp_path
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(UsageError, match="names a folder"), temporary_in("auto"):
        pass


def test_temporary_in__none_changes_nothing_and_no_folder_is_refused(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    with temporary_in(None):
        assert tempfile.gettempdir() == before
    with pytest.raises(OutputError), temporary_in(str(tmp_path / "nowhere")):
        pass
    assert tempfile.gettempdir() == before
