"""`cytofm.run`: the stores of the single steps, step by step, and one list of failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.api import pipeline
from cytofm_cli.errors import ConfigMismatchError, InputError, StoreError, UsageError, WeightsError
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.source import StoredTiles

from .two_fields import write_two_fields

TILES = {"tile_px": 256, "slide_mpp": 0.25}
BAGS = [{"unit": unit, "encoder": "handcrafted"} for unit in ("tile", "cell")]
STEPS = ["tile", "detect", "embed tile", "embed cell"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two fields, the second one mirrored."""
    return write_two_fields(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def singly(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stores that the single steps make."""
    folder = tmp_path_factory.mktemp("singly") / "stores"
    cytofm.tile(slides, folder, **TILES).raise_failures()
    cytofm.detect(folder).raise_failures()
    for bag in BAGS:
        cytofm.embed(folder, **bag).raise_failures()
    return folder


def run(slides: object, out: Path, **more: object) -> cytofm.Outcomes:
    return cytofm.run(slides, out, tile=TILES, **({"embed": BAGS} | more))


def statuses(outcome: cytofm.Outcome) -> dict[str, str]:
    return {name: of["status"] for name, of in outcome.facts["steps"].items()}


def content(folder: Path) -> dict[str, object]:
    """Return every file of a folder of stores, without when it was made."""
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


def _records(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        if "time_utc" in node:
            yield node
        for value in node.values():
            yield from _records(value)


def test_stores__are_those_of_the_single_steps(slides: Path, singly: Path, tmp_path: Path) -> None:
    done = run(slides, tmp_path)
    assert [outcome.status for outcome in done] == ["done", "done"]
    assert [statuses(outcome) for outcome in done] == [dict.fromkeys(STEPS, "done")] * 2
    assert done.stores == [tmp_path / "stores" / f"{name}.zarr" for name in "ab"]
    found = content(tmp_path / "stores")
    assert found == content(singly)
    assert len(found) > 40
    assert not (tmp_path / "failures.jsonl").exists()


def test_stores__of_slides_without_kept_pixels_are_those_of_the_single_steps(
    slides: Path, tmp_path: Path
) -> None:
    tiles = TILES | {"pixels": "none"}
    cytofm.run(slides, tmp_path, tile=tiles, embed=BAGS).raise_failures()
    cytofm.tile(slides, tmp_path / "singly", **tiles).raise_failures()
    cytofm.detect(tmp_path / "singly").raise_failures()
    for bag in BAGS:
        cytofm.embed(tmp_path / "singly", **bag).raise_failures()
    assert content(tmp_path / "stores") == content(tmp_path / "singly")


def test_run__goes_on_where_any_step_stopped(slides: Path, singly: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    cytofm.tile(slides / "a.png", stores, **TILES)
    cytofm.tile(slides / "b.png", stores, **TILES)
    cytofm.detect(stores / "b.zarr")
    done = run(slides, tmp_path)
    assert [statuses(outcome) for outcome in done] == [
        {"tile": "skipped", "detect": "done", "embed tile": "done", "embed cell": "done"},
        {"tile": "skipped", "detect": "skipped", "embed tile": "done", "embed cell": "done"},
    ]
    assert content(stores) == content(singly)
    again = run(slides, tmp_path)
    assert [outcome.status for outcome in again] == ["skipped", "skipped"]
    assert content(stores) == content(singly)
    assert {name: of["n"] for name, of in again[0].facts["steps"].items() if "n" in of} == {
        "detect": 2,
        "embed tile": open_store(stores / "a.zarr").tile.n_tiles,
        "embed cell": 2,
    }
    with pytest.warns(cytofm.CytofmWarning, match="a.zarr is replaced; it drops"):
        anew = run(slides / "a.png", tmp_path, overwrite=True)
    assert statuses(anew[0]) == dict.fromkeys(STEPS, "done")
    assert content(stores) == content(singly)


def test_run__refuses_other_settings_and_keeps_the_store(slides: Path, tmp_path: Path) -> None:
    run(slides / "a.png", tmp_path, embed=BAGS[0])
    before = content(tmp_path / "stores")
    with pytest.warns(cytofm.CytofmWarning):
        other = cytofm.run(slides / "a.png", tmp_path, tile=TILES | {"tile_px": 128}, embed=BAGS[0])
    assert other[0].status == "refused"
    assert other[0].facts["step"] == "tile"
    with pytest.raises(ConfigMismatchError, match="tile_px: 256 → 128"):
        other.raise_failures()
    assert content(tmp_path / "stores") == before


def test_failure__of_a_step_names_it_and_leaves_the_steps_before(
    slides: Path, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"  # two pink cells without nuclei: nothing to embed
    field = np.full((512, 512, 3), 243, np.uint8)
    field[60:200, 40:220] = field[250:420, 250:450] = (226, 205, 205)
    Image.fromarray(field).save(blank)
    broken = tmp_path / "broken.png"
    broken.write_bytes((slides / "a.png").read_bytes()[:2000])
    with pytest.warns(cytofm.CytofmWarning):
        done = run([slides, blank, broken], tmp_path / "out")
    assert {outcome.slide_id: outcome.status for outcome in done} == {
        "a": "done", "b": "done", "blank": "failed", "broken": "failed",
    }  # fmt: skip
    lines = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    told = {record["slide_id"]: record for record in map(json.loads, lines)}
    assert told.keys() == {"blank", "broken"}
    assert (told["blank"]["command"], told["blank"]["step"]) == ("run", "embed cell")
    assert list(told["blank"]["steps"]) == ["tile", "detect", "embed tile"]
    assert "no nuclei" in told["blank"]["error"]
    assert (told["broken"]["step"], told["broken"]["steps"]) == ("tile", {})
    store = open_store(tmp_path / "out" / "stores" / "blank.zarr")
    assert set(store.steps) == {"tile", "nuclei/classical", "embeddings/handcrafted/tile"}
    # It leaves the list when it is done.
    (tmp_path / "broken.png").write_bytes((slides / "a.png").read_bytes())
    assert run(broken, tmp_path / "out")[0].status == "done"
    left = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["slide_id"] for line in left] == ["blank"]


def test_dry_run__writes_nothing(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    planned = run(slides, tmp_path / "out", dry_run=True, export={"to": "csv"})
    assert [outcome.status for outcome in planned] == ["done", "done"]
    assert list(statuses(planned[0])) == [*STEPS, "export"]
    assert list((tmp_path / "out").iterdir()) == []
    # What is there is looked at.
    cytofm.tile(slides, tmp_path / "out" / "stores", **TILES)
    before = content(tmp_path / "out")
    planned = run(slides, tmp_path / "out", dry_run=True)
    assert statuses(planned[0]) == dict.fromkeys(STEPS, "done") | {"tile": "skipped"}
    assert content(tmp_path / "out") == before


def test_shards__share_the_slides_out(slides: Path, singly: Path, tmp_path: Path) -> None:
    parts = [run(slides, tmp_path, shard=f"{part}/2") for part in range(2)]
    assert sorted(outcome.slide_id for part in parts for outcome in part) == ["a", "b"]
    assert content(tmp_path / "stores") == content(singly)


def test_workers__make_the_same_stores(slides: Path, singly: Path, tmp_path: Path) -> None:
    run(slides, tmp_path, workers=2).raise_failures()
    assert content(tmp_path / "stores") == content(singly)


def test_export__is_that_of_the_single_command(slides: Path, singly: Path, tmp_path: Path) -> None:
    done = run(slides, tmp_path, embed=BAGS[1], export={"to": "csv,pt"})
    made = cytofm.export(singly, tmp_path / "singly", ["csv", "pt"], unit="cell")
    assert len(made) == 4
    told = [of["file"] for outcome in done for of in outcome.facts["steps"]["export"]["files"]]
    assert [Path(file).name for file in told] == [file.name for file in made]
    for file in made:
        same = tmp_path / "export" / file.relative_to(tmp_path / "singly")
        assert same.read_bytes() == file.read_bytes()
    again = run(slides, tmp_path, embed=BAGS[1], export={"to": "csv,pt"})
    assert [outcome.status for outcome in again] == ["skipped", "skipped"]


def test_cells__are_those_that_were_found_now(slides: Path, tmp_path: Path) -> None:
    run(slides / "a.png", tmp_path, embed=BAGS[1])
    (tmp_path / "a.csv").write_text("x,y\n100,120\n")
    other = {"detector": "import", "nuclei": tmp_path / "a.csv"}
    with (
        pytest.warns(cytofm.CytofmWarning),
        pytest.raises(ConfigMismatchError, match="embeddings/handcrafted/cell"),
    ):
        run(slides / "a.png", tmp_path, embed=BAGS[1], detect=other).raise_failures()
    cytofm.embed(tmp_path / "stores", **BAGS[1], detector="import", overwrite=True)
    again = run(slides / "a.png", tmp_path, embed=BAGS[1], detect=other)
    assert again[0].status == "skipped"
    store = open_store(tmp_path / "stores" / "a.zarr")
    assert store.read("embeddings/handcrafted/cell/xy_px0").tolist() == [[100, 120]]


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"tile": {"tile_pxx": 256}}, UsageError, "tile_pxx"),
        ({"detect": {"detector": "nobody"}}, UsageError, "nobody"),
        ({"detector_settings": {"min_probability": 2}}, UsageError, "at most 1"),
        ({"embed": {"encoder": "nobody"}}, UsageError, "nobody"),
        ({"embed": {"weights": "none.pt", "encoder": "uni"}}, WeightsError, "none.pt"),
        ({"embed": [{"unit": "cell"}, {"unit": "cell"}]}, UsageError, "two bags of the same"),
        ({"embed": 3}, UsageError, "3 is no EmbedConfig"),
        ({"export": {"to": "docx"}}, UsageError, "docx"),
        ({"export": {"to": "csv", "layout": "clam"}}, UsageError, "--layout"),
        ({"model": "none"}, InputError, "none"),
        ({"slides": "stores/a.zarr"}, UsageError, "is a store"),
        ({"slides": "empty"}, InputError, "no slides found"),
        ({"shard": "2/2"}, UsageError, "i/n"),
    ],
)  # fmt: skip
def test_what_would_fail_on_all_slides__is_refused_before_the_first(
    slides: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict,
    error: type[Exception],
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        cytofm.run(**({"slides": slides, "out": "out"} | more))
    assert not (tmp_path / "out").exists()


def test_progress__of_all_steps_only_grows_and_counts_tiles(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytofm_cli.work.batch._BETWEEN_REPORTS_S", 0.0)
    heard: list[object] = []
    run(slides / "a.png", tmp_path, listen=heard.append)
    progress = [event for event in heard if isinstance(event, cytofm.Progress)]
    n_tiles = open_store(tmp_path / "stores" / "a.zarr").tile.n_tiles
    assert {event.total for event in progress} == {n_tiles}
    done = [event.done for event in progress]
    assert done == sorted(done)
    assert done[-1] == n_tiles


def test_tiles__are_decoded_once_for_all_steps(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    plain = StoredTiles.read

    def read(tiles: StoredTiles, index: int) -> np.ndarray:
        reads.append(index)
        return plain(tiles, index)

    monkeypatch.setattr(StoredTiles, "read", read)
    cytofm.run(
        slides / "a.png",
        tmp_path,
        tile=TILES | {"tile_px": 64, "foreground": "none"},
        embed=BAGS,
        threads=1,
    )
    assert sorted(reads) == list(range(open_store(tmp_path / "stores" / "a.zarr").tile.n_tiles))
    assert len(reads) > 16  # more than a field keeps by itself


def test_models__are_loaded_once(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    plain = pipeline.Embedding.__call__

    def embed(self, task, report):  # type: ignore[no-untyped-def]
        loads.append(f"{task.payload.config.unit} {id(self)}")
        return plain(self, task, report)

    monkeypatch.setattr(pipeline.Embedding, "__call__", embed)
    run(slides, tmp_path)
    assert [text.split()[0] for text in loads] == ["tile", "cell"] * 2
    assert len({text.split()[1] for text in loads}) == 1  # one encoder serves both units


def test_store_that_vanishes__is_a_failure_of_its_slide(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self, task, report):  # type: ignore[no-untyped-def]
        raise StoreError(f"{task.path}: gone.")

    monkeypatch.setattr(pipeline.Detecting, "__call__", lost)
    with pytest.warns(cytofm.CytofmWarning, match="gone"):
        done = run(slides / "a.png", tmp_path)
    assert (done[0].status, done[0].facts["step"]) == ("failed", "detect")
    assert done[0].facts["steps"]["tile"]["status"] == "done"
