"""An export goes on where it stopped, makes anew what is out of date, and refuses what collides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.exporters.product import Product, make, status_of
from cytofm_cli.store.records import StepRecord
from cytofm_cli.work.files import replacing


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


def test_make__a_file_that_others_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    for do in (make, status_of):
        with pytest.raises(ConfigMismatchError, match=r"a\.txt: is there, and no export"):
            do(product(tmp_path, "one"), tmp_path)
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert make(product(tmp_path, "one"), tmp_path, overwrite=True) == "written"
    assert make(product(tmp_path, "one"), tmp_path) == "skipped"


def test_make__killed_before_the_record_is_written_the_file_is_ours(tmp_path: Path) -> None:
    cut = product(tmp_path, "one")

    def killed() -> None:
        cut.write()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(replace(cut, write=killed), tmp_path)
    assert (tmp_path / "a.txt").read_text() == "one"
    assert make(product(tmp_path, "two"), tmp_path) == "written"
    assert (tmp_path / "a.txt").read_text() == "two"


def test_make__other_settings_are_refused_by_name(tmp_path: Path) -> None:
    make(product(tmp_path, "one"), tmp_path)
    with pytest.raises(ConfigMismatchError, match=r"a\.txt: .* setting: 'a' → 'b'"):
        make(product(tmp_path, "two", setting="b"), tmp_path)
    assert (tmp_path / "a.txt").read_text() == "one"
    assert make(product(tmp_path, "two", setting="b"), tmp_path, overwrite=True) == "written"
