"""Tiles that the steps of a slide share: the same pixels, decoded once, as far as there is room."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cytofm_cli.tiles.kept import keep_tiles, shared

SIDE = 8
BYTES = SIDE * SIDE * 3


class Counted:
    """Ten tiles, each of one grey, that count how often they are read."""

    def __init__(self, base: int = 0) -> None:
        self.xy_px0 = np.zeros((10, 2), np.int32)
        self.base, self.reads = base, np.zeros(10, int)

    def read(self, index: int) -> NDArray[np.uint8]:
        self.reads[index] += 1
        return np.full((SIDE, SIDE, 3), self.base + index, np.uint8)


def check(tiles: object, base: int = 0) -> None:
    for index in range(10):
        expected = np.full((SIDE, SIDE, 3), base + index, np.uint8)
        np.testing.assert_array_equal(tiles.read(index), expected)


def test_tiles__are_read_once_in_the_block_and_each_time_outside_of_it() -> None:
    counted = Counted()
    with keep_tiles():
        for _ in range(3):  # each step opens them anew
            check(shared(counted, "a"))
        assert counted.reads.tolist() == [1] * 10
    assert shared(counted, "a") is counted
    with keep_tiles():  # of the next slide
        check(shared(counted, "a"))
    assert counted.reads.tolist() == [2] * 10


def test_tiles__of_another_version_are_others() -> None:
    one, other = Counted(), Counted(100)
    with keep_tiles():
        check(shared(one, "a.zarr 1"))
        check(shared(other, "a.zarr 2"), 100)
        check(shared(one, "a.zarr 1"))
    assert one.reads.tolist() == other.reads.tolist() == [1] * 10


def test_tiles__beyond_the_room_are_read_again() -> None:
    counted = Counted()
    with keep_tiles(4 * BYTES + 1):
        for _ in range(3):
            check(shared(counted, "a"))
    assert counted.reads.tolist() == [1] * 4 + [3] * 6


def test_disk_that_is_full__costs_only_the_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, plain, written = Counted(), os.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(offset)
        return plain(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with keep_tiles():
        for _ in range(2):
            check(shared(counted, "a"))
    assert counted.reads.tolist() == [1] * 3 + [2] * 7


def test_write_that_is_cut_short__keeps_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    monkeypatch.setattr(os, "pwrite", lambda _descriptor, data, _offset: len(data) - 1)
    with keep_tiles():
        check(shared(counted, "a"))
        check(shared(counted, "a"))
    assert counted.reads.tolist() == [2] * 10


def test_folder_that_cannot_be_written__costs_only_the_keeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    counted = Counted()
    with keep_tiles():
        check(shared(counted, "a"))
        check(shared(counted, "a"))
    assert counted.reads.tolist() == [2] * 10


def test_file__has_no_name_that_a_killed_process_could_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with keep_tiles():
        check(shared(Counted(), "a"))
        assert list(tmp_path.iterdir()) == []


def test_threads__get_the_right_pixels() -> None:
    counted = Counted()
    with keep_tiles(), ThreadPoolExecutor(8) as pool:
        tiles = shared(counted, "a")
        indices = np.random.default_rng(0).integers(0, 10, 400).tolist()
        for index, tile in zip(indices, pool.map(tiles.read, indices), strict=True):
            assert (tile == index).all()
    assert counted.reads.max() <= 8  # each thread may have met a tile that was not kept yet


def test_block_that_fails__leaves_nothing_behind() -> None:
    with pytest.raises(KeyError), keep_tiles():
        raise KeyError
    counted = Counted()
    assert shared(counted, "a") is counted
