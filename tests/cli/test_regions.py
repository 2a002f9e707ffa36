"""`--regions` and limits of quality, from the command line to the probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.store.io import open_store

SIDE = 768
GEOMETRY = {"Tumor": (0, 0, 500, 768), "Stroma": (500, 0, 768, 500), "Artefact": (0, 0, 256, 256)}
HOW = ("--slide-mpp", 0.25, "--tile-px", 128, "--no-progress")


def picture(seed: int = 0) -> np.ndarray:
    """Return a field of nuclei, those of the left half more red."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 238, np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for x in range(32, SIDE, 64):
        for y in range(32, SIDE, 64):
            far = np.hypot(columns - x - rng.integers(-6, 6), rows - y - rng.integers(-6, 6))
            image[far < 13] = (90, 40, 120) if x < 500 else (70, 60, 150)
    return image


def regions(path: Path, geometry: dict[str, tuple] = GEOMETRY) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[a, b], [c, b], [c, d], [a, d], [a, b]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, (a, b, c, d) in geometry.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture
def field(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    regions(tmp_path / "a.geojson")
    return path


def test_tile__keeps_labels_and_says_what_regions_did(here, field: Path, tmp_path: Path) -> None:
    words = ("tile", field, "-o", tmp_path / "s", *HOW, "--regions", tmp_path / "a.geojson")
    chosen = ("--region-include", "Tumor,Stroma", "--region-exclude", "Artefact")
    done = here(*words, *chosen)
    assert done.returncode == 0, done.stderr
    # By hand, of 36 middles at 64, 192, …, 704: Tumor holds x < 500 (4 columns of 6), Stroma
    # 2 columns of 4 rows; Artefact takes the 4 tiles of the corner.
    told = "regions of a.geojson (centre): 4 of 36 tiles with foreground lie outside, 4 in excluded"
    assert told in done.stderr and "labelled Tumor 20, Stroma 8, none 0" in done.stderr
    store = open_store(tmp_path / "s" / "a.zarr")
    tiles = store.tiles()
    assert tiles.labels == ("Tumor", "Stroma") and len(tiles) == 28
    middle = tiles.xy_px0 + 64
    assert ((middle[:, 0] < 500) == (tiles.label == 0)).all()
    record = store.tile.regions
    assert record is not None and record["rule"] == "centre"
    assert record["classes"] == {"Tumor": 1, "Stroma": 1, "Artefact": 1}
    assert (record["n_outside"], record["n_excluded"]) == (4, 4)
    frame = cytofm.tiles_frame(store)
    assert frame["region"].value_counts().to_dict() == {"Tumor": 20, "Stroma": 8}
    assert {"pen", "edge", "clump", "saturation", "blank"} <= set(frame.columns)
    said = here("info", tmp_path / "s" / "a.zarr").stdout
    assert told in said and "quality, mean of the tiles: pen 0.000" in said

    # The same again is skipped, also under another path; others are refused by name.
    (tmp_path / "a.geojson").rename(tmp_path / "b.geojson")
    words = (*words[:-1], tmp_path / "b.geojson")
    assert "skipped" in here(*words, *chosen).stderr
    refused = here(*words, *chosen, "--region-rule", "fraction>=0.5")
    assert refused.returncode == 2
    assert "region_rule: 'centre' → 'fraction>=0.5'" in refused.stderr
    regions(tmp_path / "b.geojson", GEOMETRY | {"Tumor": (0, 0, 400, 768)})
    refused = here(*words, *chosen)
    assert refused.returncode == 2 and "regions: '" in refused.stderr
    without = here(*words[:-2])
    assert without.returncode == 2 and "region_include: ['Tumor', 'Stroma'] →" in without.stderr


def test_detect_and_embed__look_at_what_lies_inside(here, field: Path, tmp_path: Path) -> None:
    stores, path = tmp_path / "s", tmp_path / "a.geojson"
    assert here("tile", field, "-o", stores, *HOW).returncode == 0
    inside = ("--regions", tmp_path / "{slide}.geojson", "--region-include", "Stroma")
    assert here("detect", stores, *inside, "--no-progress").returncode == 0
    whole = open_store(stores / "a.zarr")
    nuclei = whole.nuclei("classical")
    assert len(nuclei) == 32  # of those at 32, 96, …: 4 columns right of 500, 8 rows above it
    assert ((nuclei.xy_px0[:, 0] > 500) & (nuclei.xy_px0[:, 1] < 500)).all()
    record = whole.nuclei_record("classical").regions
    assert record is not None and record["n_outside"] == 144 - 32
    assert here("embed", stores, "--encoder", "handcrafted", *inside).returncode == 0
    again = here("embed", stores, "--encoder", "handcrafted", *inside)
    assert "skipped" in again.stderr, again.stderr
    bag = open_store(stores / "a.zarr").embeddings("handcrafted", "tile")
    assert len(bag) == 8 and (bag.xy_px0 + 64 > [500, 0]).all()
    refused = here("embed", stores, "--encoder", "handcrafted")
    assert refused.returncode == 2 and "region_include: ['Stroma'] → default" in refused.stderr
    # The rows are those of the whole bag.
    assert here("embed", stores, "--encoder", "handcrafted", "--overwrite").returncode == 0
    every = open_store(stores / "a.zarr").embeddings("handcrafted", "tile")
    rows = [every.xy_px0.tolist().index(corner) for corner in bag.xy_px0.tolist()]
    # Other rows share a batch, so sums of float32 may round otherwise.
    np.testing.assert_allclose(every.values[rows], bag.values, rtol=1e-4, atol=1e-5)
    assert here("embed", stores, "--unit", "cell", "--encoder", "handcrafted",
                "--regions", path, "--region-exclude", "Stroma").returncode == 3  # fmt: skip


def test_bag_of_regions__is_refused_where_every_tile_counts(
    here, field: Path, tmp_path: Path
) -> None:
    stores = tmp_path / "s"
    assert here("tile", field, "-o", stores, *HOW).returncode == 0
    inside = ("--regions", tmp_path / "a.geojson", "--region-include", "Stroma")
    assert here("embed", stores, "--encoder", "handcrafted", *inside).returncode == 0
    done = here("export", stores, "-o", tmp_path / "e", "--to", "h5ad", "--unit", "tile")
    assert done.returncode == 3 and "holds only what lies in regions" in done.stderr
    assert (
        here("export", stores, "-o", tmp_path / "e", "--to", "h5", "--unit", "tile").returncode == 0
    )


def test_run__one_flag_speaks_to_all_steps(here, field: Path, tmp_path: Path) -> None:
    inside = ("--regions", tmp_path / "{slide}.geojson", "--region-include", "Stroma")
    done = here("run", field, "-o", tmp_path / "o", *HOW, *inside, "--unit", "tile")
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / "o" / "stores" / "a.zarr")
    assert store.tile.n_tiles == 8
    assert store.nuclei_record().regions is not None
    assert store.embedding_record(None, "tile").regions is not None
    # Nothing was left to leave out: each tile has its row, and whoever needs that has it.
    done = here("export", tmp_path / "o" / "stores", "-o", tmp_path / "e", "--to", "h5ad",
                "--unit", "tile")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_probe__takes_the_labels_of_regions(here, tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(picture(number)).save(tmp_path / f"s{number}.png")
        regions(tmp_path / f"s{number}.geojson")
    stores = tmp_path / "stores"
    files = [tmp_path / f"s{number}.png" for number in range(4)]
    labels = ("--regions", tmp_path / "{slide_id}.geojson", "--region-label", "Tumor,Stroma")
    assert here("tile", *files, "-o", stores, *HOW, *labels).returncode == 0
    assert open_store(stores / "s0.zarr").tile.n_tiles == 36  # labels leave nothing out
    done = here("evaluate", "probe", stores, "-o", tmp_path / "run", "--unit", "tile",
                "--k", 10, "--shots", 4, "--draws", 2, "--replicates", 100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["tasks"]["labels"]["counts"] == {"Stroma": 32, "Tumor": 96}
    assert metrics["tasks"]["labels"]["encoders"]["handcrafted"]["probes"]["linear"]["auc"][
        "value"] > 0.99  # fmt: skip
    refused = here("evaluate", "probe", stores, "-o", tmp_path / "x")
    assert refused.returncode == 2 and "--unit tile" in refused.stderr


@pytest.mark.parametrize(
    ("geometry", "words", "code", "told"),
    [
        ({"Tumor": (5000, 0, 6000, 100)}, (), 3, "1 of 1 regions lie outside the slide a"),
        ({"Tumor": (20, 20, 190, 190)}, (), 3, "micrometres"),  # 768 px are 192 µm
        (GEOMETRY, ("--region-include", "Lymph"), 3, "holds no region of class Lymph"),
        (GEOMETRY, ("--region-rule", "half"), 2, "choose centre, or 'fraction>=F'"),
        (GEOMETRY, ("--region-include", "Tumor", "--region-exclude", "Tumor"), 2, "and excluded"),
        ({"Tumor": (0, 0, 30, 30)}, (), 3, "leaves none of 36 tiles with foreground: 36 lie"),
        ({}, (), 3, "holds no regions"),
    ],
)
@pytest.mark.slow
def test_bad_regions__leave_nothing_behind(
    here, field: Path, tmp_path: Path, geometry: dict, words: tuple, code: int, told: str
) -> None:
    path = regions(tmp_path / "r.geojson", geometry)
    done = here("tile", field, "-o", tmp_path / "s", *HOW, "--regions", path, *words)
    assert done.returncode == code and told in done.stderr, done.stderr
    assert not list((tmp_path / "s").glob("**/zarr.json"))


@pytest.mark.slow
def test_slide_without_regions__fails_alone(here, field: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "b.png")
    words = ("tile", field, tmp_path / "b.png", "-o", tmp_path / "s", *HOW)
    done = here(*words, "--regions", tmp_path / "{slide}.geojson")
    assert done.returncode == 4 and "holds no regions of this slide" in done.stderr
    assert (tmp_path / "s" / "a.zarr").exists() and not (tmp_path / "s" / "b.zarr").exists()
    one_file = here(*words, "--regions", tmp_path / "a.geojson")
    assert one_file.returncode == 2 and "does not say which slide" in one_file.stderr


@pytest.mark.slow
def test_limits__remove_count_and_never_empty_a_slide(here, field: Path, tmp_path: Path) -> None:
    image = picture()
    image[:, 256:384] = (25, 30, 140)  # a stroke of pen over a column of tiles
    Image.fromarray(image).save(field)
    done = here("tile", field, "-o", tmp_path / "all", *HOW, "--foreground", "none")
    tiles = open_store(tmp_path / "all" / "a.zarr").tiles()
    dirty = tiles.quality["pen"] > 0.9  # its neighbours have the margin
    assert dirty.sum() == 6 and (tiles.xy_px0[dirty, 0] == 256).all()
    words = ("tile", field, "-o", tmp_path / "s", *HOW, "--foreground", "none")
    done = here(*words, "--max-pen", 0.9)
    assert "limits of quality take away 6 of 36 tiles: pen > 0.9 6" in done.stderr
    store = open_store(tmp_path / "s" / "a.zarr")
    assert store.tile.quality == {"limits": {"pen": 0.9}, "removed": {"pen": 6}, "n_removed": 6}
    assert store.tile.n_tiles == store.tile.n_candidates == 30
    assert "skipped" in here(*words, "--max-pen", 0.9).stderr
    refused = here(*words, "--max-pen", 0.8)
    assert refused.returncode == 2 and "max_pen: 0.9 → 0.8" in refused.stderr
    empty = here("tile", field, "-o", tmp_path / "e", *HOW, "--max-blank", 0.0)
    assert empty.returncode == 3 and "the limits of quality leave none of" in empty.stderr
    assert not (tmp_path / "e" / "a.zarr").exists()


def test_limits_and_regions__mean_nothing_for_images_of_cells(here, field: Path) -> None:
    for words in (("--max-pen", 0.1), ("--regions", "x.geojson")):
        done = here("tile", "--cells", field.parent, "-o", field.parent / "s", *words)
        assert done.returncode == 2 and "means nothing with --cells" in done.stderr
