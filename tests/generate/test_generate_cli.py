"""`cytofm generate` as a user runs it: images that say what they are, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.config import GenerateConfig, MeasureConfig, SampleConfig
from cytofm_cli.generate.evaluate import evaluate_run, through_autoencoder
from cytofm_cli.generate.file import read_generator
from cytofm_cli.generate.run import train
from cytofm_cli.generate.synthetic import sample_run
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.store.io import open_store

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "size_px": 32, "vae_base": 8, "vae_blocks": 1, "depth": 1, "width": 16, "heads": 2, "patch": 1,
    "aligned_depth": 1, "projector": 16, "batch": 4, "steps": 2, "threads": 1, "device": "cpu",
}  # fmt: skip
QUICK: dict[str, Any] = {"sampler": "euler", "steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give a RUN a condition."""
    folder = tmp_path_factory.mktemp("runs")
    stores = sorted(cells.glob("*.zarr"))
    for kind in ("encoder", "class", "none"):
        align = "cytofm-tiny" if kind == "encoder" else "none"
        config = GenerateConfig(**SMALL, condition=kind, align=align, cell_um=8.0)
        train(config, stores, folder / kind)
    config = GenerateConfig(**SMALL, condition="class", align="none", cell_um=8.0, dropped=0.0)
    train(config, stores, folder / "always told")
    return {path.name: path for path in folder.iterdir()}


def pixels_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("images/*.png"))])


def test_sample__pngs_and_store_hold_the_same_and_say_that_they_are_synthetic(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    report = sample_run(
        runs["class"], tmp_path / "fakes", SampleConfig(n=5, **QUICK), of_class="light"
    )
    images = pixels_of(tmp_path / "fakes")
    assert images.shape == (5, 32, 32, 3)
    store = open_store(report.store)
    assert np.array_equal(store.read("tiles/pixels"), images)
    assert store.slide.synthetic is not None
    assert store.slide.synthetic["tool"].endswith("generate sample")
    assert store.slide.mpp == 0.25 and store.slide.mpp_source == "generator"
    nuclei = store.nuclei("given")
    assert [nuclei.classes[i] for i in nuclei.class_id] == ["light"] * 5
    text = Image.open(tmp_path / "fakes" / "images" / "00003.png").text
    assert text["Synthetic"] == "true" and "image 3, condition: class light" in text["Source"]
    lines = (tmp_path / "fakes" / "cells.csv").read_text().splitlines()
    assert lines[0] == "file,label,slide_id,mpp,condition"
    assert lines[4] == "images/00003.png,light,fakes,0.25,class light"
    with open_cells(store, detector=None, cell_um=8.0) as crops:  # as other commands read it
        assert np.array_equal(crops.read(2), images[2])


def test_sample__more_images_begin_with_the_same_ones(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    for n in (4, 8):
        config = SampleConfig(n=n, sampler="sde", steps=3, device="cpu", batch_size=4)
        sample_run(runs["none"], tmp_path / str(n), config)
    assert np.array_equal(pixels_of(tmp_path / "4"), pixels_of(tmp_path / "8")[:4])


def test_sample__like_a_cell(runs: dict[str, Path], cells: Path, tmp_path: Path) -> None:
    like = f"{cells / 'a.zarr'}:1"
    config = SampleConfig(n=2, guidance=2.5, interval=(0.0, 0.75), **QUICK)
    sample_run(runs["encoder"], tmp_path / "fakes", config, like=[like])
    assert pixels_of(tmp_path / "fakes").shape == (2, 32, 32, 3)
    again = sample_run(runs["encoder"], tmp_path / "fakes", config, like=[like])
    assert again.skipped


@pytest.mark.parametrize(
    ("kind", "how", "changes", "said"),
    [
        ("class", {"of_class": "LSIL"}, {}, "no such class"),
        ("class", {"like": ["a.zarr:0"]}, {}, "takes no encoder's vector"),
        ("encoder", {"of_class": "light"}, {}, "has no classes"),
        ("encoder", {"like": ["a.zarr"]}, {}, "must be STORE:NUMBER"),
        ("encoder", {}, {"guidance": 2.0}, "none is given"),
        ("none", {}, {"guidance": 2.0}, "without a null vector.*without a condition"),
        ("always told", {"of_class": "light"}, {"guidance": 2.0}, "null vector.*--dropped 0"),
        ("always told", {}, {}, "no condition is given"),
    ],
)
def test_sample__what_it_cannot_do_is_one_line(
    runs: dict[str, Path],
    tmp_path: Path,
    kind: str,
    how: dict[str, Any],
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(UsageError, match=said):
        sample_run(runs[kind], tmp_path / "out", SampleConfig(n=2, **QUICK | changes), **how)
    assert not (tmp_path / "out").exists()


def test_sample__no_such_cell_and_an_encoder_of_another_width(
    runs: dict[str, Path], cells: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has 6 cells, counted from 0"):
        config = SampleConfig(n=1, **QUICK)
        sample_run(runs["encoder"], tmp_path / "out", config, like=[f"{cells / 'a.zarr'}:6"])
    with pytest.raises(UsageError, match=r"width \d+; the generator was trained with 384"):
        config = SampleConfig(n=1, encoder="handcrafted", **QUICK)
        sample_run(runs["encoder"], tmp_path / "out", config, like=[f"{cells / 'a.zarr'}:0"])
    with pytest.raises(InputError, match="not a finished RUN of `cytofm generate train`"):
        sample_run(tmp_path, tmp_path / "out", SampleConfig(n=1, **QUICK))


def test_sample__a_run_that_is_not_trained_to_its_end_is_one_line(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(runs["none"], begun)
    (begun / "summary.json").unlink()
    with pytest.raises(InputError, match="begun: is not trained to its end"):
        sample_run(begun, tmp_path / "out", SampleConfig(n=1, **QUICK))


def test_evaluate__has_floors_and_measures(
    runs: dict[str, Path], cells: Path, tmp_path: Path
) -> None:
    config = MeasureConfig(
        n=6, k=1, density_k=2, qualities=(95, 50), encoder=("cytofm-tiny", "handcrafted"), **QUICK
    )
    notes: list[str] = []
    stores = sorted(cells.glob("*.zarr"))
    report = evaluate_run(runs["encoder"], stores, tmp_path / "judged", config, note=notes.append)
    spaces = report.metrics["spaces"]
    assert set(spaces) == {"cytofm-tiny", "handcrafted"}
    tiny = spaces["cytofm-tiny"]
    assert (tiny["n"], tiny["dim"], tiny["fidelity"]["chance"]) == (6, 384, pytest.approx(1 / 6))
    assert "fidelity" not in spaces["handcrafted"] and spaces["handcrafted"]["standardised"]
    for space in spaces.values():  # a codec moves less than a generator of two steps
        assert space["jpeg"]["95"]["frechet"] < space["jpeg"]["50"]["frechet"]
        assert space["jpeg"]["50"]["frechet"] < space["made"]["frechet"]
    assert tiny["jpeg"]["95"]["fidelity"]["retrieval"] == 1.0
    assert tiny["autoencoder"]["fidelity"]["n"] == 6
    assert notes[0].startswith("cytofm-tiny: 6 images for 384 features")
    table = (tmp_path / "judged" / "table.md").read_text()
    assert "| the reference through the autoencoder |" in table
    assert "| real, other slides |" in table and "| the reference as JPEG 50 |" in table
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text()) == report.metrics
    assert evaluate_run(runs["encoder"], stores, tmp_path / "judged", config).skipped
    with pytest.raises(InputError, match="one slide only"):
        evaluate_run(runs["encoder"], stores[:1], tmp_path / "one", config)
    with pytest.raises(InputError, match=r"6 cells of every other.*least 7"):
        evaluate_run(runs["encoder"], stores, tmp_path / "few", MeasureConfig(n=6, k=6, **QUICK))
    assert not (tmp_path / "few").exists()


def test_through_autoencoder__gives_what_its_mean_decodes_to_in_batches_of_any_size(
    runs: dict[str, Path],
) -> None:
    generator = read_generator(runs["none"] / "generator.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    given_back = through_autoencoder(generator, images, 2, torch.device("cpu"))
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        wanted = generator.vae.decode(generator.vae.encode(x_BCHW).mean_BChw)
    levels = ((wanted + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(given_back - levels).max() <= 0.501
