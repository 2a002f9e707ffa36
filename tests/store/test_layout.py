"""What commands store is what `schema.ARRAYS` says, all of it, and nothing else can be stored."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

import cytofm_cli as cytofm
from cytofm_cli.cells.apply import Classes, write_classes
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.run import Embedder, EmbedJob
from cytofm_cli.errors import StoreError
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.run import Detection, DetectJob
from cytofm_cli.runs import provenance
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import ClassesRecord, StepRecord
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.run import tile_slide

from ..tiles.stacks import stack_of, write_stack  # noqa: TID252 - the folders are no packages


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine dark disks of 8 µm on pale glass, 240 × 240 px at 0.25 µm/px."""
    image = Image.new("RGB", (240, 240), (235, 232, 238))
    draw = ImageDraw.Draw(image)
    for y in (40, 120, 200):
        for x in (40, 120, 200):
            draw.ellipse((x - 16, y - 16, x + 16, y + 16), (70, 50, 120))
    path = tmp_path_factory.mktemp("layout") / "s.png"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def finished(picture: Path) -> Path:
    """A store after every step."""
    from cytofm_cli.mil.attention import write_attention  # it needs torch

    stores = picture.parent
    path, quiet = io.store_path(stores, "s"), (lambda *_: None, lambda _: None)
    config = TileConfig(tile_px=120, mpp=0.25, slide_mpp=0.25, foreground="none")
    tile_slide(
        TileJob(slide_id="s", path=str(picture), stores=stores, config=config, mpp=None), *quiet
    )
    Detection().detect(DetectJob(slide_id="s", path=str(path), config=DetectConfig()), *quiet)
    for unit in schema.UNITS:
        embed = EmbedConfig(encoder="handcrafted", unit=unit)
        Embedder().embed(EmbedJob(slide_id="s", path=str(path), store=path, config=embed), *quiet)
    (bag,) = load_bags(path, None, "cell")
    result = SimpleNamespace(
        columns=("attention",),
        instances_NK=np.ones((len(bag.features_ND), 1), np.float32),
        basis="new",
        predicted="a",
        differs=(),
    )
    run = stores / "run"
    (run / "models").mkdir(parents=True)
    for name in ("config.toml", "models/decisions.json"):
        (run / name).touch()
    card = SimpleNamespace(unit="cell", method="abmil")
    write_attention(path, io.open_store(path).steps, run, card, bag, result)  # type: ignore[arg-type]
    give_classes(path, len(bag.features_ND))
    return path


def give_classes(path: Path, n: int) -> None:
    """Write classes of nuclei as `cells apply` does."""
    p_NC = np.tile(np.array([0.25, 0.75], np.float32), (n, 1))
    ids, silent = np.ones(n, np.uint8), np.zeros(n, np.uint8)
    nuclei = io.open_store(path).steps["nuclei/classical"]
    record = ClassesRecord(
        **provenance.stamp({}, input_fingerprint=nuclei.mark), n=n, classes=("a", "b"),
        detector="classical", made_from={"nuclei/classical": nuclei.identity},
    )  # fmt: skip
    with io.staging(path.parent, path.stem, "classes/run") as staged:
        write_classes(staged, Classes(ids, p_NC, silent, np.zeros(n, np.float32)), ("a", "b"))
        commit.commit_group(staged, path, "classes/run", record)


def stored_arrays(path: Path) -> dict[str, dict]:
    nodes = {
        file.parent.relative_to(path).as_posix(): json.loads(file.read_text())
        for file in path.rglob("zarr.json")
    }
    return {name: node for name, node in nodes.items() if node["node_type"] == "array"}


def test_finished_store__has_every_kind_of_array_and_no_other(
    finished: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(tmp_path / "cell.png")
    cytofm.tile([], tmp_path, cells=tmp_path, slide_mpp=0.25).raise_failures()
    of_cells = stored_arrays(tmp_path / f"{tmp_path.name}.zarr")
    stack = write_stack(tmp_path / "stack.ome.tif", stack_of(128))
    cytofm.tile(stack, tmp_path, tile_px=128, foreground="none").raise_failures()
    of_stack = stored_arrays(tmp_path / "stack.zarr")
    half = '{"type":"Polygon","coordinates":[[[0,0],[20,0],[20,9],[0,9],[0,0]]]}'
    (tmp_path / "half.geojson").write_text(f'[{{"type":"Feature","geometry":{half}}}]')
    cytofm.tile(
        tmp_path / "cell.png", tmp_path, tile_px=16, slide_mpp=0.25, foreground="none",
        regions=tmp_path / "half.geojson",
    ).raise_failures()  # fmt: skip
    in_regions = stored_arrays(tmp_path / "cell.zarr")
    kinds: dict[str, list[schema.ArrayKind]] = {}
    stores = (stored_arrays(finished), of_cells, of_stack, in_regions)
    for path, node in [item for store in stores for item in store.items()]:
        kinds[path] = [kind for kind in schema.ARRAYS if kind.names(path)]
        assert len(kinds[path]) == 1, path
        assert node["data_type"] in kinds[path][0].dtype, path
        assert tuple(node["dimension_names"]) == kinds[path][0].axes, path
        assert node["attributes"].items() >= kinds[path][0].attributes.items(), path
    assert {kind for one in kinds.values() for kind in one} == set(schema.ARRAYS)


def test_store__gives_records_and_tables(finished: Path) -> None:
    with io.open_store(finished) as store:
        assert (store.slide.size_px0, store.slide.mpp, store.slide_id) == ((240, 240), 0.25, "s")
        assert (store.tile.n_tiles, store.tile.tile_px, store.tile.fill) == (4, 120, 255)
        assert store.tile_xy_px0.tolist() == [[0, 0], [120, 0], [0, 120], [120, 120]]
        tiles = store.tiles()
        assert len(tiles) == 4 and tiles.foreground.tolist() == [1, 1, 1, 1]
        assert tiles.focus.dtype == np.float32
        nuclei = store.nuclei("classical")
        assert nuclei.classes == store.nuclei_record().classes == ("nucleus",)
        expected = [[x, y] for y in (40.5, 120.5, 200.5) for x in (40.5, 120.5, 200.5)]
        # Rows of the drawing; the nuclei of one may differ in y by a rounding.
        order = np.lexsort(np.rint(nuclei.xy_px0 / 80).T)
        np.testing.assert_allclose(nuclei.xy_px0[order], expected, atol=1)
        bag = store.embeddings(unit="cell")
        assert (bag.encoder, bag.record.cell_um, bag.record.unit) == ("handcrafted", 32.0, "cell")
        assert bag.values.shape == (9, bag.record.dim) and len(bag) == 9
        assert store.embeddings("handcrafted").xy_px0.tolist() == store.tile_xy_px0.tolist()
        attention = store.attention_record("run", "cell")
        assert attention is not None and attention.columns == ("attention",)
        assert store.attention_record("other", "cell") is None


def test_array__reads_only_what_is_asked_for(finished: Path, picture: Path) -> None:
    pixels = io.open_store(finished).array("tiles/pixels")
    assert (pixels.shape, pixels.dtype) == ((4, 120, 120, 3), np.uint8)
    expected = np.asarray(Image.open(picture))[120:, :120]
    np.testing.assert_array_equal(pixels[2], expected)
    with pytest.raises(StoreError, match="tiles/none cannot be read"):
        io.open_store(finished).array("tiles/none")


def open_files() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder is gone
            found.add(str(descriptor.readlink()))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc for open files")
def test_store_and_slide__leave_no_file_open(finished: Path, picture: Path) -> None:
    with io.open_store(finished) as store:
        store.read("tiles/pixels")
        assert not [file for file in open_files() if str(finished) in file]
    store.close()
    slide = open_slide(str(picture))
    with slide as same:
        assert same is slide and same.info.size_px0 == (240, 240)
    slide.close()
    assert not [file for file in open_files() if str(picture) in file]


def test_slide__is_closed_when_its_use_fails(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    slide = open_slide(str(picture))
    monkeypatch.setattr(type(slide), "close", lambda _: closed.append(1))
    with pytest.raises(RuntimeError), slide:
        raise RuntimeError
    assert closed == [1]


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (
            schema.TILE_XY,
            np.zeros((2, 2), np.int64),
            "xy_px0 is int64; the layout has int32",
        ),
        (schema.TILE_XY, np.zeros(2, np.int32), "tiles/xy_px0 has 1 axes"),
        (schema.EMBEDDINGS, np.zeros((2, 2)), "is float64; the layout has float16 or float32"),
    ],
)
def test_write__refuses_another_dtype_or_shape(
    tmp_path: Path, kind: schema.ArrayKind, values: np.ndarray, said: str
) -> None:
    for write in (arrays.write, arrays.write_rows):
        with pytest.raises(ValueError, match=said):
            write(tmp_path, kind, values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "axes", "dtype", "said"),
    [
        ("values", ("instance", "feature"), np.float32, None),
        ("other", ("instance", "feature"), np.float32, "no array embeddings/e/tile/other"),
        ("values", ("row", "feature"), np.float32, r"has the axes \('row', 'feature'\)"),
        ("values", ("instance", "feature"), np.float64, "is float64"),
    ],
)
def test_commit__refuses_an_array_that_the_layout_does_not_have(
    finished: Path, tmp_path: Path, path: str, axes: tuple[str, ...], dtype: type, said: str | None
) -> None:
    from cytofm_cli.store.zarr3 import write_array

    write_array(tmp_path / path, np.zeros((2, 2), dtype), axes=axes)
    if said is None:
        arrays.check_staged(tmp_path, "embeddings/e/tile")
        return
    before = sorted(finished.rglob("*"))
    record = StepRecord(config={}, config_hash="h", input_fingerprint="f")
    with pytest.raises(ValueError, match=said):
        commit.commit_group(tmp_path, finished, "embeddings/e/tile", record)
    assert sorted(finished.rglob("*")) == before


def test_kind_of__knows_units(tmp_path: Path) -> None:
    assert schema.kind_of("embeddings/timm.x/cell/xy_px0") is schema.CELL_EMBEDDINGS_XY
    assert schema.kind_of("embeddings/timm.x/tile/xy_px0") is schema.EMBEDDINGS_XY
    for path in ("embeddings/e/slide/xy_px0", "tiles/pixels/x", "nuclei/class", "thumbnails"):
        with pytest.raises(ValueError, match="no array"):
            schema.kind_of(path)
