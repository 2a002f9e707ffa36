"""`cytofm detect`, cell bags and nuclei exports on simulated fields."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import pyvips
import zarr

from cytofm_cli.nuclei.detectors.classical import ClassicalDetector


@pytest.fixture(scope="module")
def with_cells(cytofm, detected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores with nuclei and cell bags."""
    folder = tmp_path_factory.mktemp("cells")
    for store in sorted(detected.glob("*.zarr"))[:2]:
        shutil.copytree(store, folder / store.name)
    embedded = cytofm("embed", folder, "--unit", "cell", "--cell-um", 20)
    assert embedded.returncode == 0, embedded.stderr
    return folder


def test_detect__tiles_give_the_nuclei_of_the_whole_field(with_cells: Path, fields: Path) -> None:
    for store in with_cells.glob("*.zarr"):
        found = zarr.open_group(store, mode="r")["nuclei/classical/xy_px0"][:]
        image = pyvips.Image.new_from_file(str(fields / f"{store.stem}.jpg")).numpy()[..., :3]
        whole = ClassicalDetector().detect(image, 0.25).xy_px0
        tiles = zarr.open_group(store, mode="r")["tiles/xy_px0"][:]
        margin = 30  # nuclei whose surroundings lie in stored tiles see the same pixels
        corners = margin * np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])
        inside = [xy for xy in whole if all(_covered(xy + corner, tiles) for corner in corners)]
        gaps = [np.abs(found - xy).max(axis=1).min() for xy in inside]
        assert len(inside) > 5
        assert np.mean(np.array(gaps) < 1.0) > 0.95


def _covered(xy: np.ndarray, tiles: np.ndarray) -> bool:
    return bool(((xy >= tiles) & (xy < tiles + 256)).all(axis=1).any())


def test_embed__cell_bag_has_a_row_a_nucleus(with_cells: Path) -> None:
    for store in with_cells.glob("*.zarr"):
        group = zarr.open_group(store, mode="r")
        centres = group["embeddings/cytofm-tiny/cell/xy_px0"][:]
        np.testing.assert_array_equal(centres, np.round(group["nuclei/classical/xy_px0"][:]))
        assert group["embeddings/cytofm-tiny/cell/values"].shape[0] == len(centres)
        assert group.attrs["cytofm"]["steps"]["embeddings/cytofm-tiny/cell"]["unit"] == "cell"


def test_embed__cells_without_nuclei_say_what_to_run(cytofm, stores: Path) -> None:
    done = cytofm("embed", sorted(stores.glob("*.zarr"))[2], "--unit", "cell")
    assert done.returncode == 3
    assert "cytofm detect" in done.stderr


def test_export__geojson_and_csv_hold_every_nucleus(
    cytofm, with_cells: Path, tmp_path: Path
) -> None:
    for kind in ("geojson", "csv"):
        done = cytofm("export", with_cells, "-o", tmp_path, "--to", kind)
        assert done.returncode == 0, done.stderr
    for store in with_cells.glob("*.zarr"):
        area = zarr.open_group(store, mode="r")["nuclei/classical/area_um2"][:]
        shapes = json.loads((tmp_path / f"{store.stem}.geojson").read_text())["features"]
        assert len(shapes) == len(area)
        assert {shape["geometry"]["type"] for shape in shapes} == {"Polygon"}
        rows = list(csv.DictReader((tmp_path / f"{store.stem}.csv").read_text().splitlines()))
        np.testing.assert_allclose([float(row["area_um2"]) for row in rows], area, atol=1e-3)
        assert all(0 <= float(row["eccentricity"]) < 1 for row in rows)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--detector", "cellvit"), 3, "eights"),
        (("--detector", "clasical"), 2, "classical"),
        (("--set", "min_probability=2"), 2, "at most"),
        (("--set", "min_probability"), 2, "KEY=VALUE"),
        (("--stain", "gram"), 2, "choose auto, pap, mgg, he, fluorescence"),
        (("--stain", "pap", "--set", "stain=he"), 2, "--set stain=he says otherwise"),
        (("--detector", "instanseg", "--weights", "none.pt"), 3, "no such file"),
    ],
)
def test_detect__what_cannot_be_is_refused_in_one_line(
    cytofm, stores: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = cytofm("detect", sorted(stores.glob("*.zarr"))[0], *words)
    assert said in done.stderr
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_detect__stain_is_a_setting_of_the_detector(here, stores: Path, tmp_path: Path) -> None:
    store = shutil.copytree(sorted(stores.glob("*.zarr"))[0], tmp_path / "a.zarr")
    done = here("detect", store, "--stain", "he")
    assert done.returncode == 0, done.stderr
    facts = zarr.open_group(store, mode="r")["nuclei/classical"].attrs["cytofm"]
    assert facts["stain"]["name"] == "he"


@pytest.mark.parametrize(
    "words",
    [
        ("--detector", "clasical"),
        ("--set", "min_prob=0.3"),
        ("--set", "min_probability=2"),
        ("--set", "nuclei=blue"),
        ("--device", "gpu"),
        ("--weights", "README.md"),
        ("--detector", "cellvit"),
        ("--detector", "cellvit", "--weights", "README.md"),
    ],
)
def test_detect__what_is_wrong_for_all_slides_is_said_once(
    here, stores: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in sorted(stores.glob("*.zarr"))[:2]:
        shutil.copytree(store, tmp_path / store.name)
    monkeypatch.chdir(Path(__file__).parents[2])  # README.md is no file of weights
    done = here("detect", tmp_path, *words, "--no-progress")
    assert done.returncode in (2, 3)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "failures.jsonl").exists()


def test_steps__say_how_much_they_found_for_each_slide_and_in_all(
    here, stores: Path, tmp_path: Path
) -> None:
    made = [tmp_path / store.name for store in sorted(stores.glob("*.zarr"))[:2]]
    for store in made:
        shutil.copytree(stores / store.name, store)
    found = here("detect", tmp_path).stderr
    counts = [len(zarr.open_group(s, mode="r")["nuclei/classical/xy_px0"][:]) for s in made]
    assert min(counts) > 0
    for store, count in zip(made, counts, strict=True):
        assert f"{store.stem}: {count} nuclei in nuclei/classical\n" in found
    assert f"detect: 2 done: {sum(counts)} nuclei in nuclei/classical\n" in found
    again = here("detect", tmp_path).stderr
    assert again == f"detect: 2 skipped (done before): {sum(counts)} nuclei in nuclei/classical\n"
    rows = sum(
        len(zarr.open_group(s, mode="r")["embeddings/handcrafted/tile/values"][:]) for s in made
    )
    told = f"embed: 2 skipped (done before): {rows} rows of 263 numbers in embeddings/handcrafted"
    assert told in here("embed", tmp_path).stderr


def write_square(path: Path, x: float, y: float) -> None:
    ring = [[x - 9, y - 9], [x + 9, y - 9], [x + 9, y + 9], [x - 9, y + 9], [x - 9, y - 9]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    path.write_text(json.dumps([{"type": "Feature", "geometry": shape, "properties": {}}]))


@pytest.mark.slow
def test_import__each_slide_gets_its_own_nuclei(cytofm, stores: Path, tmp_path: Path) -> None:
    slides = sorted(path.stem for path in stores.glob("*.zarr"))[:3]
    for slide in slides:
        shutil.copytree(stores / f"{slide}.zarr", tmp_path / "stores" / f"{slide}.zarr")
    (tmp_path / "nuclei").mkdir()
    write_square(tmp_path / "nuclei" / f"{slides[0]}.geojson", 300, 200)
    write_square(tmp_path / "nuclei" / f"{slides[1]}.jpg.geojson", 320, 210)
    write_square(tmp_path / "nuclei" / "other.geojson", 100, 100)
    words = ("detect", tmp_path / "stores", "--detector", "import", "--nuclei")
    done = cytofm(*words, tmp_path / "nuclei")
    assert done.returncode == 4, done.stderr
    assert f"error: {slides[2]}: {tmp_path / 'nuclei'} holds no nuclei of this slide" in done.stderr
    assert f"{slides[1]}: nuclei from {tmp_path / 'nuclei' / slides[1]}.jpg.geojson" in done.stderr
    assert "warning: 1 belong to none of the 3 slides" in done.stderr
    assert "other.geojson" in done.stderr
    for slide, xy in zip(slides[:2], [(300, 200), (320, 210)], strict=True):
        group = zarr.open_group(tmp_path / "stores" / f"{slide}.zarr", mode="r")
        np.testing.assert_array_equal(group["nuclei/imported/xy_px0"][:], [xy])
    first = tmp_path / "stores" / f"{slides[0]}.zarr"
    words_of_export = ("--to", "csv", "--detector", "import")  # as it was typed for detect
    assert cytofm("export", first, "-o", tmp_path / "out", *words_of_export).returncode == 0
    one = tmp_path / "nuclei" / f"{slides[0]}.geojson"
    done = cytofm(*words, one)
    assert done.returncode == 2
    assert f"{one}: does not say which slide" in done.stderr
    done = cytofm("detect", tmp_path / "stores" / f"{slides[2]}.zarr", "--detector", "import",
                  "--weights", one)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning: --detector import has no weights" in done.stderr
    done = cytofm("detect", tmp_path / "stores", "--nuclei", one)
    assert done.returncode == 2
    assert "add --detector import" in done.stderr
