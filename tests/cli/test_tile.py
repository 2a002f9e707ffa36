"""`cytofm tile` as a user runs it: what it writes, what it says, how it fails."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
import zarr

from ..nodes import put_node  # noqa: TID252 - of all tests


def pixels_of(path: Path) -> np.ndarray:
    return pyvips.Image.new_from_file(str(path)).numpy()[..., :3]


def times(stores: Path) -> dict[Path, int]:
    files = (path for path in stores.glob("*.zarr/**/*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def failures(folder: Path) -> dict[str, dict[str, object]]:
    lines = (folder / "failures.jsonl").read_text().splitlines()
    return {record["slide_id"]: record for record in map(json.loads, lines)}


def test_tile__store_holds_the_slides_own_pixels(cytofm, fields: Path, stores: Path) -> None:
    store = sorted(stores.glob("*.zarr"))[0]
    group = zarr.open_group(store, mode="r")
    record = group.attrs["cytofm"]["steps"]["tile"]
    slide = group.attrs["cytofm"]["slide"]
    assert slide["mpp"] == 0.25
    assert slide["mpp_source"] == "--slide-mpp"
    assert slide["codec"] == "jpeg"
    assert record["store_codec"] == "zstd (lossless)"
    image = pixels_of(fields / f"{store.stem}.jpg")
    xy, tiles = group["tiles/xy_px0"][:], group["tiles/pixels"]
    assert len(xy) == record["n_tiles"] == len(group["tiles/focus"][:]) > 0
    for (x, y), tile in zip(xy, tiles, strict=True):
        np.testing.assert_array_equal(tile, image[y : y + 256, x : x + 256])
    assert group["thumbnail"].shape[:2] == group["foreground"].shape
    assert sum(1 for path in store.rglob("*") if path.is_file()) < 50


def test_tile__again_is_skipped_and_other_settings_are_refused(
    cytofm, fields: Path, stores: Path
) -> None:
    words = ("tile", fields, "-o", stores, "--slide-mpp", 0.25)
    before = times(stores)
    again = cytofm(*words, "--tile-px", 256, "--json")
    assert again.returncode == 0
    assert {json.loads(line)["status"] for line in again.stdout.splitlines()} == {"skipped"}
    other = cytofm(*words, "--tile-px", 128)
    assert other.returncode == 2
    assert "tile_px: 256 → 128" in other.stderr
    assert "--overwrite" in other.stderr
    assert times(stores) == before


@pytest.mark.parametrize(
    "words",
    [
        (),  # who knows the resolution? the store
        ("--slide-mpp", 0.25, "--mpp", 0.25, "--stride-px", 256),
        ("--mpp", 0.25),  # as before there was --slide-mpp
        ("--slide-mpp", 0.25, "--seed", 5, "--jpeg-quality", 10, "--reader", "vips"),
        ("--slide-mpp", 0.25, "--pixels", "lossless", "--select", "densest", "--max-tiles", 999),
    ],
)
def test_tile__other_words_for_the_same_tiles_are_skipped(
    cytofm, fields: Path, stores: Path, words: tuple[object, ...]
) -> None:
    before = times(stores)
    again = cytofm("tile", fields, "-o", stores, "--tile-px", 256, *words, "--json")
    assert again.returncode == 0, again.stderr
    assert {json.loads(line)["status"] for line in again.stdout.splitlines()} == {"skipped"}
    assert times(stores) == before


def old_store(stores: Path, to: Path) -> Path:
    """Copy a store and take from its record what version 0.1 did not write."""
    store = to / sorted(stores.glob("*.zarr"))[0].name
    shutil.copytree(sorted(stores.glob("*.zarr"))[0], store)
    for node in (store / "zarr.json", store / "tiles" / "zarr.json"):
        content = json.loads(node.read_text())
        facts = content["attributes"]["cytofm"]
        record = facts.get("steps", {}).get("tile", facts)
        record["config"] = record.pop("asked") | {"mpp": 0.25}
        del record["config"]["slide_mpp"], record["n_foreground"]
        if "slide" in facts:
            facts["slide"]["mpp_source"] = "--mpp"
        put_node(node, content)
    return store


def test_tile__stores_of_earlier_versions_are_recognised(
    cytofm, fields: Path, stores: Path, tmp_path: Path
) -> None:
    store = old_store(stores, tmp_path)
    slide = fields / f"{store.stem}.jpg"
    for words in (("--mpp", 0.25), ("--slide-mpp", 0.25), ("--slide-mpp", 0.25, "--mpp", 0.25)):
        done = cytofm("tile", slide, "-o", tmp_path, "--tile-px", 256, *words, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "skipped"
    other = cytofm("tile", slide, "-o", tmp_path, "--tile-px", 256, "--slide-mpp", 0.2)
    assert other.returncode == 2
    assert "slide_mpp: 0.25 → 0.2" in other.stderr


def test_tile__a_finished_slide_is_never_listed_as_failed(
    cytofm, fields: Path, stores: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(stores, folder)
    name = sorted(folder.glob("*.zarr"))[0].stem
    former = {"command": "tile", "slide_id": name, "error": "an earlier one", "attempts": 1}
    (folder / "failures.jsonl").write_text(json.dumps(former) + "\n")
    before = times(folder)
    words = ("tile", fields, "-o", folder, "--slide-mpp", 0.25, "--tile-px", 128)
    done = cytofm(*words, "--json")
    assert done.returncode == 2
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"refused"}
    assert done.stderr.count("tile_px: 256 → 128") == 4
    assert "4 of 4 slides are finished with other settings" in done.stderr
    assert not (folder / "failures.jsonl").exists()
    assert times(folder) == before


def test_tile__an_objective_states_the_resolution(cytofm, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    for name, more in (("with", "|MPP = 0.25"), ("without", "")):
        with tifffile.TiffWriter(tmp_path / f"{name}.svs") as file:
            file.write(
                noise,
                tile=(256, 256),
                photometric="rgb",
                metadata=None,
                description=f"Aperio Image Library v1\r\n512x512|AppMag = 40{more}",
            )
    words = ("tile", tmp_path, "-o", tmp_path / "s", "--tile-px", 128, "--foreground", "none")
    done = cytofm(*words, "--mpp", 0.5, "--slide-mpp", 0.5)
    assert done.returncode == 0, done.stderr
    assert "0.25 by its 40× objective" in done.stderr
    assert "warning: without: --slide-mpp 0.5 is not used" in done.stderr
    made = {}
    for name in ("with", "without"):
        facts = zarr.open_group(tmp_path / "s" / f"{name}.zarr", mode="r").attrs["cytofm"]
        made[name] = facts["slide"]["mpp_source"], facts["steps"]["tile"]["tile_px0"]
    assert made == {"with": ("file (aperio.MPP)", 256.0), "without": ("objective", 256.0)}


def test_tile__mpp_for_a_file_that_states_none_is_taken_with_a_warning(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    field = sorted(fields.iterdir())[0]
    done = cytofm("tile", field, "-o", tmp_path, "--mpp", 0.25, "--tile-px", 256)
    assert done.returncode == 0
    assert f"warning: {field.stem}: the file states no resolution" in done.stderr
    assert "--slide-mpp 0.25" in done.stderr
    quiet = cytofm("tile", field, "-o", tmp_path, "--slide-mpp", 0.25, "--overwrite", "-q")
    assert quiet.stderr == ""


def test_tile__says_tiles_and_bytes_before_and_dry_run_writes_nothing(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    done = cytofm("tile", fields, "-o", tmp_path / "s", "--slide-mpp", 0.25, "--dry-run", "--json")
    assert done.returncode == 0
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 4
    assert all(r["status"] == "planned" and r["n_tiles"] > 0 and r["bytes"] > 0 for r in records)
    assert "tiles of 512 px at 0.25 µm/px" in done.stderr
    assert not (tmp_path / "s").exists()


def test_tile__without_any_resolution_says_what_to_type(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    field = sorted(fields.iterdir())[0]
    done = cytofm("tile", field, "-o", tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no resolution" in done.stderr
    assert "--slide-mpp 0.25" in done.stderr
    assert list(failures(tmp_path)) == [field.stem]


def test_tile__manifest_states_the_resolution(cytofm, fields: Path, tmp_path: Path) -> None:
    field = sorted(fields.iterdir())[0]
    (tmp_path / "m.csv").write_text(f"slide_id,path,mpp\npatient-1,{field},0.125\n")
    done = cytofm("tile", "--manifest", tmp_path / "m.csv", "-o", tmp_path, "--slide-mpp", 0.25)
    assert done.returncode == 0, done.stderr
    group = zarr.open_group(tmp_path / "patient-1.zarr", mode="r")
    facts = group.attrs["cytofm"]
    assert facts["slide"]["mpp_source"] == "manifest"
    assert facts["steps"]["tile"]["scale"] == 2.0
    assert facts["steps"]["tile"]["tile_px0"] == 1024.0


def test_tile__bad_files_fail_by_themselves_and_the_others_are_done(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    good = sorted(fields.iterdir())[0]
    (tmp_path / "text.svs").write_text("this is no slide\n")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:5000])
    noise = np.random.default_rng(0).integers(0, 255, 5000, dtype=np.uint8).tobytes()
    (tmp_path / "noise.tiff").write_bytes(noise)
    blank = np.full((600, 600, 3), 240, dtype=np.uint8)
    pyvips.Image.new_from_array(blank).write_to_file(str(tmp_path / "blank.png"))
    stores = tmp_path / "stores"
    done = cytofm("tile", tmp_path, good, tmp_path / "gone.svs", "-o", stores, "--slide-mpp", 0.25)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    told = failures(stores)
    assert set(told) == {"text", "empty", "cut", "noise", "blank", "gone"}
    assert told["blank"]["kind"] == "NoForegroundError"
    assert [name for name, record in told.items() if not record["hint"]] == []
    assert {path.name for path in stores.iterdir()} == {f"{good.stem}.zarr", "failures.jsonl"}


def test_tile__a_repaired_slide_leaves_the_list_of_failures(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    slide = tmp_path / "a.jpg"
    slide.write_bytes(b"")
    assert cytofm("tile", slide, "-o", tmp_path / "s", "--slide-mpp", 0.25).returncode == 3
    assert failures(tmp_path / "s")["a"]["attempts"] == 1
    slide.write_bytes(sorted(fields.iterdir())[0].read_bytes())
    assert cytofm("tile", slide, "-o", tmp_path / "s", "--slide-mpp", 0.25).returncode == 0
    assert not (tmp_path / "s" / "failures.jsonl").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_tile__read_only_output_is_refused(cytofm, fields: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = cytofm("tile", fields, "-o", tmp_path / "locked" / "s", "--slide-mpp", 0.25)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_tile__output_that_is_a_file_is_refused(cytofm, fields: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cytofm("tile", fields, "-o", tmp_path / "file", "--slide-mpp", 0.25)
    assert done.returncode == 2
    assert "a folder is needed" in done.stderr


HANGING_READER = """
import time
from cytofm_cli.registry import ReaderPlugin

class Reader:
    def probe(self, path):
        return None
    def open(self, path):
        time.sleep(600)

PLUGIN = ReaderPlugin(make=Reader, summary="hangs")
"""


def test_tile__a_reader_that_hangs_is_stopped(
    cytofm, fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A reader of another distribution, found through its entry point.
    (tmp_path / "hanging.py").write_text(HANGING_READER)
    entry = tmp_path / "hanging-1.0.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1.0\n")
    (entry / "entry_points.txt").write_text("[cytofm.readers]\nhanging = hanging:PLUGIN\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ("tile", sorted(fields.iterdir())[0], "-o", tmp_path / "s", "--slide-mpp", 0.25)
    done = cytofm(*words, "--reader", "hanging", "--timeout-s", 2)
    assert done.returncode == 3
    assert "no progress for 2 s" in done.stderr
    assert next(iter(failures(tmp_path / "s").values()))["kind"] == "SlideTimeoutError"
    assert [path.name for path in (tmp_path / "s").iterdir() if path.suffix == ".zarr"] == []


def test_tile__shards_together_make_every_store_once(cytofm, fields: Path, tmp_path: Path) -> None:
    made = []
    for part in ("0/2", "1/2"):
        words = ("tile", fields, "-o", tmp_path, "--slide-mpp", 0.25, "--pixels", "none")
        done = cytofm(*words, "--shard", part)
        assert done.returncode == 0
        made += done.stdout.split()
    assert len(made) == len(set(made)) == 4


def test_tile__print_config_merges_file_environment_and_flags(
    cytofm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[tile]\ntile_px = 128\nseed = 1\nselect = 'random'\n")
    monkeypatch.setenv("CYTOFM_TILE_SEED", "2")
    done = cytofm("tile", "--config", tmp_path / "c.toml", "--tile-px", 64, "--print-config")
    assert done.returncode == 0, done.stderr
    for line in ("tile_px = 64", "seed = 2", 'select = "random"'):
        assert line in done.stdout.splitlines()


def test_tile__preview_draws_a_picture_a_slide(cytofm, fields: Path, tmp_path: Path) -> None:
    field = sorted(fields.iterdir())[0]
    words = ("tile", field, "-o", tmp_path / "s", "--slide-mpp", 0.25, "--tile-px", 256)
    done = cytofm(*words, "--preview", tmp_path / "p")
    assert done.returncode == 0
    picture = pixels_of(tmp_path / "p" / f"{field.stem}.png")
    assert picture.std() > 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("tile",), 3, "no slides found"),
        (("tile", "x.svs", "--tile-px", "8"), 2, "at least 16"),
        (("tile", "x.svs", "--select", "best"), 2, "choose all, random, densest"),
        (("tile", "x.svs", "--shard", "2/2"), 2, "must be i/n"),
        (("tlie", "x.svs"), 2, "tile"),
        (("embed",), 2, "nothing to embed"),
    ],
)
def test_usage__is_refused_in_one_line(
    cytofm, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = cytofm(*words, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr
    assert not list(tmp_path.glob("*.zarr"))


def test_tile__says_which_of_several_pictures_is_read(cytofm, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    um = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(tmp_path / "s.ome.tif", ome=True) as out:
        for name in ("left", "right"):
            scene = rng.integers(0, 255, (256, 256, 3), np.uint8)
            out.write(scene, photometric="rgb", metadata={"axes": "YXS", "Name": name, **um})
    words = ("tile", tmp_path / "s.ome.tif", "--tile-px", 128, "--foreground", "none")
    told = cytofm(*words, "-o", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert "s: Of 2 pictures in the file, Image 0 ('left') is read." in told.stderr


def test_tile__again_with_a_coarser_slide_names_what_differs(cytofm, tmp_path: Path) -> None:
    field = np.full((256, 256, 3), 200, np.uint8)
    cm = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", field, photometric="rgb", metadata=None, **cm)
    words = ("-o", tmp_path / "out", "--tile-px", 128, "--foreground", "none")
    assert cytofm("tile", tmp_path / "s.tif", *words).returncode == 0
    (tmp_path / "m.csv").write_text("slide_id,path,mpp\ns,s.tif,0.5\n")
    again = cytofm("tile", "--manifest", tmp_path / "m.csv", *words)
    assert again.returncode == 2
    assert "was tiled with other settings: slide_mpp: 0.25 → 0.5." in again.stderr


def test_tile__a_print_resolution_that_the_user_corrects_is_no_news(
    cytofm, fields: Path, tmp_path: Path
) -> None:
    for name in fields.glob("*.jpg"):
        picture = pyvips.Image.new_from_file(str(name)).crop(0, 0, 512, 512)
        picture.copy(xres=72 / 25.4, yres=72 / 25.4).jpegsave(str(tmp_path / name.name))
    words = ["tile", tmp_path, "--pixels", "none", "--tile-px", 256]
    silent = cytofm(*words, "-o", tmp_path / "a", "--slide-mpp", 0.25)
    assert "not a microscope's" not in silent.stderr
    told = cytofm(*words, "-o", tmp_path / "b")
    assert "is not a microscope's" in told.stderr
