"""An export goes on where it stopped, makes anew what is out of date, and refuses what collides."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.exporters.product import Product, make, replacing
from cytofm_cli.store.records import StepRecord


def product(folder: Path, text: str, *, setting: str = "a", step: str = "s") -> Product:
    files = [folder / "x" / "a.txt", folder / "a.txt"]

    def write() -> None:
        for file in files:
            with replacing(file) as partial:
                partial.write_text(text)

    made_from = StepRecord(config={}, config_hash="h", input_fingerprint="f", id=step)
    return Product(files, {"setting": setting}, [made_from], write)


def test_make__skips_what_is_up_to_date(tmp_path: Path) -> None:
    assert make(product(tmp_path, "one"), tmp_path) == "written"
    assert make(product(tmp_path, "two"), tmp_path) == "skipped"
    assert (tmp_path / "x" / "a.txt").read_text() == "one"
    assert make(product(tmp_path, "three"), tmp_path, overwrite=True) == "written"
    assert (tmp_path / "a.txt").read_text() == "three"


def test_make__what_is_missing_cut_or_of_other_steps_is_made_anew(tmp_path: Path) -> None:
    make(product(tmp_path, "one"), tmp_path)
    (tmp_path / "x" / "a.txt").unlink()
    assert make(product(tmp_path, "two"), tmp_path) == "written"
    (tmp_path / "a.txt").write_text("t")
    assert make(product(tmp_path, "six"), tmp_path) == "written"
    assert (tmp_path / "a.txt").read_text() == "six"
    assert make(product(tmp_path, "new", step="other"), tmp_path) == "written"
    assert make(product(tmp_path, "new", step="other"), tmp_path) == "skipped"


def test_make__other_settings_are_refused_by_name(tmp_path: Path) -> None:
    make(product(tmp_path, "one"), tmp_path)
    with pytest.raises(ConfigMismatchError, match=r"a\.txt: .* setting: 'a' → 'b'"):
        make(product(tmp_path, "two", setting="b"), tmp_path)
    assert (tmp_path / "a.txt").read_text() == "one"
    assert make(product(tmp_path, "two", setting="b"), tmp_path, overwrite=True) == "written"


def test_replacing__a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as partial:
        assert str(os.getpid()) in partial.name  # two processes never share one
        partial.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_replacing__removes_what_was_abandoned_and_not_what_is_being_written(
    tmp_path: Path,
) -> None:
    for name, age_s in ((".a.host-1.partial", 7200), (".a.host-2.partial", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    with replacing(tmp_path / "a") as partial:
        partial.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.host-2.partial", "a"]
