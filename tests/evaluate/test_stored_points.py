"""`evaluate probe` on stores of images of cells: their labels are in the stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.errors import LabelError, UsageError
from cytofm_cli.evaluate import features
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.points import Points, make_tasks, read_points
from cytofm_cli.evaluate.stored_points import stored_points

LABELS = {
    "s0": ["dark", "light", ""],
    "s1": ["Light", "dark"],
    "s2": ["dark", "light"],
    "s3": ["light", "dark", "rare"],
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give four stores of dark cells (40 to 69) and light ones (180 to 209), one without label."""
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    rows = ["file,slide_id,label,x,y"]
    for slide, labels in LABELS.items():
        for number, label in enumerate(labels):
            image = np.zeros((36, 36, 3), np.uint8)
            base = 40 if label == "dark" else 180
            image[4:-4, 4:-4] = base + rng.integers(0, 30, (28, 28, 3))
            Image.fromarray(image).save(folder / f"{slide}_{number}.png")
            rows.append(f"{slide}_{number}.png,{slide},{label},{12 + number},20")
    (folder / "cells.csv").write_text("\n".join(rows) + "\n")
    with pytest.warns(cytofm.CytofmWarning, match="class 'light' is also written 'Light'"):
        cytofm.tile([], folder / "stores", cells=folder / "cells.csv", slide_mpp=0.25)
    return folder / "stores"


def sources(stores: Path) -> list[Source]:
    return [Source(path.stem, str(path)) for path in sorted(stores.glob("*.zarr"))]


def by_table(stores: Path) -> Points:
    """Return the same points out of a table: where each cell lies on its sheet of 48-px tiles."""
    rows = []
    for slide, labels in LABELS.items():
        for number, label in enumerate(labels):
            x, y = 48 * (number % 2) + 6 + 12 + number, 48 * (number // 2) + 6 + 20
            rows += [f"{slide},{x},{y},{label}"] if label else []
    path = stores.parent / "points.csv"
    path.write_text("\n".join(["slide_id,x,y,label", *rows]) + "\n")
    return read_points(path, set(LABELS))[0]


def test_stored_points__are_those_of_a_table_written_by_hand(stores: Path) -> None:
    points, wanted = stored_points(sources(stores)), by_table(stores)
    assert points.slides == wanted.slides
    assert points.labels == wanted.labels
    assert points.groups == wanted.groups
    np.testing.assert_array_equal(points.xy_px0, wanted.xy_px0)
    assert len(points) == 9


def test_stored_points__a_class_with_one_member_is_left_out_and_said(stores: Path) -> None:
    (task,) = make_tasks(stored_points(sources(stores)), None, None)
    assert (task.counts, task.left_out) == ({"dark": 4, "light": 4}, {"rare": 1})


def test_stored_points__groups_come_from_a_table(stores: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("slide_id,group\ns0,A\ns1,A\ns2,B\ns3,B\n")
    points = stored_points(sources(stores), table)
    assert points.groups == ("A",) * 4 + ("B",) * 5
    table.write_text("slide_id,group\ns0,A\ns1,A\ns2,B\n")
    with pytest.raises(LabelError, match=r"1 slide\(s\) have no group: s3"):
        stored_points(sources(stores), table)


def test_stored_points__one_group_or_no_label_cannot_be_judged(
    stores: Path, tmp_path: Path
) -> None:
    with pytest.raises(LabelError, match="belong to one group"):
        make_tasks(stored_points(sources(stores)[:1]), None, None)
    image = tmp_path / "a.png"
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(image)
    cytofm.tile([], tmp_path / "st", cells=tmp_path, slide_mpp=0.25).raise_failures()
    with pytest.raises(LabelError, match="no cell of these stores has a label"):
        stored_points(sources(tmp_path / "st"))
    with pytest.raises(UsageError, match="needs labelled points"):
        stored_points([Source("a", str(image))])


def test_label_tiles__one_label_needs_no_order(stores: Path) -> None:
    points = stored_points(sources(stores))
    tiles = features.label_tiles(points, sources(stores), rule="worst", positive=None)
    assert tiles.labels == points.labels
    assert tiles.tile_N is not None
    assert tiles.tile_N.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 2]


def test_locate__finds_every_point_in_its_tile(stores: Path) -> None:
    points = stored_points(sources(stores))
    kept, n_left_out = features.locate(points, sources(stores))
    assert (len(kept), n_left_out) == (9, 0)


@pytest.mark.parametrize("unit", ["cell", "tile"])
def test_probe__needs_no_table_of_points(stores: Path, tmp_path: Path, unit: str) -> None:
    report = cytofm.probe(
        stores, None, tmp_path / "run", unit=unit, crop_um=8.0, replicates=100, folds=4, k=(2,),
        shots=(1,), draws=2,
    )  # fmt: skip
    task = report.metrics["tasks"]["labels"]
    assert task["counts"] == {"dark": 4, "light": 4}
