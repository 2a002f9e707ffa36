"""`cytofm embed` and `cytofm export` as a user runs them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
import zarr


def bag(store: Path, encoder: str = "handcrafted") -> np.ndarray:
    return zarr.open_group(store, mode="r")[f"embeddings/{encoder}/tile/values"][:]


def test_embed__slides_in_one_pass_give_the_same_bags_and_store_no_pixels(
    cytofm, fields: Path, stores: Path, tmp_path: Path
) -> None:
    words = ("embed", fields, "-o", tmp_path, "--slide-mpp", 0.25, "--tile-px", 256)
    done = cytofm(*words)
    assert done.returncode == 0, done.stderr
    for store in sorted(stores.glob("*.zarr")):
        made = tmp_path / store.name
        assert not (made / "tiles" / "pixels").exists()
        np.testing.assert_array_equal(bag(made), bag(store))
    assert '"skipped"' in cytofm(*words, "--json").stdout


def test_embed__record_says_what_made_the_values(stores: Path) -> None:
    store = sorted(stores.glob("*.zarr"))[0]
    attributes = zarr.open_group(store, mode="r").attrs["cytofm"]
    record = attributes["steps"]["embeddings/handcrafted/tile"]
    assert record["encoder"] == "handcrafted"
    assert record["n"] == attributes["steps"]["tile"]["n_tiles"] == len(bag(store))
    assert record["dim"] == bag(store).shape[1]
    assert record["source_codec"] == "jpeg"
    assert record["store_codec"] == "zstd (lossless)"
    assert record["weights_sha256"] is None


def test_embed__a_moved_slide_is_found_with_slides(cytofm, fields: Path, tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    field = sorted(fields.iterdir())[0]
    (folder / field.name).write_bytes(field.read_bytes())
    words = ("tile", folder, "-o", tmp_path / "s", "--slide-mpp", 0.25, "--pixels", "none")
    assert cytofm(*words).returncode == 0
    folder.rename(tmp_path / "after")
    lost = cytofm("embed", tmp_path / "s")
    assert lost.returncode == 3
    assert "--slides" in lost.stderr
    found = cytofm("embed", tmp_path / "s", "--slides", tmp_path / "after")
    assert found.returncode == 0, found.stderr


def test_embed__networks_need_weights_and_unsafe_files_never_run(
    here, stores: Path, tmp_path: Path
) -> None:
    name = "timm/vit_tiny_patch16_224"
    store = tmp_path / "s.zarr"
    shutil.copytree(sorted(stores.glob("*.zarr"))[0], store)
    bare = here("embed", store, "--encoder", name)
    assert bare.returncode in (2, 3)
    assert "--weights" in bare.stderr
    missing = here("embed", store, "--encoder", name, "--weights", tmp_path / "no.bin")
    assert missing.returncode == 3
    assert "no such weight file" in missing.stderr

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    evil = here("embed", store, "--encoder", name, "--weights", tmp_path / "evil.pth")
    assert evil.returncode == 3
    assert not (tmp_path / "executed").exists()
    assert "Traceback" not in evil.stderr
    assert not (store / "embeddings" / "timm.vit_tiny_patch16_224").exists()


@pytest.mark.slow
def test_embed__weights_from_elsewhere_are_seen_as_laid_out_and_what_is_assumed_is_said_once(
    cytofm, here, stores: Path, tmp_path: Path
) -> None:
    for store in sorted(stores.glob("*.zarr"))[:2]:
        shutil.copytree(store, tmp_path / "s" / store.name)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    state = model.state_dict()
    nets = {f"teacher_backbone.{k}": v for k, v in state.items()}
    nets |= {f"student_backbone.{k}": torch.zeros_like(v) for k, v in state.items()}
    torch.save({"state_dict": nets}, tmp_path / "w.ckpt")
    name = "timm/vit_tiny_patch16_224"
    words = ("embed", tmp_path / "s", "--encoder", name, "--weights", tmp_path / "w.ckpt")
    own = ("--mean", "0.5,0.25,0.75", "--workers", 2)
    done = cytofm(*words, *own)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("its weight file does not say how images are prepared") == 1
    assert done.stderr.count("took the network state_dict.teacher_backbone and not") == 1
    for store in (tmp_path / "s").iterdir():
        record = zarr.open_group(store, mode="r").attrs["cytofm"]["steps"][
            "embeddings/timm.vit_tiny_patch16_224/tile"
        ]
        assert (record["input_px"], record["mean"]) == (96, [0.5, 0.25, 0.75])
        assert record["network"] == "state_dict.teacher_backbone"
        assert record["assumed"] == ["std", "interpolation", "pooling"]
        assert (record["licence"], record["pos_embed"]) == ("unknown", None)
        assert np.ptp(bag(store, "timm.vit_tiny_patch16_224")) > 1  # the student is all zeros
    assert here(*words, *own, "--json").stdout.count('"skipped"') == 2
    other = here(*words, "--workers", 1)
    assert other.returncode == 2
    assert "mean: [0.5, 0.25, 0.75] → default" in other.stderr
    misspelt = here("embed", tmp_path / "s", "--encoder", f"{name}5", *words[4:])
    assert misspelt.returncode == 2
    assert misspelt.stderr.count("error:") == 1  # before any slide, and not for each
    assert f"did you mean {name}" in misspelt.stderr


@pytest.mark.slow
def test_embed__weights_that_fit_no_slides_encoder_end_the_run_once(
    cytofm, here, stores: Path, tmp_path: Path
) -> None:
    small = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save({f"net.{k}": v for k, v in small.items()}, tmp_path / "w.pth")
    assert len(list(stores.glob("*.zarr"))) > 1
    words = ("embed", stores, "--encoder", "sr-vit-tiny", "--weights", tmp_path / "w.pth")
    done = cytofm(*words)
    assert done.returncode == 3
    assert done.stderr.count("error:") == 1
    assert "The file has net. (" in done.stderr
    patches = here(
        "embed", stores, "--encoder", "sr-vit-tiny", "--random-weights", "--input-px", 225
    )
    assert (patches.returncode, patches.stderr.count("error:")) == (2, 1)


def test_export__h5_files_hold_the_bags(cytofm, stores: Path, tmp_path: Path) -> None:
    done = cytofm("export", stores, "-o", tmp_path, "--to", "h5")
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert len(paths) == 8
    features = next(path for path in paths if path.parent.name == "features_handcrafted")
    with h5py.File(features) as file:
        np.testing.assert_array_equal(file["features"][:], bag(stores / f"{features.stem}.zarr"))


def test_info__tells_slides_and_stores(cytofm, fields: Path, stores: Path) -> None:
    told = cytofm("info", stores, "--json")
    assert told.returncode == 0
    first = json.loads(told.stdout.splitlines()[0])
    assert set(first["steps"]) >= {"tile", "embeddings/handcrafted/tile"}
    paths = {array["path"] for array in first["arrays"]}
    assert "tiles/pixels" in paths
    slide = cytofm("info", sorted(fields.iterdir())[0])
    assert "resolution not stated" in slide.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--encoder", "handcrafted"),
        ("--seed", 4),
        ("--unit", "tile", "--cell-um", 64, "--detector", "classical"),
    ],
)
def test_embed__other_words_for_the_same_bag_are_skipped(
    cytofm, stores: Path, words: tuple[object, ...]
) -> None:
    done = cytofm("embed", stores, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"skipped"}


def test_embed__slides_that_are_tiled_in_other_words_are_taken_as_they_are(
    cytofm, fields: Path, stores: Path
) -> None:
    log = stores / "failures.jsonl"
    failures = log.read_text() if log.exists() else ""
    words = ("embed", fields, "-o", stores, "--tile-px", 256, "--mpp", 0.25)
    done = cytofm(*words, "--slide-mpp", 0.25, "--stride-px", 256, "--json")
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"skipped"}
    other = cytofm(*words, "--slide-mpp", 0.2, "--json")
    assert other.returncode == 2
    assert {json.loads(line)["status"] for line in other.stdout.splitlines()} == {"refused"}
    assert "slide_mpp: 0.25 → 0.2" in other.stderr
    assert (log.read_text() if log.exists() else "") == failures


def test_embed__defaults_of_the_encoder_spelt_out_are_the_same_bag(
    here, stores: Path, tmp_path: Path
) -> None:
    store = tmp_path / sorted(stores.glob("*.zarr"))[0].name
    shutil.copytree(sorted(stores.glob("*.zarr"))[0], store)
    assert here("detect", store).returncode == 0
    cells = ("embed", store, "--unit", "cell", "--encoder", "handcrafted")
    assert here(*cells).returncode == 0
    spelt = here(*cells, "--cell-um", 32, "--detector", "classical", "--json")
    assert '"skipped"' in spelt.stdout, spelt.stderr
    other = here(*cells, "--cell-um", 40)
    assert other.returncode == 2
    assert "cell_um: default → 40.0" in other.stderr
    assert not (tmp_path / "failures.jsonl").exists()
    assert here(*cells, "--cell-um", 40, "--overwrite").returncode == 0
    back = here(*cells, "--json")
    assert back.returncode == 2  # what was asked for then is not the default
    assert "cell_um: 40.0 → default" in back.stderr
    assert here(*cells, "--cell-um", 32, "--overwrite").returncode == 0
    assert '"skipped"' in here(*cells, "--json").stdout
