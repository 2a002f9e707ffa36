"""Two simulated slides with a pyramid, their stores, and attention of known values in one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.records import AttentionRecord

from ..tiles.stacks import stack_of, write_stack  # noqa: TID252 - the folders are no packages

if TYPE_CHECKING:
    from .asking import Asking

RUN = "model"
COLUMNS = ("attention", "score_HSIL")


def leave_attention(path: Path, unit: str, run: str = RUN) -> None:
    """Put values into a store as `mil score` does: row i has attention i, score −i."""
    store = io.open_store(path)
    bag = schema.embedding_step("handcrafted", unit)
    count = store.shape(f"{bag}/values")[0]
    values_NK = np.stack([np.arange(count), -np.arange(count)], 1).astype(np.float32)
    record = AttentionRecord(
        **provenance.stamp(
            {"run": "0", "method": "abmil", "columns": list(COLUMNS)},
            input_fingerprint=store.steps[bag].mark,
        ),
        n=count,
        dim=2,
        predicted="HSIL",
        made_from=lineage.made_from(store.steps, bag),
    )
    step = schema.attention_step(run, unit)
    with io.staging(path.parent, store.slide_id, step) as staged:
        arrays.write(staged, schema.ATTENTION, values_NK, {"columns": list(COLUMNS)})
        commit.commit_group(staged, path, step, record)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `slides`, `stores` and a RUN; for reading only.

    p1_s1 has nuclei and attention by tile and cell, p2_s1 has tiles alone.
    """
    folder = tmp_path_factory.mktemp("viewer")
    cytofm.simulate_slides(
        folder, patients=2, slides_per_patient=1, size_px=1600, format="svs-like"
    )
    one, other = sorted((folder / "slides").iterdir())
    cytofm.tile([one, other], folder / "stores", tile_px=256)
    store = folder / "stores" / f"{one.stem}.zarr"
    cytofm.detect(store)
    for unit in ("tile", "cell"):
        cytofm.embed(store, encoder="handcrafted", unit=unit)
        leave_attention(store, unit)
    leave_attention(store, "tile", run="other")
    for run in (RUN, "other"):
        (folder / run).mkdir()
        (folder / run / "config.toml").write_text("[mil]\n[task]\n")
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of `finished` to work on; the slides stay where they are."""
    for name in ("stores", RUN, "other"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of a slide of three focal planes, each sharp in its column; to be read."""
    folder = tmp_path_factory.mktemp("stacked")
    path = write_stack(folder / "a.ome.tif", stack_of(512, width=512), levels=2)
    cytofm.tile(path, folder / "stores", tile_px=128, foreground="none")
    return folder / "stores" / "a.zarr"


@pytest.fixture
def asking(finished: Path, tmp_path: Path) -> Iterator[Asking]:
    """Yield a client of the viewer of `finished`."""
    from .asking import Asking, stores_of

    asks = Asking(stores_of(finished), tmp_path / "marks.jsonl", (RUN,))
    yield asks
    asks.close()
