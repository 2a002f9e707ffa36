"""Bag files that lead elsewhere, or claim far more than they hold, are refused by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cytofm_cli.errors import InputError
from cytofm_cli.mil.bags import read_bag

VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A whole file of features, to which others lead."""
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["features"] = VALUES
        file["coords"] = np.zeros((3, 2), np.int64)
    return path


def test_h5__a_shape_that_no_byte_stands_for_is_refused_before_memory_is_taken(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (2**24, 64), "f8", chunks=(64, 64))
    assert path.stat().st_size < 8000
    with pytest.raises(InputError, match="states to hold 8589934592 bytes, and 0 are stored"):
        read_bag(path, "e", "tile")


def test_h5__a_chunk_far_larger_than_its_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "features", (3, 2), "f4", maxshape=(None, 2), chunks=(2**27, 2), compression="gzip"
        )
    with pytest.raises(InputError, match="states to hold 1073741824 bytes"):
        read_bag(path, "e", "tile")


def test_h5__what_lies_in_another_file_is_not_opened(tmp_path: Path, other: Path) -> None:
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[...] = h5py.VirtualSource(other, "features", (3, 2))
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(24))
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["features"] = h5py.ExternalLink(other, "features")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("features", (3, 2), "f4", external=[(raw, 0, 24)])
    with h5py.File(tmp_path / "twice.h5", "w") as file:
        file["out"] = h5py.ExternalLink(other, "/")
        file["features"] = h5py.SoftLink("/out/features")
    with h5py.File(tmp_path / "places.h5", "w") as file:
        file["features"] = VALUES
        file["coords"] = h5py.ExternalLink(other, "coords")
    for name in ("linked", "virtual", "outside", "twice", "places"):
        with pytest.raises(InputError, match="lies in another file, which is not opened"):
            read_bag(tmp_path / f"{name}.h5", "e", "tile")


def test_h5__micrometres_behind_a_link_are_not_looked_up(tmp_path: Path, other: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["feats"] = VALUES
        file.attrs["unit"] = "um"
        file["coords"] = h5py.ExternalLink(other, "coords")
    bag = read_bag(tmp_path / "a.h5", "e", "tile")
    assert bag.xy_px0 is None


def test_h5__a_link_inside_of_the_file_is_followed_and_a_loop_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/values"] = VALUES
        file["features"] = h5py.SoftLink("deep/values")
    np.testing.assert_array_equal(read_bag(tmp_path / "a.h5", "e", "tile").features_ND, VALUES)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = h5py.SoftLink("/features")
    with pytest.raises(InputError, match="a chain of more than 8 links"):
        read_bag(tmp_path / "b.h5", "e", "tile")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["features"] = h5py.SoftLink("/")
    with pytest.raises(InputError, match="`features` is a group, no dataset"):
        read_bag(tmp_path / "c.h5", "e", "tile")


def test_pt__a_tensor_that_repeats_one_number_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(2**20, 2**12), tmp_path / "a.pt")
    with pytest.raises(InputError, match="a tensor of 17179869184 bytes, far more than the file"):
        read_bag(tmp_path / "a.pt", "e", "tile")


def test_pt__an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 2), whole := io.BytesIO())
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
        bomb.writestr("archive/data/9", bytes(300 << 20))
    with pytest.raises(InputError, match="unpacks to"):
        read_bag(tmp_path / "a.pt", "e", "tile")


@pytest.mark.parametrize("place", [np.nan, np.inf, -1e300, 2.0**31])
def test_h5__coordinates_beyond_any_slide_are_refused(tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = VALUES
        file["coords"] = np.full((3, 2), place)
    with pytest.raises(InputError, match=r"a\.h5: coordinates are no places on a slide"):
        read_bag(path, "e", "tile")
