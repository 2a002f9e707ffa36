"""The true nuclei of a cohort, and detections judged by them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.api.truth import NucleiFound, judge_nuclei
from cytofm_cli.errors import InputError
from cytofm_cli.simulate.ground import ANUCLEATE, CYTOPLASM, GLASS, GROUNDS, NUCLEUS, grounds
from cytofm_cli.simulate.nuclei import points_table, read_nuclei
from cytofm_cli.stats.classes import is_bethesda

SIDE_PX = 900  # of the fields of `simulated`


def test_read_nuclei__middles_lie_on_the_nucleus_of_the_label_image(simulated: Path) -> None:
    nuclei = read_nuclei(simulated)
    assert len(nuclei) == 8
    hidden = 0
    for slide, of in nuclei.items():
        image = tifffile.imread(simulated / "truth" / f"{slide}.nuclei.tif")
        assert len(of) == len(of.classes) == len(of.marked) == len(of.cell)
        x, y = np.floor(of.xy_px0).astype(int).T
        hidden += int((image[y, x] != of.cell).sum())  # another cell's nucleus lies above it
    total = sum(map(len, nuclei.values()))
    assert total > 100
    assert hidden < 0.1 * total


def test_points__are_the_marked_cells_that_show_each_once(simulated: Path) -> None:
    rows = list(csv.DictReader(points_table(read_nuclei(simulated)).splitlines()))
    cells = {
        (row["slide_id"], row["class"], row["cell"]): row
        for row in csv.DictReader((simulated / "cells.csv").read_text().splitlines())
        if row["marked"] == "1"
    }
    assert is_bethesda([row["label"] for row in rows])
    inside = [
        row
        for row in cells.values()
        if 40 < float(row["x"]) < SIDE_PX - 40 and 40 < float(row["y"]) < SIDE_PX - 40
    ]
    assert len(inside) <= len(rows) <= len(cells)
    for row in rows:
        assert 0 <= float(row["x"]) < SIDE_PX
        assert 0 <= float(row["y"]) < SIDE_PX


@pytest.mark.filterwarnings("ignore:.*lie outside the slide")
def test_judge__the_true_nuclei_themselves_are_all_found(simulated: Path, tmp_path: Path) -> None:
    import cytofm_cli as cytofm

    truth = simulated / "truth" / "{slide_id}.geojson"
    stores = cytofm.tile(simulated / "slides", tmp_path, slide_mpp=0.25, foreground="none")
    cytofm.detect(stores.stores, detector="import", nuclei=truth).raise_failures()
    found = judge_nuclei(tmp_path, simulated)
    true = read_nuclei(simulated)
    assert found.n_true == sum(int(of.marked.sum()) for of in true.values())
    assert sum(n for n, _ in found.by_class.values()) == found.n_true
    # What lies across the edge of the field is cut off by the import, and may move.
    assert found.recall == pytest.approx(1, abs=0.03)
    assert found.precision == pytest.approx(1, abs=0.03)


def test_grounds__are_those_of_the_label_images(simulated: Path) -> None:
    for slide in list(read_nuclei(simulated))[:2]:
        places = np.random.default_rng(1).uniform(0, SIDE_PX, (400, 2))
        x, y = np.floor(places).astype(int).T
        nuclei, cells = (
            tifffile.imread(simulated / "truth" / f"{slide}.{of}.tif")[y, x]
            for of in ("nuclei", "cytoplasm")
        )
        kinds = {
            int(row["cell"]): row["kind"]
            for row in csv.DictReader((simulated / "cells.csv").read_text().splitlines())
            if row["slide_id"] == slide
        }
        for ground, nucleus, cell in zip(
            grounds(simulated, slide, places), nuclei, cells, strict=True
        ):
            if nucleus:
                assert ground == NUCLEUS
            elif not cell:
                assert ground == GLASS
            elif int(cell) in kinds:  # else its middle lies beyond the edge
                assert ground == (ANUCLEATE if kinds[int(cell)] == "red" else CYTOPLASM)


def test_judge__says_what_lies_at_detections_that_are_no_nuclei(
    simulated: Path, tmp_path: Path
) -> None:
    import cytofm_cli as cytofm

    stores = cytofm.tile(simulated / "slides", tmp_path, slide_mpp=0.25, foreground="none")
    cytofm.detect(stores.stores).raise_failures()
    found = judge_nuclei(tmp_path, simulated)
    assert list(found.others) == list(GROUNDS)
    assert sum(found.others.values()) == found.n_found - found.n_correct > 0
    assert found.record()["others"] == found.others


def test_judge__shares_are_of_what_they_say() -> None:
    found = NucleiFound(n_true=8, n_hit=6, n_found=20, n_correct=15)
    assert (found.recall, found.precision) == (0.75, 0.75)
    nothing = NucleiFound(n_true=0, n_hit=0, n_found=0, n_correct=0)
    assert (nothing.recall, nothing.precision) == (None, None)


def test_read_nuclei__a_folder_that_is_no_cohort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a cohort"):
        read_nuclei(tmp_path)
