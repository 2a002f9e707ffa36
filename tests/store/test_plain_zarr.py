"""Stores as plain zarr sees them: where cytofm's codec is not registered, and what arrays say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.run import Embedder, EmbedJob
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.store import schema
from cytofm_cli.store.checksum import ATTRIBUTE

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_zarr" / "read_store.py"
# zarr without any package that registers a codec with it.
PLAIN = """
import importlib.metadata
none = importlib.metadata.EntryPoints()
importlib.metadata.entry_points = lambda **_: none
import zarr
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 256 × 512 px, red left and blue right, in two JPEG tiles, embedded."""
    folder = tmp_path_factory.mktemp("plain")
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[:, :256, 0] = picture[:, 256:, 2] = 200
    Image.fromarray(picture).save(folder / "s.png")
    words = ["tile", folder / "s.png", "-o", folder, "--mpp", "0.25", "--tile-px", "256"]
    words += ["--foreground", "none", "--pixels", "jpeg"]
    command = [sys.executable, "-m", "cytofm_cli", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)
    path = folder / "s.zarr"
    job = EmbedJob(
        slide_id="s", path=str(path), store=path, config=EmbedConfig(encoder="handcrafted")
    )
    Embedder().embed(job, lambda *_: None, lambda _: None)
    return path


def run(code: str, *words: object) -> str:
    command = [sys.executable, "-c", PLAIN + code, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_plain_zarr__lists_the_root_and_opens_every_other_array_by_its_path(store: Path) -> None:
    code = (
        "import sys; group = zarr.open_group(sys.argv[1], mode='r')\n"
        "print(sorted(name for name, _ in group.members()))\n"
        "print(group['tiles/xy_px0'][:].tolist(), group['thumbnail'].dtype)\n"
        "print(group['embeddings/handcrafted/tile/values'].shape[0])\n"
    )
    said = run(code, store).splitlines()
    assert said == ["['embeddings', 'foreground', 'thumbnail', 'tiles']", "[[0, 0], [256, 0]] uint8", "2"]  # fmt: skip  # noqa: E501


def test_example__lists_everything_and_decodes_jpeg_without_cytofm(store: Path) -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    said = run(code, EXAMPLE, store).splitlines()
    arrays = {line.split()[0]: line for line in said[:-1]}
    assert set(arrays) == {
        "thumbnail",
        "foreground",
        "tiles/xy_px0",
        "tiles/foreground",
        "tiles/focus",
        *(f"tiles/{name}" for name in ("pen", "edge", "clump", "saturation", "blank")),
        "tiles/pixels",
        "embeddings/handcrafted/tile/values",
        "embeddings/handcrafted/tile/xy_px0",
    }
    assert arrays["tiles/pixels"] == "tiles/pixels uint8 (2, 256, 256, 3) pixels of each tile"
    red, green, blue = map(float, said[-1].rpartition("[")[2].rstrip("]").split())
    assert red == pytest.approx(200, abs=2)
    assert max(green, blue) < 3


def test_arrays__say_what_they_hold(store: Path, tmp_path: Path) -> None:
    group = zarr.open_group(store, mode="r")
    for name, node in group.members(max_depth=None):
        if isinstance(node, zarr.Array):
            assert node.attrs["description"], name
    corner = group["tiles/xy_px0"].attrs
    assert said(corner) == {
        "description": "top-left corner of each tile",
        "unit": "pixel of level 0, counted from the outer corner of its first pixel",
        "columns": ["x", "y"],
        "level": 0,
        "anchor": "corner",
    }
    assert said(group["embeddings/handcrafted/tile/xy_px0"].attrs) == said(corner)
    assert schema.CELL_EMBEDDINGS_XY.attributes["anchor"] == "centre"
    write_nuclei(tmp_path, make_table(np.ones((1, 2)), np.ones(1)))
    told = {name: said(node.attrs) for name, node in zarr_arrays(tmp_path).items()}
    assert told["xy_px0"]["anchor"] == "centre"
    assert told["area_um2"] == {"description": "area", "unit": "µm²"}
    assert set(told) == {
        "xy_px0",
        "area_um2",
        "probability",
        "class",
        "contour_px0",
        "contour_start",
    }


def said(attributes: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in attributes.items() if key != ATTRIBUTE}


def zarr_arrays(folder: Path) -> dict[str, zarr.Array]:
    return {
        node.parent.name: zarr.open_array(node.parent, mode="r")
        for node in folder.glob("*/zarr.json")
    }
