"""`cytofm attention` on simulated fields."""

from __future__ import annotations

import csv
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

FILES = ["attention.csv", "slides.csv", "attention.json", "heads.png", "heads.svg"]
QUICK = ("--images", 5, "--shown", 2, "--replicates", 100)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_attention__tables_and_pictures(here, detected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = here("attention", detected, "-o", out, "--control", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out / name) for name in FILES]
    rows = rows_of(out / "attention.csv")
    arms = {(row["weights"], row["keys"]) for row in rows}
    assert arms == {(w, k) for w in ("trained", "random") for k in ("top-16", "dense")}
    assert len(rows) == 4 * (3 + 1) * 3  # networks, heads and their mean, compartments
    assert {(row["query"], row["slides"], row["images"]) for row in rows} == {
        ("class token", "4", "20")
    }
    # Shares of one head over compartments sum to 1; the table is the mean of the slides.
    head = [r for r in rows if (r["weights"], r["keys"], r["head"]) == ("trained", "dense", "2")]
    assert sum(float(row["mass"]) for row in head) == pytest.approx(1, abs=1e-4)
    assert sum(float(row["area"]) for row in head) == pytest.approx(1, abs=1e-4)
    slides = [
        row for row in rows_of(out / "slides.csv")
        if (row["weights"], row["keys"], row["head"]) == ("trained", "dense", "2")
    ]  # fmt: skip
    mean = np.mean([float(row["mass_nucleus"]) for row in slides])
    assert float(head[0]["mass"]) == pytest.approx(mean, abs=1e-4)
    area = np.mean([float(row["area_nucleus"]) for row in slides])
    assert float(head[0]["enrichment"]) == pytest.approx(mean / area, abs=1e-3)
    assert float(head[0]["enrichment_low"]) <= mean / area <= float(head[0]["enrichment_high"])
    told = json.loads((out / "attention.json").read_text())
    assert [net["grid"] for net in told["networks"]] == [[4, 4]] * 4
    assert told["images"] == 20 and len(told["slides"]) == 4
    root = ET.fromstring((out / "heads.svg").read_text())
    with Image.open(out / "heads.png") as picture:
        assert picture.size == (int(root.get("width")), int(root.get("height")))
    assert len(root.findall(".//{*}polygon")) >= 2 * 2 * 7
    again = here("attention", detected, "-o", tmp_path / "again", "--control", *QUICK)
    assert again.returncode == 0
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_attention__of_a_plain_vit_on_tiles(here, detected: Path, tmp_path: Path) -> None:
    done = here(
        *("attention", detected, "-o", tmp_path / "out", *QUICK),
        *("--encoder", "timm/vit_tiny_patch16_224", "--random-weights"),
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "attention.csv")
    assert {(row["weights"], row["keys"], row["query"]) for row in rows} == {
        ("random", "dense", "class token")
    }
    mean = next(row for row in rows if (row["head"], row["compartment"]) == ("mean", "nucleus"))
    assert float(mean["enrichment"]) == pytest.approx(1, abs=0.15)  # random weights look anywhere


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--encoder", "handcrafted"), 2, "'handcrafted' computes its vector without a network"),
        (("--encoder", "timm/resnet10t", "--random-weights"), 2,
         "'timm/resnet10t-random0' has no attention over all patches"),
        (("--encoder", "timm/vit_tiny_patch16_224"), 3, "needs weights"),
        (("--encoder", "nothing"), 2, "no encoder is called 'nothing'"),
        (("--encoder", "timm/vit_tiny_patch16_224", "--random-weights", "--dense"), 2,
         "--dense: none of these encoders has top-h attention"),
        (("--detector", "cellvit"), 3, "no nuclei of 'cellvit'"),
        (("--shard", "0/2"), 2, "--shard: intervals are over all slides together."),
        (("--input-px", "50"), 2, "50 px cannot be cut into patches of 16 px"),
    ],
)  # fmt: skip
def test_attention__bad_input_is_one_line_and_leaves_nothing(
    here, detected: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    store = min(detected.glob("*.zarr"))
    done = here("attention", store, "-o", tmp_path / "out", *QUICK, *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".jsonl"]


def test_attention__a_store_without_nuclei_fails_alone(
    here, stores: Path, detected: Path, tmp_path: Path
) -> None:
    with_nuclei = sorted(detected.glob("*.zarr"))[:2]
    bare = tmp_path / "bare.zarr"
    shutil.copytree(min(stores.glob("*.zarr")), bare)
    done = here("attention", *with_nuclei, bare, "-o", tmp_path / "out", *QUICK)
    assert done.returncode == 4, done.stderr
    assert "bare.zarr: holds no nuclei" in done.stderr
    told = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert told["failed"] == ["bare"] and len(told["slides"]) == 2


def test_attention__names_with_signs_of_markup_stay_text(
    here, detected: Path, tmp_path: Path
) -> None:
    name = '<b>&"x" é\x07'
    shutil.copytree(min(detected.glob("*.zarr")), tmp_path / "in" / f"{name}.zarr")
    done = here("attention", tmp_path / "in", "-o", tmp_path / "out", *QUICK)
    assert done.returncode == 0, done.stderr
    root = ET.fromstring((tmp_path / "out" / "heads.svg").read_text())
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert '<b>&"x" é ' in words
