"""`cytofm doctor` says what is in order, with a folder also of its disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_doctor__names_codecs_kernels_and_the_job(here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = here("doctor", "--json")
    rows = {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["codecs of stores"]["text"] == "zstd, JPEG"
    assert "JPEG2K" in rows["codecs of slides"]["text"]
    assert rows["Slurm job"]["text"] == "JOB_ID=7; CUDA_VISIBLE_DEVICES empty"
    assert rows["attention kernels"]["ok"]
    assert not [name for name in rows if "write access" in name]


def test_doctor__a_folder_that_is_not_there_is_bad_and_others_are_tried(
    here, tmp_path: Path
) -> None:
    good = here("doctor", tmp_path, "--json")
    rows = {row["check"]: row["ok"] for row in map(json.loads, good.stdout.splitlines())}
    assert rows[f"{tmp_path}: rename of files and folders"]
    bad = here("doctor", tmp_path / "nowhere")
    assert bad.returncode == 1
    assert f"BAD {tmp_path / 'nowhere'}: write access: no such folder" in bad.stdout
    assert "folder of another file system" in bad.stderr
