"""Files of torch.save are read, and what they could run never is."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.errors import InputError, LabelError, WeightsError
from cytofm_cli.work.unpickle import load_pickle


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.witness),)


def load(path: Path, *, kind: type[InputError] = WeightsError, mapped: bool = False) -> object:
    return load_pickle(path, kind=kind, hint="save it again", mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_load_pickle__tensors_and_what_training_scripts_leave_in(
    tmp_path: Path, zipped: bool, mapped: bool
) -> None:
    content = {
        "model": {"w": torch.arange(3.0)},
        "epoch": np.int64(7),
        "loss": np.float32(0.5),
        "best": np.float64(0.25),
        "flag": np.bool_(True),
        "args": argparse.Namespace(lr=0.1),
        "plain": [1, "two", None, 3.0, (True,)],
    }
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(path, mapped=mapped)
    assert isinstance(loaded, dict)
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert (loaded["epoch"], loaded["loss"], loaded["best"]) == (7, 0.5, 0.25)
    assert loaded["flag"]
    assert loaded["args"].lr == 0.1
    assert loaded["plain"] == content["plain"]


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
@pytest.mark.parametrize("mapped", [False, True])
def test_load_pickle__never_runs_anything(tmp_path: Path, how: str, mapped: bool) -> None:
    path, witness = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"w": torch.zeros(1), "x": Trap(witness)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"x": Trap(witness)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError, match=r"evil\.pt: ") as caught:
        load(path, mapped=mapped)
    assert not witness.exists()
    assert "weights_only" not in caught.value.one_line()  # torch advises to switch the guard off
    if how != "pickle":  # which torch.save never writes like this
        assert "holds a Python object (posix.mkdir)" in caught.value.message
        assert caught.value.hint == "save it again"


def test_load_pickle__scalars_of_objects_are_refused(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    array = np.empty((), dtype=object)
    array[()] = Trap(witness)
    torch.save({"x": array}, tmp_path / "a.pt")
    with pytest.raises(WeightsError):
        load(tmp_path / "a.pt")
    assert not witness.exists()


@pytest.mark.parametrize(
    "junk",
    [b"", b"junk", b"hello", b"\0" * 100, b"\x80\x02X\xff", b"G", b"J\x01", b"PK\x03\x04 no"],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_load_pickle__garbage_is_called_so(tmp_path: Path, junk: bytes, mapped: bool) -> None:
    (tmp_path / "junk.pt").write_bytes(junk)
    with pytest.raises(LabelError, match=r"junk\.pt: not a readable file of tensors: ") as caught:
        load(tmp_path / "junk.pt", kind=LabelError, mapped=mapped)
    assert type(caught.value) is LabelError
    assert "weights_only" not in caught.value.one_line()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_load_pickle__a_cut_file_is_called_so(tmp_path: Path, share: float) -> None:
    torch.save({"w": torch.arange(5000.0)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="not a readable file of tensors"):
        load(tmp_path / "a.pt")


def test_load_pickle__missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        load(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="is no plain file"):
        load(tmp_path)
