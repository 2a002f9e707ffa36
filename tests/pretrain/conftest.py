"""Small stores made without slides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import LevelRecord, NucleiRecord, SlideRecord, TileRecord
from cytofm_cli.store.zarr3 import BYTES, ZSTD, zstd_encode

MakeStore = Callable[..., Path]


def tile_pixels(name: str, n: int, side: int) -> np.ndarray:
    """Return (n, side, side, 3) uint8: noise, with the tile's number in the first pixel."""
    rng = np.random.default_rng(sum(name.encode()))
    pixels = rng.integers(60, 250, (n, side, side, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(n)
    return pixels


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Write a store: `make_store("a", 5)` has 5 tiles in a row, a nucleus in the middle of each.

    `nuclei` is a list of (x, y) in level-0 pixels, or None for none; with `polygons=True` each
    has an outline, a square of 8 px. Level 0 and the tiles have the same resolution.
    """

    def make(
        name: str,
        n: int,
        *,
        side: int = 64,
        mpp: float = 0.5,
        nuclei: list[tuple[float, float]] | str | None = "middle",
        detector: str = "test",
        polygons: bool = False,
        folder: str = "stores",
    ) -> Path:
        stores = tmp_path / folder
        path = io.store_path(stores, name)
        xy = np.stack([np.arange(n) * side, np.zeros(n)], 1).astype(np.int32).reshape(n, 2)
        slide = SlideRecord(
            slide_id=name,
            size_px0=(n * side, side),
            mpp=mpp,
            reader="none",
            path="gone.svs",
            fingerprint="f",
            levels=(LevelRecord(size_px=(n * side, side), downsample=1.0),),
        )
        record = TileRecord(
            **provenance.stamp({}, input_fingerprint=name),
            n_tiles=n,
            tile_px=side,
            tile_px0=float(side),
            mpp=mpp,
            level=0,
        )
        with io.staging(stores, name, "tile") as staged:
            arrays.write(staged, schema.TILE_XY, xy)
            writer = arrays.open_shards(
                staged, schema.TILE_PIXELS, shape=(n, side, side, 3),
                rows_per_shard=64, chunk=(1, side, side, 3), codecs=[BYTES, ZSTD],
            )  # fmt: skip
            chunks = [zstd_encode(tile.tobytes()) for tile in tile_pixels(name, n, side)]
            for shard in range(writer.n_shards):
                writer.write_shard(shard, chunks[64 * shard : 64 * shard + 64])
            commit.commit_store(staged, path, slide=slide, record=record)
        if nuclei is None:
            return path
        if nuclei == "middle":
            nuclei = [(side * (i + 0.5), side / 2) for i in range(n)]
        centres = np.array(nuclei, float).reshape(-1, 2)
        corners = np.array([(-4, -4), (4, -4), (4, 4), (-4, 4)])
        rings = [c + corners for c in centres] if polygons else None
        table = make_table(centres, np.full(len(centres), 16.0), polygons=rings)
        with io.staging(stores, name, "nuclei") as staged:
            write_nuclei(staged, table)
            nuclei_record = NucleiRecord(
                **provenance.stamp({}, input_fingerprint=name), classes=table.classes
            )
            commit.commit_group(staged, path, schema.nuclei_step(detector), nuclei_record)
        return path

    return make
