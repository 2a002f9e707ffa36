"""`cytofm tile --cells` as a user runs it: what it writes and what it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.field import open_field
from cytofm_cli.units import Box

from .cell_folders import (
    IMAGES,
    LABELS,
    SIZES,
    as_tar,
    as_zip,
    content,
    pasted,
    write_cells,
    write_table,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cells(tmp_path)


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
