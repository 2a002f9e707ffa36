"""A row a slide: means, largest values and shares of classes, by hand."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cytofm_cli as cytofm
from cytofm_cli.errors import InputError, OutputError, StoreError, UsageError
from cytofm_cli.exporters.pooled import class_shares, pool_values

from .test_h5ad import VALUES, make_store


def test_slides__are_pooled_as_they_would_be_by_hand(tmp_path: Path) -> None:
    store, out = make_store(tmp_path / "stores"), tmp_path / "slides.h5ad"
    made = cytofm.pool_slides(store.path, out, ["mean", "max", "counts"], unit="cell")
    assert (made.n_slides, made.n_values) == (1, 8)
    table = anndata.read_h5ad(out)
    assert list(table.obs_names) == ["s 1"]
    assert table.obs["n_instances"].tolist() == [5]
    values = VALUES.astype(np.float64)
    # Of the five nuclei two are NILM and three ASC/H.
    wanted = np.concatenate([values.mean(0), values.max(0), [0.4, 0.6]])
    np.testing.assert_allclose(table.X[0], wanted, rtol=1e-6)
    assert list(table.var_names[[0, 3, 6, 7]]) == [
        "e mean 0", "e max 0", "share of NILM", "share of ASC/H",
    ]  # fmt: skip
    told = table.uns["cytofm"]
    assert (told["encoder"], told["unit"], told["pools"]) == ("e", "cell", "mean, max, counts")


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 99))
def test_pool_values__do_not_depend_on_the_blocks(n_blocks: int, n: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    blocks = [block for block in np.array_split(values, n_blocks) if len(block)]
    np.testing.assert_allclose(pool_values(blocks, "mean"), values.mean(0), atol=1e-6)
    assert np.array_equal(pool_values(blocks, "max"), values.max(0).astype(np.float64))


def test_class_shares__of_classes_that_are_not_there_are_0() -> None:
    assert class_shares(np.array([2, 2, 0]), 4).tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0])


def test_mistakes__are_named_and_leave_nothing(tmp_path: Path) -> None:
    store, out = make_store(tmp_path / "stores"), tmp_path / "slides.h5ad"
    for error, said, words in (
        (UsageError, "nothing is pooled", {"pool": None}),
        (UsageError, "layout.*has no effect", {"pool": "mean", "layout": "clam"}),
        (StoreError, "no cell embeddings of encoder 'x'",
         {"pool": "mean", "unit": "cell", "encoder": "x"}),
        (StoreError, "holds no classes by RUN 'r'", {"pool": "counts", "classes": "r"}),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            cytofm.pool_slides(store.path, out, **words)
        assert not out.exists()
    with pytest.raises(UsageError, match="one AnnData file"):
        cytofm.pool_slides(store.path, tmp_path / "folder", "mean", unit="cell")
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        cytofm.pool_slides(store.path, out, "mean", unit="cell")
    assert out.read_text() == "mine"


def test_slides__of_other_classes_make_no_table(tmp_path: Path) -> None:
    from cytofm_cli.exporters.pooled import SlideVector, write_slides

    rows = [
        SlideVector(name, np.ones(2), ("share of a", f"share of {other}"), 3, (("classes", name),))
        for name, other in (("r", "b"), ("q", "c"))
    ]
    with pytest.raises(InputError, match="q: pooled from classes q; r from classes r"):
        write_slides(tmp_path / "x.h5ad", rows, ["counts"])
    assert not list(tmp_path.iterdir())
