"""An export that is killed or finds the disk full leaves no half of a file under its name."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.api.export import export
from cytofm_cli.errors import DiskFullError
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import (
    EmbeddingRecord,
    LevelRecord,
    NucleiRecord,
    SlideRecord,
    TileRecord,
)

N = 3000
# Kills itself in the middle of the second block.
KILLED = """
import os, signal, sys
from cytofm_cli.exporters import nuclei
from cytofm_cli.api.export import export
nuclei.ROWS = 1000
parts = nuclei.nuclei_blocks
def half(*words):
    for number, part in enumerate(parts(*words)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield part
nuclei.nuclei_blocks = half
export(sys.argv[1], sys.argv[2], sys.argv[3], measure=False)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = io.store_path(tmp_path, "s")
    slide = SlideRecord(
        slide_id="s", path="none.svs", size_px0=(9000, 9000), mpp=0.25,
        levels=(LevelRecord(size_px=(9000, 9000), downsample=1.0),),
    )  # fmt: skip
    stamp = provenance.stamp({"stride_px": None}, input_fingerprint="m")
    tile = TileRecord(**stamp, n_tiles=0, tile_px=64, tile_px0=64.0, mpp=0.25, level=0)
    with io.staging(tmp_path, "s", "tile") as staged:
        arrays.write(staged, schema.TILE_XY, np.zeros((0, 2), np.int32))
        commit.commit_store(staged, path, slide=slide, record=tile)
    xy = np.random.default_rng(0).uniform(50, 8000, (N, 2)).astype(np.float32)
    square = np.array([[-5, -5], [5, -5], [5, 5], [-5, 5]])
    table = make_table(xy, np.full(N, 6.25), polygons=[square + at for at in xy])
    with io.staging(tmp_path, "s", "n") as staged:
        write_nuclei(staged, table)
        record = NucleiRecord(**stamp, n=N, classes=table.classes)
        commit.commit_group(staged, path, "nuclei/classical", record)
    with io.staging(tmp_path, "s", "e") as staged:
        arrays.write_rows(staged, schema.EMBEDDINGS, np.zeros((N, 2), np.float32))
        arrays.write(staged, schema.CELL_EMBEDDINGS_XY, np.round(xy).astype(np.int32))
        bag = EmbeddingRecord(**stamp, n=N, dim=2, unit="cell", cell_um=20.0)
        commit.commit_group(staged, path, "embeddings/e/cell", bag)
    return path


@pytest.mark.parametrize("kind", ["geojson", "csv", "h5ad"])
def test_export__killed_in_the_middle_leaves_nothing_and_goes_on(
    store: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, store, out, kind], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    assert [path for path in out.iterdir() if path.name.endswith(".partial")]
    (file,) = export(store, out, kind, measure=False)
    first = file.read_bytes()
    (file,) = export(store, tmp_path / "again", kind, measure=False)
    assert file.read_bytes() == first
    if kind == "geojson":
        assert len(json.loads(first)["features"]) == N


@pytest.mark.parametrize("kind", ["geojson", "csv", "h5ad"])
def test_export__a_full_disk_is_said_and_the_former_file_stays(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (file,) = export(store, tmp_path / "out", kind, measure=False)
    before = file.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left") as error:
        export(store, tmp_path / "out", kind, overwrite=True, measure=False)
    assert error.value.exit_code == 75
    assert file.read_bytes() == before
    left = {path.name for path in file.parent.iterdir()}
    assert {".cytofm", file.name} <= left <= {".cytofm", file.name, "failures.jsonl"}
