"""Folders of plug-ins are read again where something was put into them."""

from __future__ import annotations

import os

from cytofm_cli.places import modules_in


def test_modules__that_are_put_into_a_folder_later_are_found(tmp_path):
    assert modules_in([tmp_path / "none", tmp_path]) == set()
    (tmp_path / "first.py").touch()
    (tmp_path / "_private.py").touch()
    os.utime(tmp_path, ns=(0, 1))  # whatever the clock of the file system resolves
    assert modules_in([tmp_path]) == {"first"}
    (tmp_path / "second.py").touch()
    os.utime(tmp_path, ns=(0, 2))
    assert modules_in([tmp_path]) == {"first", "second"}
    (tmp_path / "first.py").unlink()
    os.utime(tmp_path, ns=(0, 3))
    assert modules_in([tmp_path]) == {"second"}
