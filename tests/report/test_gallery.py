"""`make_gallery`: the cells that are shown are the first of their order, of all stores."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.cells.outliers import unlikeness
from cytofm_cli.errors import InputError, OutOfMemoryError, OutputError, UsageError
from cytofm_cli.report import orders
from cytofm_cli.report.chosen import Chosen, Gallery
from cytofm_cli.report.sheets import decoded, file_name
from cytofm_cli.store import io

from ..nodes import put_node  # noqa: TID252 - of all tests


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "cells.csv").read_text().splitlines()))


def unheard(event: object) -> None:
    """Listen to events of stores that fail, which else become Python warnings."""


def all_cells(stores: Path, column: str) -> list[tuple[float, str, int]]:
    """List every nucleus of the stores: value, slide, row."""
    cells = []
    for path in sorted(stores.glob("*.zarr")):
        values = io.open_store(path).read(f"nuclei/classical/{column}")
        cells += [(float(v), path.stem, row) for row, v in enumerate(values)]
    return cells


def test_gallery__largest_first_over_all_stores(trained, tmp_path: Path) -> None:
    made = cytofm.make_gallery(
        trained.stores, tmp_path / "g", by="area_um2", top=9, min_probability=0
    )
    expected = sorted(all_cells(trained.stores, "area_um2"), key=lambda c: (-c[0], c[1], c[2]))[:9]
    shown = [(r["slide_id"], int(r["row"])) for r in rows_of(tmp_path / "g")]
    assert shown == [(slide, row) for _, slide, row in expected]
    html = made.page.read_text()
    alts = re.findall(r'alt="cell (\d+), of ([\w-]+): area_um2 ([\d.e+]+)"', html)
    assert alts == [(str(r), s, f"{v:.3g}") for r, (v, s, _) in enumerate(expected, start=1)]


def test_gallery__lowest_first_at_most_one_of_a_slide(trained, tmp_path: Path) -> None:
    cytofm.make_gallery(
        trained.stores, tmp_path / "g", by="optical_density", top=100, per_slide=1, lowest=True,
        min_probability=0,
    )  # fmt: skip
    shown = rows_of(tmp_path / "g")
    cells = all_cells(trained.stores, "optical_density")
    least = {slide: min(v for v, s, _ in cells if s == slide) for _, slide, _ in cells}
    assert len(shown) == 12
    values = [float(r["value"]) for r in shown]
    assert values == sorted(values)
    assert values == pytest.approx([least[r["slide_id"]] for r in shown], rel=1e-5)


def test_gallery__unsure_nuclei_are_left_out(trained, tmp_path: Path) -> None:
    cells = all_cells(trained.stores, "probability")
    limit = float(np.float32(max(cells)[0]))
    sure = {(s, r) for v, s, r in cells if v >= limit}
    assert 0 < len(sure) < len(cells)
    cytofm.make_gallery(
        trained.stores, tmp_path / "g", by="area_um2", top=1000, min_probability=limit
    )
    assert {(r["slide_id"], int(r["row"])) for r in rows_of(tmp_path / "g")} == sure


def test_gallery__attention_is_relative_to_the_even_share(trained, tmp_path: Path) -> None:
    cytofm.make_gallery(
        trained.stores, tmp_path / "g", by="attention", run="run", top=1000, min_probability=0
    )
    shown = [r for r in rows_of(tmp_path / "g") if r["slide_id"] == "b-y"]
    values = io.open_store(trained.stores / "b-y.zarr").read("attention/run/cell/values")[:, 0]
    assert shown[0]["group"] == "attention"
    told = {int(r["row"]): float(r["value"]) for r in shown}
    assert told == pytest.approx({n: v * len(values) for n, v in enumerate(values)}, rel=1e-4)


def test_gallery__pictures_show_the_nucleus_within_its_outline(trained, tmp_path: Path) -> None:
    made = cytofm.make_gallery(
        trained.stores / "a-u.zarr", tmp_path / "g", by="probability", top=1, min_probability=0
    )
    cell = made.galleries[0].cells[0]
    html = made.page.read_text()
    points = re.search(r'class="outline" points="([^"]+)"', html)
    assert points is not None
    xy = np.array([[float(v) for v in pair.split(",")] for pair in points[1].split()])
    # The crop of 40 µm is 160 px at 0.25 µm/px, drawn at 128: the nucleus is in its middle.
    assert np.abs(xy.mean(0) - 64).max() < 6
    contour = io.open_store(trained.stores / "a-u.zarr").nuclei().polygon(cell.row)
    assert np.ptp(xy, axis=0) == pytest.approx(np.ptp(contour, axis=0) * 0.8, abs=2)
    assert 'd="M6 120h32' in html  # 10 µm of 0.3125 µm/px
    assert ">10 µm<" in html
    with Image.open(tmp_path / "g" / "01-probability-1.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    bar = (pixels == 40).all(2)
    assert max(np.diff(np.flatnonzero(np.diff(np.pad(row, 1).astype(int))))[0]
               for row in bar if row.any()) == 32  # fmt: skip


def test_gallery__default_shows_what_the_stores_have(trained, tmp_path: Path) -> None:
    made = cytofm.make_gallery(trained.stores, tmp_path / "g", top=3)
    assert [one.name for one in made.galleries] == ["outlier", "area_um2", "optical_density"]
    assert made.warnings == ()
    assert set(made.files) >= {"index.html", "cells.csv", "01-outlier-1.png"}


def test_gallery__what_a_store_lacks_is_said(trained, tmp_path: Path) -> None:
    stores = Path(shutil.copytree(trained.stores, tmp_path / "stores"))
    shutil.rmtree(stores / "a-u.zarr" / "embeddings")
    shutil.rmtree(stores / "a-v.zarr" / "nuclei")
    made = cytofm.make_gallery(stores, tmp_path / "g", by="outlier", top=5, listen=unheard)
    told = "\n".join(made.warnings)
    assert "a-u.zarr: holds no embeddings for unit cell" in told
    assert "a-v.zarr: holds no nuclei" in told
    assert len(made.galleries[0].cells) == 5


def test_gallery__slide_gone_leaves_places_without_pictures(trained, tmp_path: Path) -> None:
    stores = Path(shutil.copytree(trained.stores, tmp_path / "stores"))
    for path in stores.glob("*.zarr"):
        shutil.rmtree(path / "tiles" / "pixels")
        node, slide = path / "zarr.json", str(io.open_store(path).slide.path)
        put_node(node, node.read_text().replace(slide, "gone.png"))
    made = cytofm.make_gallery(stores, tmp_path / "g", by="area_um2", top=4, listen=unheard)
    assert "holds no pixels" in "".join(made.warnings)
    assert made.page.read_text().count("no picture</div>") == 4
    assert not list((tmp_path / "g").glob("*.png"))


def test_gallery__nothing_to_show_is_an_error_and_leaves_nothing(trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to show"):
        cytofm.make_gallery(trained.stores, tmp_path / "g", by="classes")
    with pytest.raises(UsageError, match="--by size: no such order"):
        cytofm.make_gallery(trained.stores, tmp_path / "g", by="size")
    stores = Path(shutil.copytree(trained.stores, tmp_path / "stores"))
    for path in stores.glob("*.zarr"):
        shutil.rmtree(path / "nuclei")
    with pytest.raises(InputError, match=r"none of 12 store\(s\): .* holds no nuclei"):
        cytofm.make_gallery(stores, tmp_path / "g", listen=unheard)
    assert not (tmp_path / "g").exists()


def test_gallery__a_folder_of_others_is_never_replaced(trained, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").touch()
    with pytest.raises(OutputError, match="is no gallery"):
        cytofm.make_gallery(trained.stores, tmp_path / "mine", overwrite=True)
    cytofm.make_gallery(trained.stores, tmp_path / "g", by="area_um2", top=2)
    with pytest.raises(OutputError, match="exists"):
        cytofm.make_gallery(trained.stores, tmp_path / "g", by="area_um2", top=3)
    cytofm.make_gallery(trained.stores, tmp_path / "g", by="area_um2", top=3, overwrite=True)
    assert len(rows_of(tmp_path / "g")) == 3


def test_file_name__of_any_class_is_one_that_file_systems_take() -> None:
    gallery = Gallery("class", "../<b>HSIL</b>/ü", "", 1, [Chosen(1, "s", 0, 0, 0, 1.0)])
    assert file_name(3, gallery, 1) == "03-class-.._b_HSIL_b-1.png"


def test_decoded__is_the_picture_in_its_colours() -> None:
    from cytofm_cli.pictures.files import jpeg_bytes

    picture = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    assert np.abs(decoded(jpeg_bytes(picture, 95)).astype(int) - picture).max() <= 3


def test_unlikeness__finds_the_planted_cell_and_is_about_one_for_the_others() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20)) * np.linspace(0.1, 30, 20) + 5
    x[137] += 4 * x.std(0)
    far = unlikeness(x)
    assert far.argmax() == 137
    assert np.median(np.delete(far, 137)) == pytest.approx(1.0, abs=0.1)


def test_unlikeness__more_features_than_cells_few_cells_and_equal_ones() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 200))
    x[5] += 3
    assert unlikeness(x).argmax() == 5
    assert unlikeness(x[:15]).tolist() == [0.0] * 15
    assert np.isfinite(unlikeness(np.ones((40, 3)))).all()


def test_best_rows__unknown_values_take_no_part() -> None:
    values = np.array([2.0, np.nan, 5.0, 2.0])
    assert orders.best_rows(values, 9).tolist() == [2, 0, 3]
    assert orders.best_rows(values, 2, lowest=True).tolist() == [0, 3]


@pytest.mark.filterwarnings("ignore::cytofm_cli.errors.CytofmWarning")
@pytest.mark.parametrize("step", ["rank", "draw"])
def test_gallery__a_killed_child_leaves_no_page_that_lacks_its_slide(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(task: object, report: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(f"cytofm_cli.api.gallery.{step}_one", killed)  # the children are forks
    with pytest.raises(OutOfMemoryError, match="was killed, most likely for lack of memory"):
        cytofm.make_gallery(trained.stores, tmp_path / "new", by="area_um2", fork=True)
    assert list(tmp_path.iterdir()) == []
