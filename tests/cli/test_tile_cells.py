"""`cytofm tile --cells` as a user runs it: what it writes, what it says, how it fails."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.field import open_field
from cytofm_cli.units import Box

SIZES = {"P1": [(30, 20), (22, 26), (17, 31)], "P2": [(24, 24), (45, 30)]}


def cut_out(width: int, height: int, seed: int) -> np.ndarray:
    """Return a cell of noise on black."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[4:-4, 4:-4] = rng.integers(80, 200, (height - 8, width - 8, 3))
    return image


IMAGES = {
    f"{patient}/{number}.png": cut_out(*size, seed=10 * number + len(patient))
    for patient, sizes in SIZES.items()
    for number, size in enumerate(sizes)
}
LABELS = dict(zip(IMAGES, ["b", "a", "b", "a", "b"], strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder of five cells of two patients, with `cells.csv`."""
    for name, image in IMAGES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    write_table(tmp_path / "data")
    return tmp_path / "data"


def write_table(folder: Path, names: tuple[str, ...] = tuple(IMAGES), head: str = "") -> Path:
    rows = [f"{name},{name.split('/')[0]},{LABELS[name]}" for name in names]
    path = folder / "cells.csv"
    path.write_text("\n".join([head or "file,slide_id,label", *rows]) + "\n")
    return path


def as_tar(folder: Path) -> Path:
    path = folder.parent / "images.tar"
    with tarfile.open(path, "w") as archive:
        for name in IMAGES:
            archive.add(folder / name, name)
    return path


def as_zip(folder: Path) -> Path:
    path = folder.parent / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in IMAGES:
            archive.write(folder / name, name)
    return path


def pasted(image: np.ndarray, side: int) -> np.ndarray:
    tile = np.zeros((side, side, 3), np.uint8)
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = image
    return tile


def content(stores: Path) -> dict[str, bytes]:
    """Return every file of the stores but what tells the time and the place."""
    files = (path for path in stores.glob("*.zarr/**/*") if path.is_file())
    return {
        path.relative_to(stores).as_posix(): path.read_bytes()
        for path in files
        if path.name != "zarr.json"
    }


def test_tile_cells__a_store_a_patient_holds_the_pasted_images(here, folder: Path) -> None:
    done = here("tile", "--cells", folder / "cells.csv", "-o", folder / "st")
    assert done.returncode == 0, done.stderr
    assert "tiles of 48 px for the largest image of 45 px" in done.stderr
    assert "filled with grey level 0, as 100% of the images' borders are" in done.stderr
    assert "5 of 5 images state no resolution: taken as they are, as 0.25 µm/px" in done.stderr
    for patient, sizes in SIZES.items():
        names = [name for name in IMAGES if name.startswith(patient)]
        store = open_store(folder / "st" / f"{patient}.zarr")
        group = zarr.open_group(store.path, mode="r")
        tiles = np.stack([pasted(IMAGES[name], 48) for name in names])
        np.testing.assert_array_equal(group["tiles/pixels"][:], tiles)
        assert store.files() == tuple(names)
        np.testing.assert_allclose(
            store.tiles().foreground, [(w - 8) * (h - 8) / 48**2 for w, h in sizes]
        )
        tile = store.tile
        assert (tile.apart, tile.fill, tile.tile_px, tile.mpp) == ("cut-out", 0, 48, 0.25)
        nuclei = store.nuclei()
        assert store.which_detector() == "given"
        assert [nuclei.classes[i] for i in nuclei.class_id] == [LABELS[name] for name in names]
        middles = [((48 - w) // 2 + w / 2, (48 - h) // 2 + h / 2) for w, h in sizes]
        np.testing.assert_array_equal(nuclei.xy_px0 - store.tile_xy_px0, middles)
        assert group["thumbnail"].shape[:2] == group["foreground"].shape


def test_tile_cells__folder_tar_and_zip_give_the_same_bytes(here, folder: Path) -> None:
    table = folder / "cells.csv"
    apart = folder.parent / "tables"
    apart.mkdir()
    shutil.copy(table, apart / "cells.csv")
    shutil.copy(as_tar(folder), apart / "cells.tar")
    for out, words in {
        "plain": ("--cells", table),
        "folder": (folder, "--cells", apart / "cells.csv"),
        "tar": (as_tar(folder), "--cells", table, "--workers", 1),
        "zip": (as_zip(folder), "--cells", table, "--workers", 2),
        "beside": ("--cells", apart / "cells.csv"),
    }.items():
        done = here("tile", *words, "-o", folder.parent / out)
        assert done.returncode == 0, done.stderr
        if out == "beside":
            assert f"its images are members of {apart / 'cells.tar'}" in done.stderr
    first = content(folder.parent / "plain")
    assert len(first) > 20
    for out in ("folder", "tar", "zip", "beside"):
        assert content(folder.parent / out) == first
    ids = [
        [step.id for step in open_store(folder.parent / out / "P1.zarr").steps.values()]
        for out in ("plain", "zip")
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_tile_cells__without_a_table_all_images_are_one_store(
    here, folder: Path, kind: str
) -> None:
    place = {"folder": lambda f: f, "tar": as_tar, "zip": as_zip}[kind](folder)
    done = here("tile", "--cells", place, "-o", folder.parent / "st", "--slide-mpp", 0.25)
    assert done.returncode == 0, done.stderr
    name = "data" if kind == "folder" else "images"
    assert f"its 5 images become one store, {name}" in done.stderr
    store = open_store(folder.parent / "st" / f"{name}.zarr")
    assert store.files() == tuple(sorted(IMAGES))
    assert store.nuclei().classes == ("nucleus",)


def test_tile_cells__table_without_slides_is_one_store_of_its_name(here, folder: Path) -> None:
    table = folder / "smear.csv"
    table.write_text("file,mpp,x,y\nP1/0.png,0.125,10,8\nP2/0.png,0.25,,\n")
    done = here("tile", "--cells", table, "-o", folder / "st", "--tile-px", 32)
    assert done.returncode == 0, done.stderr
    assert "no column slide_id: all 2 cells become one store, smear" in done.stderr
    store = open_store(folder / "st" / "smear.zarr")
    points = store.nuclei().xy_px0 - store.tile_xy_px0
    np.testing.assert_allclose(points, [[8 + 5, 11 + 4], [16, 16]])  # 30 × 20 px made 15 × 10


def test_tile_cells__table_written_on_windows_names_the_same_files(here, folder: Path) -> None:
    table = folder / "cells.csv"
    write_table(folder)
    assert here("tile", "--cells", table, "-o", folder / "st").returncode == 0
    table.write_bytes(table.read_bytes().replace(b"/", b"\\").replace(b"\n", b"\r\n"))
    assert here("tile", "--cells", table, "-o", folder / "windows").returncode == 0
    pixels = [
        zarr.open_group(folder / out / "P1.zarr", mode="r")["tiles/pixels"][:]
        for out in ("st", "windows")
    ]
    np.testing.assert_array_equal(*pixels)


def test_tile_cells__slides_spelt_alike_are_asked_about(here, folder: Path) -> None:
    table = folder / "cells.csv"
    table.write_text("file,slide_id\nP1/0.png,Pat 1\nP1/1.png,pat  1\nP2/0.png,Pat 2\n")
    done = here("tile", "--cells", table, "-o", folder / "st")
    assert done.returncode == 0, done.stderr
    assert "'Pat 1', 'pat  1' become stores of their own: is it one slide?" in done.stderr
    assert "Pat 2" not in done.stderr


def test_tile_cells__again_is_skipped_and_other_settings_are_refused(here, folder: Path) -> None:
    words = ("tile", "--cells", folder / "cells.csv", "-o", folder / "st")
    assert here(*words).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "st").rglob("*")}
    again = here(*words, "--json")
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()] == ["skipped"] * 2
    assert {path: path.stat().st_mtime_ns for path in (folder / "st").rglob("*")} == before
    for change, said in {
        ("--tile-px", 64): "tile_px: 48 → 64",
        ("--cell-fill", "border"): "apart: 'cut-out' → 'border'",
        ("--pixels", "jpeg"): "pixels: 'lossless' → 'jpeg'",
    }.items():
        other = here(*words, *change)
        assert other.returncode == 2
        assert said in other.stderr
    (folder / "cells.csv").write_text(
        (folder / "cells.csv").read_text().replace("0.png,P1,b", "0.png,P1,a")
    )
    other = here(*words)
    assert other.returncode == 2
    assert "nuclei/given was made with other settings" in other.stderr
    assert here(*words, "--overwrite").returncode == 0
    nuclei = open_store(folder / "st" / "P1.zarr").nuclei()
    assert [nuclei.classes[i] for i in nuclei.class_id] == ["a", "a", "b"]


def test_tile_cells__a_point_that_moves_in_the_table_is_not_skipped(here, folder: Path) -> None:
    table = folder / "points.csv"
    words = ("tile", "--cells", table, "-o", folder / "st")
    table.write_text("file,slide_id,x,y\nP1/0.png,A,10,8\n")
    assert here(*words).returncode == 0
    table.write_text("file,slide_id,x,y\nP1/0.png,A,20,8\n")
    again = here(*words)
    assert again.returncode == 2
    assert "tile was made with other settings: the input itself has changed" in again.stderr
    assert here(*words, "--overwrite").returncode == 0
    np.testing.assert_array_equal(
        open_store(folder / "st" / "A.zarr").nuclei().xy_px0, [[1 + 20, 6 + 8]]
    )


@pytest.mark.slow
def test_tile_cells__is_finished_after_kill_9_with_the_same_bytes(cytofm, folder: Path) -> None:
    words = ["tile", "--cells", str(folder / "cells.csv"), "-o"]
    assert cytofm(*words, folder / "whole").returncode == 0
    killed = folder / "killed"
    command = [sys.executable, "-m", "cytofm_cli", *words, str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(killed.glob("*.zarr")) and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert cytofm(*words, killed).returncode == 0
    assert content(killed) == content(folder / "whole")
    # Killed between its two steps: the store has tiles and no points.
    shutil.rmtree(killed / "P1.zarr" / "nuclei")
    done = cytofm(*words, killed, "--json")
    statuses = {r["slide_id"]: r["status"] for r in map(json.loads, done.stdout.splitlines())}
    assert statuses == {"P1": "done", "P2": "skipped"}
    assert content(killed) == content(folder / "whole")


def test_tile_cells__no_box_shows_two_cells(here, folder: Path) -> None:
    assert here("tile", "--cells", folder / "cells.csv", "-o", folder / "st").returncode == 0
    with open_store(folder / "st" / "P1.zarr") as store, open_field(store) as field:
        box = Box(-20, -20, 88, 88)
        wanted = np.zeros((88, 88, 3), np.uint8)
        wanted[20:68, 20:68] = pasted(IMAGES["P1/0.png"], 48)
        np.testing.assert_array_equal(field.read(box), wanted)
        assert field.known(box).all()
        right = field.read(Box(48 - 20, -20, 88, 88))
        np.testing.assert_array_equal(right[20:68, 20:68], pasted(IMAGES["P1/1.png"], 48))
        assert not right[:, :20].any()


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


@pytest.mark.parametrize("fill", ["black", "border"])
def test_tile_cells__crops_larger_than_a_tile_hold_one_cell(here, folder: Path, fill: str) -> None:
    words = ("--cells", folder / "cells.csv", "-o", folder / "st", "--cell-fill", fill)
    assert here("tile", *words).returncode == 0
    store = open_store(folder / "st" / "P2.zarr")
    tiles = zarr.open_group(store.path, mode="r")["tiles/pixels"][:]
    with open_cells(store, detector=None, cell_um=22.0) as crops:  # 88 px, tiles have 48
        mode = {"black": {"mode": "constant"}, "border": {"mode": "symmetric"}}[fill]
        for row, tile in enumerate(tiles):
            wanted = np.pad(tile, ((20, 20), (20, 20), (0, 0)), **mode)
            left = round(float(store.nuclei().xy_px0[row, 0]) - 48 * row) - 24
            np.testing.assert_array_equal(crops.read(row), np.roll(wanted, -left, 1))


def test_tile_cells__later_steps_take_such_stores(here, folder: Path) -> None:
    words = ("--cells", folder / "cells.csv", "-o", folder / "st", "--cell-fill", 235)
    done = here("tile", *words)
    assert "the images' own background, grey level 0, is painted over" in done.stderr
    done = here("export", folder / "st", "-o", folder / "out", "--to", "csv,geojson")
    assert done.returncode == 0, done.stderr
    lines = (folder / "out" / "P2.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["P2", "24.00", "24.00", "a"],
        ["P2", "71.50", "24.00", "b"],
    ]
    done = here("views", folder / "st", "-o", folder / "views", "--preview", 1)
    assert done.returncode == 0, done.stderr
    done = here("info", folder / "st" / "P1.zarr")
    assert "nuclei/given  3 nuclei of classes a, b" in done.stdout
    assert "read by cells" in done.stdout
    done = here("detect", folder / "st")
    assert done.returncode == 0, done.stderr
    assert {"nuclei/given", "nuclei/classical"} < set(open_store(folder / "st/P1.zarr").steps)
