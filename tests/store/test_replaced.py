"""Commands on a store whose nuclei are replaced: nothing of the former ones is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.dtype import as_stored
from cytofm_cli.encoders.models.handcrafted import HandcraftedEncoder
from cytofm_cli.encoders.run import Embedder, EmbedJob
from cytofm_cli.errors import ConfigMismatchError, StoreError
from cytofm_cli.exporters.formats import pt
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.nuclei.run import Detection, DetectJob
from cytofm_cli.store import io
from cytofm_cli.views.config import ViewsConfig

CELLS = "embeddings/handcrafted/cell"


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 512 × 512 px with nine dark disks, tiled."""
    folder = tmp_path_factory.mktemp("replaced")
    yy, xx = np.mgrid[:512, :512]
    image = np.random.default_rng(0).normal(228, 1, (512, 512, 3))
    for x in (90, 250, 410):
        for y in (90, 250, 410):
            soft = 1 / (1 + np.exp(np.minimum(np.hypot(xx - x, yy - y) - 13, 60) / 1.2))
            image += soft[..., None] * (np.array([80, 60, 120]) - image)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "s.png")
    words = ["tile", folder / "s.png", "-o", folder / "stores", "--mpp", "0.25", "--tile-px", "512"]
    command = [sys.executable, "-m", "cytofm_cli", *map(str, words), "--foreground", "none"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "stores" / "s.zarr"


def detect(store: Path, *, dry_run: bool = False, **own: str) -> tuple[str, list[str]]:
    notes: list[str] = []
    job = DetectJob(
        slide_id="s",
        path=str(store),
        config=DetectConfig(),
        own=own,
        overwrite=True,
        dry_run=dry_run,
    )
    return Detection().detect(job, lambda *_: None, notes.append)[0], notes


def embed(store: Path, *, overwrite: bool = False, **settings: Any) -> str:
    config = EmbedConfig(encoder="handcrafted", unit="cell", **settings)
    job = EmbedJob(slide_id="s", path=str(store), store=store, config=config, overwrite=overwrite)
    return Embedder().embed(job, lambda *_: None, lambda _: None)[0]


def test_detect_again__drops_the_cells_made_before_and_says_so(tiled: Path) -> None:
    assert detect(tiled) == ("done", [])
    assert embed(tiled) == "done"
    assert len(io.open_store(tiled).embeddings(unit="cell").values) == 9
    risk = f"warning: s.zarr: if nuclei/classical comes out other than before, it drops {CELLS}"
    assert detect(tiled, dry_run=True) == ("done", [risk])
    assert detect(tiled) == ("done", [])  # the same nuclei
    assert embed(tiled) == "skipped"
    status, notes = detect(tiled, min_radius_um="4")
    assert (status, notes[-1]) == (
        "done",
        f"warning: s.zarr: nuclei/classical is replaced; it drops {CELLS}",
    )
    assert CELLS not in io.open_store(tiled).steps
    with pytest.raises(StoreError, match="no embeddings for unit cell"):
        load_bags(tiled, None, "cell")


def test_cells_of_former_nuclei__are_refused_wherever_they_are_used(
    tiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(tiled)
    embed(tiled)
    # As a version did that dropped nothing: other nuclei beside the same embeddings.
    monkeypatch.setattr("cytofm_cli.store.lineage.descendants", lambda *_: [])
    detect(tiled, min_probability="0.01")
    monkeypatch.undo()
    store = io.open_store(tiled)
    assert store.why_stale(CELLS) is not None
    said = f"{CELLS} is out of date: it was made from other nuclei/classical"
    command = [sys.executable, "-m", "cytofm_cli", "info", str(tiled), "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert told["out_of_date"] == {
        CELLS: "it was made from other nuclei/classical than the store holds now"
    }
    with pytest.raises(StoreError, match=said):
        load_bags(tiled, None, "cell")
    with pytest.raises(StoreError, match=said) as caught:
        pt.export_pt(store, tmp_path, encoder=None, unit="cell")
    assert str(caught.value.hint).endswith("--encoder handcrafted --unit cell --overwrite")
    assert embed(tiled, overwrite=True) == "done"
    assert len(load_bags(tiled, None, "cell")[0].features_ND) == 9


def test_embeddings_again__drop_the_attention_of_a_run(
    tiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytofm_cli.mil.attention import write_attention  # it needs torch

    detect(tiled)
    embed(tiled, overwrite=True)
    run = tmp_path / "run"
    monkeypatch.setattr("cytofm_cli.mil.attention.run_digest", lambda _run: "0123456789abcdef")
    card = SimpleNamespace(unit="cell", method="abmil")
    result = SimpleNamespace(
        columns=("attention",),
        instances_NK=np.ones((9, 1), np.float32),
        basis="",
        predicted="a",
        differs=(),
    )
    (bag,) = load_bags(tiled, None, "cell")
    before = io.open_store(tiled).steps
    write_attention(tiled, before, run, card, bag, result)  # type: ignore[arg-type]
    steps = io.open_store(tiled).steps
    assert steps["attention/run/cell"].made_from == {CELLS: steps[CELLS].id}
    assert embed(tiled, overwrite=True) == "done"  # the same values: it stays
    assert "attention/run/cell" in io.open_store(tiled).steps
    assert embed(tiled, overwrite=True, dtype="float16") == "done"
    assert "attention/run/cell" not in io.open_store(tiled).steps


def test_views_of_former_nuclei__are_not_taken_for_done(
    tiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nuclei of equal settings: by another version of the detector, say."""
    from cytofm_cli.views.run import ViewsJob, dump_views  # it needs torch

    job = ViewsJob(slide_id="s", path=str(tiled), folder=tmp_path, config=ViewsConfig())
    detect(tiled)
    assert dump_views(job, lambda *_: None, lambda _: None)[0] == "done"
    assert dump_views(job, lambda *_: None, lambda _: None)[0] == "skipped"
    plain = ClassicalDetector.detect
    monkeypatch.setattr(ClassicalDetector, "detect", lambda *of: plain(*of).take(np.arange(5)))
    detect(tiled)
    with pytest.raises(ConfigMismatchError, match="the nuclei themselves have changed"):
        dump_views(job, lambda *_: None, lambda _: None)
    monkeypatch.undo()
    detect(tiled)
    assert dump_views(job, lambda *_: None, lambda _: None)[0] == "skipped"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 65520.0], r"values up to 65520; float16 holds 6\.1e-05 to 65504"),
        ([1.0, -1e6], "values up to 1e\\+06"),
        ([1e-6, -2e-8], "values up to 1e-06"),
        ([1.0, np.nan], "not finite"),
        ([1.0, np.inf], "not finite"),
    ],
)
def test_as_stored__what_float16_cannot_hold_is_refused(values: list[float], said: str) -> None:
    with pytest.raises(StoreError, match=f"s: encoder e gave .*{said}") as caught:
        list(as_stored([np.array([values], np.float32)], "float16", "s: encoder e"))
    assert caught.value.exit_code == 3
    assert caught.value.hint == ("--dtype float32" if np.isfinite(values).all() else None)


@pytest.mark.parametrize("values", [[[65504.0, 1e-9]], [[65519.0, 0.0]], [[0.0, 0.0]], []])
def test_as_stored__what_float16_holds_is_rounded(values: list[list[float]]) -> None:
    (found,) = as_stored([np.array(values, np.float32).reshape(-1, 2)], "float16", "s")
    np.testing.assert_array_equal(found, np.array(values, np.float16).reshape(-1, 2))
    assert found.dtype == np.float16


def test_as_stored__float32_keeps_what_it_is_given() -> None:
    values = np.array([[1e30, 1e-30]], np.float32)
    np.testing.assert_array_equal(next(as_stored([values], "float32", "s")), values)


def test_as_stored__a_block_may_be_tiny_where_another_is_not() -> None:
    tiny, large = np.full((1, 2), 1e-6, np.float32), np.ones((1, 2), np.float32)
    assert len(list(as_stored([tiny, large], "float16", "s"))) == 2
    with pytest.raises(StoreError, match="values up to 1e-06"):
        list(as_stored([tiny, tiny], "float16", "s"))


def test_embed__stops_at_the_first_batch_that_float16_cannot_hold(
    tiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def huge(_self: Any, batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return np.full((len(batch), _self.spec.dim), 7e4, np.float32)

    detect(tiled)
    monkeypatch.setattr(HandcraftedEncoder, "encode", huge)
    with pytest.raises(StoreError, match="handcrafted gave values up to 70000; float16 holds"):
        embed(tiled, overwrite=True, dtype="float16", batch_size=2)
    assert seen == [2]
