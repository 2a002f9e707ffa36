"""Rows are those that zarr reads, whatever the layout, without zarr."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.store import zarr3
from cytofm_cli.store.rows import RowReader, ZarrRows, open_rows


@given(
    n=st.integers(0, 40),
    d=st.integers(0, 3),
    per_chunk=st.integers(1, 17),
    layout=st.sampled_from(["one", "several", "raw", "shard"]),
    cuts=st.lists(st.integers(0, 45), max_size=6),
)
def test_row_reader__gives_the_rows_that_zarr_gives(
    tmp_path_factory: pytest.TempPathFactory,
    n: int, d: int, per_chunk: int, layout: str, cuts: list[int],
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("rows") / "a"
    shape = (n, d) if d else (n,)
    values = np.random.default_rng(n).normal(size=shape).astype(np.float32)
    if layout == "shard":
        axes = ("row", "column")[: len(shape)]
        zarr3.write_rows(path, values, axes=axes, rows_per_chunk=per_chunk)
    else:
        zarr3.write_array(
            path, values, axes=("row", "column")[: len(shape)], compress=layout != "raw",
            rows_per_chunk=per_chunk if layout != "one" else None,
        )  # fmt: skip
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], values)
    reader = open_rows(path)
    assert isinstance(reader, RowReader) and reader.shape == shape
    with reader:
        np.testing.assert_array_equal(reader.read(), values)
        bounds = sorted(cuts)
        for start, stop in itertools.pairwise(bounds):
            np.testing.assert_array_equal(reader.read(start, stop), values[start:stop])


@pytest.mark.parametrize("chunks", [(4, 1), (2, 3)])
def test_row_reader__other_layouts_are_left_to_zarr(tmp_path: Path, chunks: tuple) -> None:
    # zarr names chunks c/0/0, and ours need whole rows.
    zarr.create_array(tmp_path / "a", shape=(4, 3), dtype="float32", chunks=chunks)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    zarr.open_array(tmp_path / "a")[...] = values
    with open_rows(tmp_path / "a") as reader:
        assert isinstance(reader, ZarrRows) and reader.shape == (4, 3)
        np.testing.assert_array_equal(reader.read(1, 3), values[1:3])


def test_store__its_tables_are_read_without_zarr(tmp_path: Path) -> None:
    zarr3.write_array(tmp_path / "a", np.arange(5.0), axes=("row",))
    code = (
        "import sys; from pathlib import Path; from cytofm_cli.store.rows import open_rows;"
        f"open_rows(Path({str(tmp_path / 'a')!r})).read(); sys.exit('zarr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_write_array__a_table_that_fits_one_chunk_has_the_bytes_that_it_had(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.int32).reshape(6, 2)
    zarr3.write_array(tmp_path / "a", values, axes=("row", "xy"))
    zarr3.write_array(tmp_path / "b", values, axes=("row", "xy"), rows_per_chunk=6)
    for name in ("zarr.json", "c.0.0"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["c.0.0", "zarr.json"]
