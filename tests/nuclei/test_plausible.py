"""Well-formed files whose nuclei cannot be: masks, maps of classes, other scales, regions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.detectors.imported import ImportedConfig, ImportedNuclei
from cytofm_cli.nuclei.place import SlidePlace
from cytofm_cli.units import Size

SLIDE = SlidePlace(slide_id="s", size_px0=Size(1000, 800))
CENTRES = [(x, y) for x in range(60, 1000, 120) for y in range(60, 800, 170)]  # 8 x 5
SIDE = 20  # px; 25 µm² at 0.25 µm/px


def load(path: Path):
    notes: list[str] = []
    source = ImportedNuclei(ImportedConfig(nuclei=path))
    return source.read(0.25, SLIDE, notes.append), notes


def labels(path: Path, values: list[int]) -> Path:
    """Write a label image whose i-th square has values[i % len(values)]."""
    image = np.zeros((800, 1000), np.uint16)
    for i, (x, y) in enumerate(CENTRES):
        value = values[i % len(values)]
        image[y - SIDE // 2 : y + SIDE // 2, x - SIDE // 2 : x + SIDE // 2] = value
    tifffile.imwrite(path, image)
    return path


def geojson(path: Path, *, scale: float = 1, extra: tuple[float, ...] = ()) -> Path:
    squares = [(x, y, SIDE / 2) for x, y in CENTRES] + [(500, 400, side / 2) for side in extra]
    features = []
    for x, y, r in squares:
        ring = [[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r], [x - r, y - r]]
        ring = [[a * scale, b * scale] for a, b in ring]
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": shape, "properties": {}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("value", [1, 255])
def test_mask__of_one_value_is_cut_into_its_parts(tmp_path, value) -> None:
    table, notes = load(labels(tmp_path / "mask.tif", [value]))
    assert len(table) == 40
    np.testing.assert_allclose(table.area_um2, 25.0)
    want = sorted((y - 0.5, x - 0.5) for x, y in CENTRES)
    got = sorted((y, x) for x, y in table.xy_px0.tolist())
    np.testing.assert_allclose(got, want, atol=0.51)
    assert notes == [
        f"warning: {tmp_path / 'mask.tif'}: a mask of one value ({value}), not labels: each of its "
        "40 connected parts is taken as a nucleus; those that touch are one"
    ]


def test_map_of_classes__is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="3 labels in 40 separate parts: a map of classes"):
        load(labels(tmp_path / "types.tif", [1, 2, 3]))


def test_label_image__of_nuclei_is_taken_as_it_is(tmp_path) -> None:
    path = labels(tmp_path / "labels.tif", list(range(1, 41)))
    table, notes = load(path)
    assert (len(table), notes) == (40, [])
    image = tifffile.imread(path)
    image[image > 1] = 0
    image[0, 0] = 1  # a stray pixel: still one nucleus
    tifffile.imwrite(path, image)
    assert len(load(path)[0]) == 1


def test_micrometres_taken_for_pixels__are_told(tmp_path) -> None:
    table, notes = load(geojson(tmp_path / "um.geojson", scale=0.25))
    assert len(table) == 40
    assert len(notes) == 2
    assert "its nuclei have a median of 1.56 µm²; is the file in micrometres" in notes[0]
    assert "all 40 nuclei lie in the top left 225 x 185 px of 1000 x 800" in notes[1]
    (tmp_path / "um.csv").write_text(
        "x,y\n" + "".join(f"{x * 0.25},{y * 0.25}\n" for x, y in CENTRES)
    )
    assert ["top left" in note for note in load(tmp_path / "um.csv")[1]] == [True]


def test_regions__among_nuclei_are_told(tmp_path) -> None:
    assert load(geojson(tmp_path / "ok.geojson"))[1] == []
    table, notes = load(geojson(tmp_path / "region.geojson", extra=(500.0,)))
    assert len(table) == 41
    assert [note.partition(": ")[2].partition(": ")[2] for note in notes] == [
        "1 of 41 nuclei have more than 10000 µm²: are they regions?"
    ]
