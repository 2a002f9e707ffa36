"""Stores of drawn fields with nuclei, embeddings and attention, and a RUN on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import cytofm_cli as cytofm

from ..two_fields import write_two_fields  # noqa: TID252 - of all tests


class Trained(NamedTuple):
    """A RUN of abmil on cells, its stores with attention, and its labels."""

    run: Path
    stores: Path
    labels: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a RUN on twelve stores; for reading only."""
    folder = tmp_path_factory.mktemp("trained")
    slides = folder / "slides"
    slides.mkdir()
    write_two_fields(slides)
    cytofm.tile(slides, folder / "two", tile_px=256, slide_mpp=0.25)
    cytofm.detect(folder / "two")
    cytofm.embed(folder / "two", encoder="handcrafted", unit="cell")
    stores, rows = folder / "stores", []
    for copy in "uvwxyz":
        for name in "ab":
            slide = f"{name}-{copy}"
            shutil.copytree(folder / "two" / f"{name}.zarr", stores / f"{slide}.zarr")
            rows.append(f"{slide},{'normal' if copy in 'uvw' else 'abnormal'},{copy}")
    labels = folder / "labels.csv"
    labels.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    run = folder / "run"
    # A rate at which the few copies are not yet all answered alike: runs can be compared.
    cytofm.train(
        stores, labels, run, unit="cell", method="abmil", folds=3, seeds=2, epochs=2, lr=1e-4,
        bootstrap=100,
    )  # fmt: skip
    cytofm.score(run, stores)
    return Trained(run, stores, labels)
