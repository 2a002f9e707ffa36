"""`cytofm heatmap` on stores and RUNs of which the values are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytofm_cli.maps.picture import table_of
from cytofm_cli.store.io import open_store

from .mil_runs import copies

pytestmark = pytest.mark.slow

FEW = ("--folds", 2, "--seeds", 1, "--epochs", 1, "--inner-folds", 2, "--bootstrap", 100)


@pytest.fixture(scope="module")
def cohort(cytofm, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve stores with `labels.csv`, and a RUN `abmil` of them; for reading only."""
    folder = tmp_path_factory.mktemp("cohort")
    copies(stores, folder, "123")
    words = ("--bags", folder / "stores", "--labels", folder / "labels.csv", *FEW)
    made = cytofm("mil", "train", *words, "-o", folder / "abmil", "--method", "abmil")
    assert made.returncode == 0, made.stderr
    return folder


def train(here, cohort: Path, run: Path, method: str) -> Path:
    words = ("--bags", cohort / "stores", "--labels", cohort / "labels.csv", *FEW)
    made = here("mil", "train", *words, "-o", run, "--method", method)
    assert made.returncode == 0, made.stderr
    return run


def first_store(cohort: Path) -> Path:
    return min((cohort / "stores").glob("*.zarr"))


def test_heatmap__all_files_agree_and_are_aligned(here, cohort: Path, tmp_path: Path) -> None:
    path, maps = first_store(cohort), tmp_path / "maps"
    done = here("heatmap", cohort / "abmil", path, "-o", maps)
    assert done.returncode == 0, done.stderr
    name = path.stem
    files = [f"{name}{end}" for end in (".ome.tiff", ".png", ".geojson")]
    assert done.stdout.split() == [str(maps / file) for file in files]
    assert sorted(p.name for p in maps.iterdir() if p.is_file()) == sorted(files)
    content = json.loads((maps / files[2]).read_text())
    key = "attention for the slide's answer"
    values = np.array([f["properties"]["measurements"][key] for f in content["features"]])
    assert values.sum() == pytest.approx(1, abs=1e-4)
    store = open_store(path)
    ranks = [f["properties"]["measurements"][f"{key}, percentile"] for f in content["features"]]
    table, tones = table_of("viridis"), 1 + np.rint(np.array(ranks) / 100 * 254).astype(int)
    with tifffile.TiffFile(maps / files[0]) as file:
        pixels, text = file.asarray(), file.ome_metadata
    step = round(store.tile.tile_px0 / 16)
    width, height = store.slide.size_px0
    assert pixels.shape == (-(-height // step), -(-width // step), 3)
    assert f'PhysicalSizeX="{step * store.slide.mpp:.9g}"' in text
    assert f"attention for the slide's answer ({content['cytofm']['predicted']})" in text
    assert "head abmil" in text and "percentiles within the slide" in text
    corners, side = store.tile_xy_px0, store.tile.tile_px0
    points = corners + 0.4 * side
    checked = 0
    for point, tone in zip(points, tones.tolist(), strict=True):
        # Within no other tile, by more than a pixel of the map.
        near = (corners - step <= point) & (point < corners + side + step)
        inside = near.all(1).sum() == 1
        x, y = (point / step).astype(int).tolist()
        if inside and y < pixels.shape[0] and x < pixels.shape[1]:  # else another is on top
            assert np.abs(pixels[y, x].astype(int) - table[tone]).max() <= 1
            checked += 1
    assert checked >= 5
    with Image.open(maps / files[1]) as shown:
        assert shown.width >= 1200 and shown.mode == "RGB"


def test_heatmap__stored_values_are_drawn_and_nothing_is_written_into_stores(
    here, cohort: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "stores", cohort / "abmil"
    path = folder / first_store(cohort).name
    shutil.copytree(first_store(cohort), path)
    fresh = here("heatmap", run, path, "-o", tmp_path / "fresh", "--to", "geojson")
    assert fresh.returncode == 0, fresh.stderr
    assert not any(step.startswith("attention/") for step in open_store(path).steps)
    scored = here("mil", "score", run, path, "-o", tmp_path / "s.csv", "--geojson", tmp_path / "g")
    assert scored.returncode == 0, scored.stderr
    stored = here("heatmap", run, path, "-o", tmp_path / "stored", "--to", "geojson")
    assert stored.returncode == 0, stored.stderr
    name = f"{path.stem}.geojson"
    ours, theirs = (tmp_path / of / name for of in ("fresh", "stored"))
    assert ours.read_bytes() == theirs.read_bytes() == (tmp_path / "g" / name).read_bytes()
    # Values that another RUN of the name has left are not taken for this one's.
    other = train(here, cohort, tmp_path / "abmil", "max")
    drawn = here("heatmap", other, path, "-o", tmp_path / "other", "--to", "geojson")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "other" / name).read_bytes() != ours.read_bytes()


def test_heatmap__what_is_there_is_skipped_and_other_settings_refused(
    here, cohort: Path, tmp_path: Path
) -> None:
    words = ("heatmap", cohort / "abmil", first_store(cohort), "-o", tmp_path / "maps")
    assert here(*words, "--dry-run").returncode == 0
    assert not list((tmp_path).glob("maps/*.png"))
    assert here(*words).returncode == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "maps").iterdir() if p.is_file()}
    again = here(*words)
    assert again.returncode == 0 and "3 file(s) up to date" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in files} == files
    refused = here(*words, "--raw")
    assert refused.returncode == 2, refused.stderr
    assert "other settings" in refused.stderr and "--overwrite" in refused.stderr
    assert here(*words, "--raw", "--overwrite").returncode == 0


def test_heatmap__of_other_heads(here, cohort: Path, tmp_path: Path) -> None:
    path = first_store(cohort)
    expected = {
        "dsmil": ("attention for b", "score for b"),
        "clam_mb": ("attention for b", "score for b"),
        "max": ("attention for the slide's answer", "score for b"),
        "mean": (None, "score for b"),
    }
    for method, words in expected.items():
        run = train(here, cohort, tmp_path / method, method)
        for what, title in zip(("attention", "score"), words, strict=True):
            maps = tmp_path / f"{method}-{what}"
            done = here("heatmap", run, path, "-o", maps, "--to", "ome-tiff", "--what", what)
            if title is None:
                assert done.returncode == 3
                assert "weighs all instances alike" in done.stderr
                assert not maps.exists()
                continue
            assert done.returncode == 0, (method, what, done.stderr)
            with tifffile.TiffFile(maps / f"{path.stem}.ome.tiff") as file:
                assert title in file.ome_metadata


def test_heatmap__bad_input_is_one_line_and_leaves_nothing(
    here, cohort: Path, tmp_path: Path
) -> None:
    run, path, maps = cohort / "abmil", first_store(cohort), tmp_path / "maps"
    assert here("heatmap", tmp_path, path, "-o", maps).returncode == 3
    assert not maps.exists()
    for words, code, said in (
        ((tmp_path / "gone", path), 3, "gone"),
        ((run, tmp_path / "gone.zarr"), 3, "gone.zarr"),
        ((run, path, "--class", "c"), 2, "--class c: the RUN knows a, b."),
        ((run, path, "--class", "b"), 2, "for no class"),
        ((run, path, "--what", "score"), 2, "head 'abmil' gives no score"),
        ((run, path, "--to", "tiff"), 2, "choose ome-tiff, png, geojson"),
    ):
        done = here("heatmap", *words, "-o", maps)
        assert done.returncode == code, (words, done.stderr)
        assert said in done.stderr and done.stderr.count("\n") <= 2, done.stderr
        assert not maps.exists()


def test_heatmap__a_store_without_the_runs_embeddings_fails_alone(
    here, cohort: Path, tmp_path: Path
) -> None:
    good, bad = (tmp_path / "stores" / name for name in ("good.zarr", "bad.zarr"))
    for path in (good, bad):
        shutil.copytree(first_store(cohort), path)
    shutil.rmtree(bad / "embeddings")
    done = here("heatmap", cohort / "abmil", tmp_path / "stores", "-o", tmp_path / "maps")
    assert done.returncode == 4, done.stderr
    assert "bad.zarr" in done.stderr and "cytofm embed" in done.stderr
    assert {p.name.partition(".")[0] for p in (tmp_path / "maps").glob("*.png")} == {"good"}


def test_heatmap__cells_have_the_outlines_of_their_nuclei(
    here, detected: Path, tmp_path: Path
) -> None:
    folder = copies(detected, tmp_path, "123")
    assert here("embed", folder, "--encoder", "handcrafted", "--unit", "cell").returncode == 0
    words = ("--bags", folder, "--labels", tmp_path / "labels.csv", "--unit", "cell", *FEW)
    run = tmp_path / "run"
    made = here("mil", "train", *words, "-o", run, "--method", "abmil")
    assert made.returncode == 0, made.stderr
    path = min(folder.glob("*.zarr"))
    done = here("heatmap", run, path, "-o", tmp_path / "maps")
    assert done.returncode == 0, done.stderr
    store = open_store(path)
    nuclei = store.nuclei()
    features = json.loads((tmp_path / "maps" / f"{path.stem}.geojson").read_text())["features"]
    assert len(features) == len(nuclei)
    ring = np.array(features[3]["geometry"]["coordinates"][0])
    np.testing.assert_allclose(ring[:-1], nuclei.polygon(3), atol=0.006)
    with tifffile.TiffFile(tmp_path / "maps" / f"{path.stem}.ome.tiff") as file:
        pixels = file.asarray()
    step = round(1 / store.slide.mpp)
    covered = float((pixels != 255).any(-1).mean()) * pixels[..., 0].size * (step**2)
    area = float(nuclei.area_um2.sum()) / store.slide.mpp**2
    assert covered == pytest.approx(area, rel=0.5)  # 1 µm/px is coarse, and outlines overlap
    dots = here("heatmap", run, path, "-o", tmp_path / "dots", "--cells", "disk", "--to", "geojson")
    assert dots.returncode == 0, dots.stderr
    features = json.loads((tmp_path / "dots" / f"{path.stem}.geojson").read_text())["features"]
    assert {feature["geometry"]["type"] for feature in features} == {"Point"}
