"""The face for Python: lazy, the same stores as the commands', safe to call from anywhere."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.__main__ import main
from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmWarning,
    InputError,
    MissingPackageError,
    SlideError,
    SomeSlidesFailedError,
    StoreError,
    UsageError,
    WeightsError,
)
from cytofm_cli.registry import detectors
from cytofm_cli.store import schema

from .two_fields import NUCLEI, write_two_fields

TILES = {"tile_px": 256, "slide_mpp": 0.25}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two fields, the second one mirrored."""
    return write_two_fields(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def stores(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return their stores: tiled, with nuclei and with bags of tiles and cells."""
    folder = tmp_path_factory.mktemp("stores")
    assert [o.status for o in cytofm.tile(slides, folder, **TILES)] == ["done", "done"]
    cytofm.detect(folder).raise_failures()
    for unit in ("tile", "cell"):
        cytofm.embed(folder, unit=unit, encoder="handcrafted").raise_failures()
    return folder


def content(folder: Path) -> dict[str, object]:
    """Return every file of a folder of stores, without when and in what seconds it was made."""
    files: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "zarr.json":
            text = path.read_text()
            for record in _records(json.loads(text)):
                text = text.replace(json.dumps(record["time_utc"]), '""')
            files[str(path.relative_to(folder))] = text
        elif path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


def _records(node: object) -> list[dict]:
    if not isinstance(node, dict):
        return []
    own = [node] if "time_utc" in node else []
    return own + [record for value in node.values() for record in _records(value)]


def run(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def command(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cytofm_cli", *map(str, words)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def here(*words: object) -> None:
    """Run a command that forks no children in this process."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    assert done.value.code == 0


@pytest.mark.slow
def test_steps__make_the_stores_that_the_commands_make(
    slides: Path, stores: Path, tmp_path: Path
) -> None:
    command("tile", slides, "-o", tmp_path, "--tile-px", 256, "--slide-mpp", 0.25)
    command("detect", tmp_path)
    for unit in ("tile", "cell"):
        command("embed", tmp_path, "--unit", unit, "--encoder", "handcrafted")
    assert content(tmp_path) == content(stores)


@pytest.mark.slow
def test_workers__of_a_script_without_a_main_guard_make_the_same_stores(
    slides: Path, stores: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, cytofm_cli as cytofm\n"
        "print('begun')\n"
        "slides, out = sys.argv[1:]\n"
        "torch.zeros(64, 64) @ torch.zeros(64, 64)  # starts threads\n"
        "cytofm.tile(slides, out, tile_px=256, slide_mpp=0.25, workers=2).raise_failures()\n"
        "cytofm.detect(out, workers=2).raise_failures()\n"
        "for unit in ('tile', 'cell'):\n"
        "    done = cytofm.embed(out, unit=unit, encoder='handcrafted', workers=2)\n"
        "print([o.status for o in done])\n"
    )
    out = tmp_path / "stores"
    done = subprocess.run(
        [sys.executable, str(script), str(slides), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["begun", "['done', 'done']"], done.stderr
    assert content(out) == content(stores)


def test_steps__skip_what_is_done_and_keep_what_has_other_settings(
    slides: Path, stores: Path
) -> None:
    before = content(stores)
    again = cytofm.tile(slides, stores, cytofm.TileConfig(**TILES))
    assert [o.status for o in again] == ["skipped", "skipped"]
    assert again.stores == [stores / "a.zarr", stores / "b.zarr"]
    with pytest.warns(CytofmWarning, match="tile_px: 256 → 128"):
        other = cytofm.tile(slides / "a.png", stores, tile_px=128, slide_mpp=0.25)
    assert [o.status for o in other] == ["refused"]
    with pytest.raises(ConfigMismatchError):
        other.raise_failures()
    assert content(stores) == before


@pytest.mark.parametrize("workers", [None, 1])
def test_failures__of_a_slide_leave_the_others_done(
    slides: Path, tmp_path: Path, workers: int | None
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    inputs = [slides / "a.png", tmp_path / "bad.png"]
    with pytest.warns(CytofmWarning, match=r"bad\.png"):
        outcomes = cytofm.tile(inputs, tmp_path / "stores", workers=workers, **TILES)
    assert repr(outcomes) == "<Outcomes of 2 slides: 1 done, 1 failed>"
    assert [o.slide_id for o in outcomes.failed] == ["bad"]
    assert isinstance(outcomes.failed[0].error, SlideError)
    assert outcomes.stores == [tmp_path / "stores" / "a.zarr"]
    (line,) = (tmp_path / "stores" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["slide_id"] == "bad"
    with pytest.raises(SomeSlidesFailedError, match="1 of 2 slides failed"):
        outcomes.raise_failures()
    with pytest.raises(SlideError, match=r"bad\.png"):
        outcomes[1:].raise_failures()  # the only one: its own error
    with pytest.raises(SlideError, match=r"bad\.png"):
        cytofm.tile(inputs, tmp_path / "s", workers=workers, fail_fast=True, listen=ignore, **TILES)


def ignore(event: object) -> None:
    """Hear nothing."""


def test_listen__hears_the_beginning_notes_progress_and_outcomes(
    slides: Path, stores: Path, tmp_path: Path
) -> None:
    heard: list[object] = []
    planned = cytofm.tile(slides, tmp_path / "none", dry_run=True, listen=heard.append, **TILES)
    assert [type(event) for event in heard] == [
        cytofm.Started,
        cytofm.Note,
        cytofm.Outcome,
        cytofm.Note,
        cytofm.Outcome,
    ]
    assert heard[0] == cytofm.Started(2)
    assert heard[1].text.startswith("a: ")
    assert heard[2] is planned[0]
    assert not (tmp_path / "none").exists()
    heard.clear()
    cytofm.detect(stores, overwrite=True, dry_run=False, listen=heard.append)
    parts = [(e.slide_id, e.total) for e in heard if isinstance(e, cytofm.Progress)]
    assert ("a", len(cytofm.tiles_frame(stores / "a.zarr"))) in parts


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cytofm.tile("x", tile_px=-5), "tile_px=-5 must be at least 16"),
        (lambda: cytofm.tile("x", foreground="autp"), "foreground='autp': choose auto, none"),
        (lambda: cytofm.tile("x", tile_pixels=5), r"tile\(\): .*no setting 'tile_pixels'"),
        (lambda: cytofm.tile("x", config=cytofm.TileConfig(), seed=1), "and single settings"),
        (lambda: cytofm.tile("x", config=cytofm.EmbedConfig()), "is no TileConfig"),
        (lambda: cytofm.detect("x", detector="nobody"), "no detector is called 'nobody'"),
        (lambda: cytofm.detect("x", detector_settings={"h": 1}), "detector_settings: .* 'h'"),
        (lambda: cytofm.embed("x", encoder="nobody"), "no encoder is called 'nobody'"),
        (
            lambda: cytofm.export("x", "y", to="pdf"),
            "pdf: choose csv, geojson, h5, h5ad, pt, spatialdata",
        ),
        (lambda: cytofm.load_encoder("nobody"), "no encoder is called"),
    ],
)
def test_settings__impossible_ones_are_refused_before_anything_is_done(call, said) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_inputs__what_is_not_there_is_refused(tmp_path: Path) -> None:
    for step in (cytofm.detect, cytofm.embed):
        with pytest.raises(InputError, match="no such"):
            step(tmp_path / "none.zarr")
    with pytest.raises(InputError, match="no slides found"):
        cytofm.tile([], tmp_path)
    with pytest.raises(StoreError):
        cytofm.open_store(str(tmp_path / "none.zarr"))
    with pytest.raises(SlideError):
        cytofm.open_slide(tmp_path / "none.svs")


# Stores as arrays and tables


def test_open_slide__takes_a_path(slides: Path) -> None:
    reader = cytofm.open_slide(slides / "a.png")
    try:
        assert reader.info.size_px0 == (512, 512)
    finally:
        reader.close()


def test_frames__hold_what_the_store_holds(stores: Path) -> None:
    store = cytofm.open_store(stores / "a.zarr")
    tiles = cytofm.tiles_frame(store)
    assert list(tiles) == ["x_px0", "y_px0", "foreground", "focus", *schema.TILE_QUALITY]
    assert np.array_equal(tiles[["x_px0", "y_px0"]], store.read("tiles/xy_px0"))
    nuclei = cytofm.nuclei_frame(stores / "a.zarr").sort_values("x_px0")
    for row, (x, y, a, b) in zip(nuclei.itertuples(), NUCLEI, strict=True):
        assert np.hypot(row.x_px0 - x, row.y_px0 - y) < 1
        assert row.area_um2 == pytest.approx(np.pi * a * b * 0.25**2, rel=0.15)
        assert row[5] == "nucleus"  # `class` is no name of an attribute
    bag = cytofm.embeddings_frame(store, unit="cell")
    assert np.array_equal(bag.to_numpy(), store.read("embeddings/handcrafted/cell/values"))
    assert bag.index.names == ["cell", "x_px0", "y_px0"]
    with pytest.raises(StoreError, match="'uni'"):
        cytofm.embeddings_frame(store, "uni")


def test_anndata__cells_come_with_their_nuclei(stores: Path) -> None:
    cells = cytofm.to_anndata(stores / "b.zarr")
    nuclei = cytofm.nuclei_frame(stores / "b.zarr")
    assert cells.shape == (2, 263)
    assert list(cells.obs_names) == ["b:0", "b:1"]
    assert np.array_equal(cells.obsm["spatial"], nuclei[["x_px0", "y_px0"]])
    assert np.array_equal(cells.obs["area_um2"], nuclei["area_um2"])
    assert cells.uns["cytofm"] == {
        "slide_id": "b",
        "encoder": "handcrafted",
        "unit": "cell",
        "slide_mpp": 0.25,
    }
    tiles = cytofm.to_anndata(stores / "b.zarr", unit="tile")
    quality = ["focus", *schema.TILE_QUALITY]
    assert list(tiles.obs) == ["x_px0", "y_px0", "foreground", *quality, "slide_id"]


@pytest.mark.parametrize(
    ("package", "call"), [("pandas", cytofm.tiles_frame), ("anndata", cytofm.to_anndata)]
)
def test_frames__say_how_to_install_what_is_missing(
    stores: Path, monkeypatch: pytest.MonkeyPatch, package: str, call
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"{package} is not installed") as error:
        call(stores / "a.zarr")
    assert error.value.hint == "pip install 'cytofm[frames]'"


# Encoders, heads, files


def test_load_encoder__embeds_images_as_the_step_does(stores: Path) -> None:
    encoder = cytofm.load_encoder("handcrafted")
    store = cytofm.open_store(stores / "a.zarr")
    values = encoder.embed(store.array("tiles/pixels")[...], batch_size=1)
    assert np.array_equal(values, store.embeddings().values)
    assert repr(encoder) == "<ImageEncoder handcrafted: any size → 263 numbers>"
    for wrong in (np.zeros((4, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(InputError, match="images are"):
            encoder.embed(wrong)
    with pytest.raises(WeightsError):
        cytofm.load_encoder("uni").embed(np.zeros((1, 224, 224, 3), np.uint8))


def test_registry__a_source_of_nuclei_of_any_name_takes_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = dataclasses.replace(detectors.find("import"), typed=None)
    monkeypatch.setitem(detectors._added, "own_files", plugin)
    config = cytofm.DetectConfig(detector="own_files", nuclei=Path("n.geojson"))
    assert config.nuclei == Path("n.geojson")
    with pytest.raises(UsageError, match="detector 'own_files' needs a file"):
        cytofm.DetectConfig(detector="own_files")


def test_export__returns_the_files(stores: Path, tmp_path: Path) -> None:
    files = cytofm.export(stores, tmp_path, ["geojson", "h5"], unit="cell")
    assert {path.suffix for path in files} == {".geojson", ".h5"}
    (drawn,) = [path for path in files if path.name == "a.geojson"]
    assert len(json.loads(drawn.read_text())["features"]) == len(NUCLEI)
    assert cytofm.export(stores, tmp_path, ["geojson", "h5"], unit="cell") == files


@pytest.mark.slow
def test_views_and_pretraining__run_from_python(stores: Path, tmp_path: Path) -> None:
    small = cytofm.ViewsConfig(global_px=32, local_px=16, n_local=2)
    dumped = cytofm.make_views(stores, tmp_path / "views", small)
    assert [o.status for o in dumped] == ["done", "done"]
    report = cytofm.pretrain_encoder(
        *(stores, tmp_path / "run"),
        views=small,
        method="dino",
        batch=2,
        steps=2,
        device="cpu",
        threads=1,
        method_settings={"prototypes": 64, "hidden": 32, "bottleneck": 16},
    )
    encoder = cytofm.load_encoder(report.encoder)
    assert encoder.embed(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, encoder.spec.dim)


@pytest.mark.slow
def test_probe__judges_an_encoder(stores: Path, tmp_path: Path) -> None:
    rows = [
        f"{slide},{x if slide == 'a' else 512 - x},{y},{label},{slide}"
        for slide in "ab"
        for (x, y, _, _), label in zip(NUCLEI, ("small", "large"), strict=True)
        for _ in range(2)
    ]
    (tmp_path / "points.csv").write_text("\n".join(["slide_id,x,y,label,group", *rows]) + "\n")
    report = cytofm.probe(
        stores, tmp_path / "points.csv", tmp_path / "run", k=(1,), replicates=100, inner_folds=2
    )
    assert list(report.metrics["encoders"]) == ["handcrafted"]
