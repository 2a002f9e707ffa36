"""Bags by a table: `mil train|score|benchmark --bag-table` on stores of images of cells."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.errors import InputError
from cytofm_cli.mil.bag_table import read_bag_table
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.store import io

PATIENTS, CELLS = 6, 8


def cell_name(patient: int, number: int) -> str:
    return f"P{patient}/{number}.png"


def make_bags() -> dict[str, list[str]]:
    """Give two bags a patient: `a` has a dark cell, and cell 2 is in both."""
    bags = {}
    for patient in range(PATIENTS):
        bags[f"P{patient}a"] = [cell_name(patient, number) for number in (3, 2, 0)]
        bags[f"P{patient}b"] = [cell_name(patient, number) for number in (2, 1, 4, 5)]
    return bags


BAGS = make_bags()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give images of cells, their stores with embeddings, the table of bags and its labels."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    rows = ["file,slide_id,label"]
    for patient, number in itertools.product(range(PATIENTS), range(CELLS)):
        image = np.zeros((40, 40, 3), np.uint8)
        base = 60 if number == 0 else 180
        image[4:-4, 4:-4] = base + rng.integers(0, 30, (32, 32, 3)) + 5 * patient
        path = folder / cell_name(patient, number)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        label = "light" if number else "dark"
        rows.append(f"{cell_name(patient, number)},P{patient},{label}")
    (folder / "cells.csv").write_text("\n".join(rows) + "\n")
    write_bags(folder / "bags.csv", BAGS)
    labels = [f"{bag},{'dark' if bag.endswith('a') else 'light'},{bag[:-1]}" for bag in BAGS]
    (folder / "labels.csv").write_text("\n".join(["slide_id,label,group", *labels]) + "\n")
    make_stores(folder / "cells.csv", folder / "stores")
    return folder


def make_stores(table: Path, stores: Path) -> None:
    cytofm.tile([], stores, cells=table, slide_mpp=0.25, tile_px=48).raise_failures()
    for unit in ("tile", "cell"):
        cytofm.embed(stores, encoder="handcrafted", unit=unit).raise_failures()


def write_bags(path: Path, bags: dict[str, list[str]]) -> Path:
    rows = [f"{bag},{file}" for bag, files in bags.items() for file in files]
    path.write_text("\n".join(["slide_id,file", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def by_hand(cohort: Path) -> Path:
    """Give a store a bag: what one has to make without a table of bags."""
    for bag, files in BAGS.items():
        table = cohort / f"{bag}.csv"
        table.write_text("\n".join(["file,slide_id", *(f"{file},{bag}" for file in files)]) + "\n")
        make_stores(table, cohort / "by-hand")
    return cohort / "by-hand"


@pytest.mark.parametrize("unit", ["tile", "cell"])
@pytest.mark.slow
def test_load_bags__bags_of_a_table_equal_bags_cut_by_hand(
    cohort: Path, by_hand: Path, unit: str
) -> None:
    by_table = load_bags(cohort / "stores", None, unit, table=cohort / "bags.csv")
    wanted = load_bags(by_hand, None, unit)
    assert [bag.slide_id for bag in by_table] == sorted(BAGS)
    for bag, other in zip(by_table, wanted, strict=True):
        assert bag.slide_id == other.slide_id
        assert len(bag.features_ND) == len(BAGS[bag.slide_id])
        np.testing.assert_array_equal(bag.features_ND, other.features_ND)
        assert bag.origin == other.origin


def test_mil_train__on_a_table_of_bags_is_as_on_bags_cut_by_hand(
    here, cohort: Path, by_hand: Path
) -> None:
    how = ("--labels", cohort / "labels.csv", "--unit", "cell", "--method", "mean", "--folds", 2)
    how = (*how, "--epochs", 2, "--seeds", 1, "--bootstrap", 100, "--workers", 1)
    for run, words in {
        "table": ("--bags", cohort / "stores", "--bag-table", cohort / "bags.csv"),
        "hand": ("--bags", by_hand),
    }.items():
        done = here("mil", "train", *words, *how, "-o", cohort / run)
        assert done.returncode == 0, done.stderr
        assert "12 slides of 6 groups" in done.stderr
        assert "of several groups" not in done.stderr
    for name in ("predictions.csv", "splits.csv", "config.toml"):
        assert (cohort / "table" / name).read_text() == (cohort / "hand" / name).read_text()
    scored = ("mil", "score", cohort / "table", cohort / "stores", "--bag-table")
    done = here(*scored, cohort / "bags.csv", "-o", cohort / "table.csv")
    assert done.returncode == 0, done.stderr
    assert here("mil", "score", cohort / "hand", by_hand, "-o", cohort / "hand.csv").returncode == 0
    assert (cohort / "table.csv").read_text() == (cohort / "hand.csv").read_text()
    assert not any("attention" in path.name for path in (cohort / "stores").glob("*.zarr/*"))
    for word in (("--attention",), ("--geojson", cohort / "maps")):
        refused = here(*scored, cohort / "bags.csv", *word)
        assert (refused.returncode, "and --bag-table: " in refused.stderr) == (2, True)


def test_mil_benchmark__takes_a_table_of_bags(here, cohort: Path) -> None:
    words = ("--bags", cohort / "stores", "--bag-table", cohort / "bags.csv", "--folds", 2)
    how = ("--labels", cohort / "labels.csv", "--method", "mean", "--epochs", 1, "--seeds", 1)
    done = here(
        "mil", "benchmark", *words, *how, "--bootstrap", 100, "--workers", 1, "-o", cohort / "bench"
    )
    assert done.returncode == 0, done.stderr
    assert "12 slides of 6 groups" in done.stderr
    runs = list((cohort / "bench" / "runs").glob("*/predictions.csv"))
    assert len(runs) == 1
    assert len(runs[0].read_text().splitlines()) == 1 + len(BAGS)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            "P0a,P0/0.png\nP0b,P0/nine.png",
            "1 files of 1 bags are in no store: P0/nine.png (bags P0",
        ),
        ("P0a,P0/0.png\nP0b,", "1 bags name no file: P0b"),
        ("P0a,P0/0.png\nP0a,P0/0.png", "line 3: P0/0.png comes twice in bag P0a"),
        (",P0/0.png", "line 2: a cell of no bag"),
    ],
)
def test_bag_table__bad_rows_are_named(
    here, cohort: Path, tmp_path: Path, rows: str, said: str
) -> None:
    table = tmp_path / "bags.csv"
    table.write_text(f"slide_id,file\n{rows}\n")
    words = ("--bags", cohort / "stores", "--bag-table", table, "--labels", cohort / "labels.csv")
    done = here("mil", "train", *words, "-o", tmp_path / "run")
    assert (done.returncode, said in done.stderr) == (3, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_bag_table__cells_in_bags_of_several_patients_are_named(
    here, cohort: Path, tmp_path: Path
) -> None:
    bags = BAGS | {"P1a": [*BAGS["P1a"], cell_name(0, 3)]}
    table = write_bags(tmp_path / "bags.csv", bags)
    words = ("--bags", cohort / "stores", "--bag-table", table, "--labels", cohort / "labels.csv")
    how = ("--unit", "cell", "--method", "mean", "--folds", 2, "--epochs", 1, "--seeds", 1)
    done = here("mil", "train", *words, *how, "--bootstrap", 100, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "warning: 1 cell(s) are in bags of several groups: what is learnt of" in done.stderr
    assert "judged with them: P0/3.png (P0, P1)" in done.stderr


def test_bag_table__labels_must_be_of_its_bags(here, cohort: Path, tmp_path: Path) -> None:
    some = {bag: files for bag, files in BAGS.items() if bag != "P0b"}
    words = ("--bags", cohort / "stores", "--bag-table", write_bags(tmp_path / "bags.csv", some))
    done = here("mil", "train", *words, "--labels", cohort / "labels.csv", "-o", tmp_path / "run")
    assert done.returncode == 3
    assert "1 labelled slide(s) have no bag: P0b" in done.stderr


def test_bag_table__needs_stores_of_cells_each_with_names_of_its_own(
    cohort: Path, by_hand: Path, tmp_path: Path
) -> None:
    table = cohort / "bags.csv"
    with pytest.raises(InputError, match=r"P0/2.png is in two stores, P0a.zarr and P0b.zarr"):
        load_bags(by_hand, None, "tile", table=table)
    slide = tmp_path / "slide.png"
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(slide)
    cytofm.tile(slide, tmp_path / "st", foreground="none", tile_px=64, slide_mpp=0.25)
    with pytest.raises(InputError, match="holds tiles of a slide, not images of cells"):
        load_bags(tmp_path / "st", None, "tile", table=table)


def test_bag_table__bag_of_cells_of_several_stores_keeps_the_order_of_its_rows(
    cohort: Path, tmp_path: Path
) -> None:
    files = [cell_name(1, 3), cell_name(0, 2), cell_name(1, 0)]
    table = write_bags(tmp_path / "bags.csv", {"mixed": files})
    (bag,) = load_bags(cohort / "stores", None, "cell", table=table)
    for row, file in enumerate(files):
        store = cytofm.open_store(cohort / "stores" / f"{file.split('/')[0]}.zarr")
        values = store.embeddings("handcrafted", "cell").values
        np.testing.assert_array_equal(bag.features_ND[row], values[store.files().index(file)])


def test_count__takes_the_classes_of_the_cells_of_a_table(
    here, cohort: Path, tmp_path: Path
) -> None:
    stores = Path(shutil.copytree(cohort / "stores", tmp_path / "stores"))
    run = tmp_path / "run"
    train = here(
        "cells", "train", stores, "-o", run, "--encoder", "handcrafted", "--penalty", 0.01,
        "--replicates", 100, "--threads", 1,
    )  # fmt: skip
    assert train.returncode == 0, train.stderr
    assert here("cells", "apply", run, stores).returncode == 0
    bags = load_bags(stores, "cells:run", "cell", table=cohort / "bags.csv")
    members = read_bag_table(cohort / "bags.csv")
    place = {
        file: (path, tile)
        for path in sorted(stores.iterdir())
        for tile, file in enumerate(io.open_store(path).files() or ())
    }
    for bag in bags:
        by_hand = [
            io.open_store(path).read("classes/run/probability")[tile]
            for path, tile in (place[file] for file in members[bag.slide_id])
        ]
        assert np.array_equal(bag.features_ND, np.stack(by_hand))
        assert bag.basis == "out-of-fold"
