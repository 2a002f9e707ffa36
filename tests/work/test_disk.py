"""What a folder must do for stores is tried, and what it does otherwise is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cytofm_cli.errors import OutputError
from cytofm_cli.work import disk
from cytofm_cli.work.disk import Trial, try_folder


def trials(folder: Path) -> dict[str, Trial]:
    return {trial.name: trial for trial in try_folder(folder)}


def test_try_folder__a_plain_folder_is_fine_and_left_empty(tmp_path: Path) -> None:
    tried = trials(tmp_path)
    assert [trial for trial in tried.values() if not trial.fine] == []
    assert tried["rename of files and folders"].text == "at once, and never over a full folder"
    assert tried["claims (exclusive creation)"].text == "one of two gets it"
    assert tried["clock"].text == "as this machine's"
    assert list(tmp_path.iterdir()) == []


def test_try_folder__a_clock_that_is_far_off_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = disk.time.time()
    monkeypatch.setattr(disk.time, "time", lambda: real - 3600)
    clock = trials(tmp_path)["clock"]
    assert not clock.fine
    assert clock.text.startswith("files are stamped +36")


def test_try_folder__a_claim_that_two_get_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.os, "O_EXCL", 0)
    claims = trials(tmp_path)["claims (exclusive creation)"]
    assert (claims.fine, "O_EXCL" in claims.text) == (False, True)


def test_try_folder__a_folder_renamed_over_a_full_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rename", lambda self, target: target)
    renames = trials(tmp_path)["rename of files and folders"]
    assert (renames.fine, "stores could be lost" in renames.text) == (False, True)


def test_try_folder__few_inodes_and_few_bytes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((real[0], 4096, real[2], real[3], 7, real[5], 10, 3, *real[8:]))
    monkeypatch.setattr(disk.os, "statvfs", lambda folder: full)
    tried = trials(tmp_path)
    assert not tried["room for bytes"].fine
    assert not tried["room for files"].fine
    assert tried["room for files"].text.startswith("3 of ")


def test_try_folder__the_site_s_tool_says_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "quota"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'Disk quotas for user x:'\necho '  /home 5G of 10G'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    assert trials(tmp_path)["quota"].text == "Disk quotas for user x: | /home 5G of 10G"


def test_try_folder__what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        trials(tmp_path / "file")
