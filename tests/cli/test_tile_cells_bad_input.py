"""`cytofm tile --cells` of odd and bad images, tables and settings."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from .cell_folders import IMAGES, write_cells


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cells(tmp_path)


def damaged(folder: Path) -> None:
    (folder / "P1/0.png").unlink()
    (folder / "P1/1.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(folder / "P1/2.png")


def test_tile_cells__copies_under_other_names_are_counted_and_named(here, folder: Path) -> None:
    for copy, of in {"P2/1.png": "P1/1.png", "P1/2.png": "P1/0.png"}.items():
        shutil.copy(folder / of, folder / copy)
    done = here("tile", "--cells", folder / "cells.csv", "-o", folder / "st")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "warning: 1 images are copies of others of another slide: a cell of two" in said
    assert "at once: P2/1.png = P1/1.png, with another label (P2 and P1)" in said
    assert "1 images are copies of others of their slide, and count twice: P1/2.png" in said


def test_tile_cells__bad_images_fail_their_store_and_no_other(here, folder: Path) -> None:
    damaged(folder)
    words = ("tile", "--cells", folder / "cells.csv", "-o", folder / "st")
    done = here(*words)
    assert done.returncode == 4
    assert "1 of 3 images cannot be used: P1/0.png is missing" in done.stderr
    Image.fromarray(IMAGES["P1/0.png"]).save(folder / "P1/0.png")
    done = here(*words)
    assert done.returncode == 4
    assert (
        "2 of 3 images cannot be used: P1/1.png is no image that can be read; P1/2.png has "
        "1 x 1 px, which is no image of one cell"
    ) in done.stderr
    assert sorted(path.name for path in (folder / "st").iterdir()) == ["P2.zarr", "failures.jsonl"]
    record = json.loads((folder / "st" / "failures.jsonl").read_text().splitlines()[-1])
    assert record["slide_id"] == "P1"


def test_tile_cells__converts_odd_images_and_says_how_many(here, folder: Path) -> None:
    grey = np.random.default_rng(1).integers(80, 200, (20, 20), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "P1/0.png")
    Image.fromarray((grey.astype(np.uint16) << 8) + 7).save(folder / "P1/1.png")
    alpha = np.zeros((20, 20), np.uint8)
    alpha[5:15, 5:15] = 255
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(folder / "P1/2.png")
    words = ("--cells", folder / "cells.csv", "-o", folder / "st", "--cell-fill", "black")
    done = here("tile", *words)
    assert done.returncode == 0, done.stderr
    assert "P1: 2 of 3 images are grey and made RGB" in done.stderr
    assert "P1: 1 of 3 images have 16 bits, of which the upper 8 are kept" in done.stderr
    assert "P1: 1 of 3 images are transparent in parts, laid on grey level 0" in done.stderr
    tiles = zarr.open_group(folder / "st" / "P1.zarr", mode="r")["tiles/pixels"][:]
    np.testing.assert_array_equal(tiles[0, 14:34, 14:34, 1], grey)
    np.testing.assert_array_equal(tiles[1], tiles[0])
    np.testing.assert_array_equal(tiles[2, 19:29, 19:29, 0], grey[5:15, 5:15])
    assert tiles[2].sum() == 3 * grey[5:15, 5:15].sum(dtype=int)


def test_tile_cells__warns_of_images_of_which_little_is_left(here, folder: Path) -> None:
    grey = np.random.default_rng(1).integers(1000, 4000, (20, 20), dtype=np.uint16)
    Image.fromarray(grey).save(folder / "P1/0.png")
    pages = [Image.fromarray(IMAGES["P1/1.png"]), Image.fromarray(IMAGES["P1/2.png"])]
    pages[0].save(folder / "P1/1.png", save_all=True, append_images=pages[1:])
    done = here("tile", "--cells", folder / "cells.csv", "-o", folder / "st")
    assert done.returncode == 0, done.stderr
    assert "warning: P1: 1 of 3 images have 16 bits of which the upper 8 are nearly" in done.stderr
    assert "warning: P1: 1 of 3 images have several frames or pages" in done.stderr


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ("file,slide_id\nP1/0.png,A\nP1/0.png,B\n", 3, "1 cells are of two slides: P1/0.png (A an"),
        ("file,slide_id\nP1/0.png,A\nP1/0.png,A\n", 3, "1 cells come twice: P1/0.png"),
        (
            "file,slide_id\nP1/0.png,A\n./P1/0.png,B\n",
            3,
            "1 cells are of two slides: P1/0.png, also called ./P1/0.png (A and B)",
        ),
        (
            "file\nP1/0.png\nP2/../P1/0.png\n",
            3,
            "1 cells come twice: P1/0.png, also called P2/../P1/0.png",
        ),
        ("file\nno.png\nnot.png\n", 3, "none of its 2 images is in"),
        ("slide_id,label\nA,b\n", 3, "no column file"),
        ("file,slide_id\nP1/0.png,\n", 3, "line 2, column slide_id: empty"),
        ("file,slide_id\nP1/0.png,../x\n", 3, "'../x' cannot name a slide"),
        ("file,mpp\nP1/0.png,40\n", 3, "line 2, column mpp: 40 is not between 0.05 and 5"),
        ("file,mpp\nP1/0.png,1\n", 3, "all images are coarser than the wanted 0.25 µm/px"),
        ("file,x,y\nP1/0.png,4,3\nP1/1.png,4,\n", 3, "line 3: only one of x and y is given"),
        ("file,x\nP1/0.png,4\n", 3, "has only one of the columns x and y"),
        ("file,x,y\nP1/0.png,4,500\n", 3, "has 30 x 20 px, and the cell lies at x 4, y 500"),
        ("file,label\nP1/0.png,nucleus\n", 3, "the label 'nucleus' stands for cells without one"),
    ],
)
def test_tile_cells__bad_tables_are_refused(
    here, folder: Path, rows: str, code: int, said: str
) -> None:
    table = folder / "bad.csv"
    table.write_text(rows)
    done = here("tile", "--cells", table, "-o", folder / "st")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not list((folder / "st").glob("*.zarr"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-tiles", 3, "--select", "random"), "--select random means nothing with --cells"),
        (("--focus", "fuse"), "--focus fuse means nothing with --cells"),
        (("--pixels", "none"), "--pixels none means nothing with --cells"),
        (("--focus", "fuse"), "--focus fuse means nothing with --cells"),
        (("--cell-fill", "pink"), "--cell-fill pink: choose auto, border, black, white or a grey"),
        (("--manifest", "m.csv"), "--manifest means nothing with --cells"),
        (("a.tar", "b.tar"), "--cells takes one folder, .tar or .zip of images, not 2"),
    ],
)
def test_tile_cells__settings_of_slides_are_refused(
    here, folder: Path, words: tuple[object, ...], said: str
) -> None:
    done = here("tile", *words, "--cells", folder / "cells.csv", "-o", folder / "st")
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (folder / "st").exists()


def test_tile_cells__dry_run_writes_nothing(here, folder: Path) -> None:
    words = ("tile", "--cells", folder / "cells.csv", "-o", folder / "st", "--dry-run")
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert "2 planned: 5 tiles" in done.stderr
    assert not (folder / "st").exists()


def test_tile_cells__memory_of_a_zip_bomb_is_refused(here, folder: Path) -> None:
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", io.BytesIO(bytes(2**28 + 1)).getbuffer())
    done = here("tile", "--cells", folder / "bomb.zip", "-o", folder / "st")
    assert done.returncode == 3
    assert (
        "1 of 1 images cannot be used: a.png is too large for an image of one cell" in done.stderr
    )
