"""`cytofm simulate`: what lies in the folder, that it goes on, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

import cytofm_cli
from cytofm_cli.config import as_record
from cytofm_cli.errors import UsageError
from cytofm_cli.simulate.config import SimulateConfig

SMALL = ("--patients", 3, "--slides-per-patient", 2, "--size-px", 400, "--no-progress")
# Hardly a cell and clean glass: a slide of nine parts in seconds.
SPARSE = """
summary = "sparse"
negative = "normal"
dyes = { blue = { od = [0.6, 0.5, 0.2] } }
diagnoses = { well = { label = "normal" }, ill = { label = "ill", kinds = { dark = 1.0 } } }
layout = { cells_per_mm2 = 60, background = { pale = 1.0 } }

[kinds.pale]
group = "normal"
nucleus = { area_um2 = { median = 40 }, density = { blue = 1.0 } }

[kinds.dark]
group = "ill"
nucleus = { area_um2 = { median = 90 }, density = { blue = 1.4 } }
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file but those that hold a time."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "config.toml"
    }


@pytest.fixture(scope="module")
def cohort(cytofm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulate") / "cohort"
    done = cytofm("simulate", "-o", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def test_simulate__writes_all_that_is_known(cohort: Path) -> None:
    labels, posterior = rows(cohort / "labels.csv"), rows(cohort / "posterior.csv")
    names = [row["slide_id"] for row in labels]
    assert names == [f"p{k}_s{i}" for k in (1, 2, 3) for i in (1, 2)]
    assert Counter(row["label"] for row in labels) == {"abnormal": 4, "normal": 2}
    assert [row["group"] for row in labels] == ["p1", "p1", "p2", "p2", "p3", "p3"]
    assert [row["slide_id"] for row in posterior] == names
    for row in posterior:
        of_diagnosis = [float(value) for key, value in row.items() if key not in
                        {"slide_id", "label", "p_positive"}]  # fmt: skip
        assert sum(of_diagnosis) == pytest.approx(1, abs=1e-4)
        assert 0 <= float(row["p_positive"]) <= 1
    summary = json.loads((cohort / "simulate.json").read_text())
    assert (summary["n_slides"], summary["n_positive"]) == (6, 4)
    assert 0 <= summary["bayes_auc"] <= 1
    cells = rows(cohort / "cells.csv")
    assert len(cells) == summary["n_cells"] == sum(s["n_cells"] for s in summary["slides"])
    for name in names:
        own = [row for row in cells if row["slide_id"] == name]
        truth = cohort / "truth" / name
        assert len(json.loads(truth.with_suffix(".geojson").read_text())["features"]) == len(own)
        numbers = {int(row["cell"]) for row in own}
        for of in ("nuclei", "cytoplasm"):
            image = tifffile.imread(f"{truth}.{of}.tif")
            assert (image.shape, image.dtype) == ((400, 400), np.uint32)
            assert set(np.unique(image).tolist()) <= numbers | {0}
        assert tifffile.imread(cohort / "slides" / f"{name}.ome.tiff").shape == (400, 400, 3)


def test_simulate__again_skips_and_makes_only_what_is_gone(cohort: Path, here, tmp_path) -> None:
    copy = tmp_path / "cohort"
    shutil.copytree(cohort, copy)
    before = content(copy)
    done = here("simulate", "-o", copy, *SMALL, "--json")
    assert done.returncode == 0
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["skipped"] * 6
    (copy / "slides" / "p2_s1.ome.tiff").unlink()
    (copy / "truth" / "p3_s1.geojson").unlink()
    done = here("simulate", "-o", copy, *SMALL)
    assert "2 done, 4 skipped" in done.stderr
    assert content(copy) == before


def test_simulate__what_a_process_left_that_was_killed_when_done_goes(
    cohort: Path, here, tmp_path
) -> None:
    out = Path(shutil.copytree(cohort, tmp_path / "again"))
    before = content(out)
    first = sorted((out / "truth").glob("*.json"))[0].stem
    dead = {"host": os.uname().nodename, "pid": 2**22 + 1, "started": "1"}
    left = out / "truth" / f".{first}.claim"
    left.write_text(json.dumps(dead))
    assert here("simulate", "-o", out, *SMALL).returncode == 0
    assert not left.exists()
    assert content(out) == before


def test_simulate__is_the_same_from_python_and_on_two_workers(cohort: Path, tmp_path) -> None:
    settings = {"patients": 3, "slides_per_patient": 2, "size_px": 400}
    outcomes = cytofm_cli.simulate_slides(tmp_path / "one", workers=2, **settings)
    assert [outcome.status for outcome in outcomes] == ["done"] * 6
    assert content(tmp_path / "one") == content(cohort)


def test_simulate__a_part_does_not_overwrite_the_others(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="each part would remove what the others have made"):
        cytofm_cli.simulate_slides(tmp_path / "out", overwrite=True, shard="0/2")
    assert not (tmp_path / "out").exists()


def test_simulate__shards_make_the_whole_together(cohort: Path, here, tmp_path) -> None:
    out = tmp_path / "cohort"
    assert here("simulate", "-o", out, *SMALL, "--shard", "0/2").returncode == 0
    assert not (out / "labels.csv").exists()
    assert here("simulate", "-o", out, *SMALL, "--shard", "1/2").returncode == 0
    assert content(out) == content(cohort)


@pytest.mark.slow
def test_simulate__large_slide_is_the_same_shared_out(cytofm, tmp_path) -> None:
    preset = tmp_path / "sparse.toml"
    preset.write_text(SPARSE)
    words = ("--preset", preset, "--patients", 1, "--slides-per-patient", 1, "--size-px", 4200)
    for threads in (1, 2):
        done = cytofm("simulate", "-o", tmp_path / str(threads), *words, "--threads", threads)
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_simulate__dry_run_says_how_much_and_writes_nothing(here, tmp_path) -> None:
    done = here("simulate", "-o", tmp_path / "x", *SMALL, "--dry-run", "--json")
    assert done.returncode == 0
    assert "6 slides, about" in done.stderr
    assert all(json.loads(line)["bytes"] > 0 for line in done.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_simulate__other_settings_are_refused(cohort: Path, here) -> None:
    before = content(cohort)
    done = here("simulate", "-o", cohort, *SMALL, "--seed", 5)
    assert done.returncode == 2
    assert "simulate.seed: 0 → 5" in done.stderr
    assert content(cohort) == before


def test_simulate__what_is_no_cohort_is_left_alone(here, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = here("simulate", "-o", tmp_path, *SMALL, "--overwrite")
    assert done.returncode == 2
    assert "is not a RUN of `cytofm simulate`" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--preset", "papp"), 2, "--preset papp: there is none. Hint: choose blood"),
        (("--preset", "gone.toml"), 2, "gone.toml: not a preset"),
        (("--size-px", 10), 2, "--size-px 10 must be at least 64"),
        (("--size-px", 10**6), 2, "--size-px 1000000 must be at most"),
        (("--abnormal-share", 1.5), 2, "--abnormal-share 1.5 must be at most 1"),
        (("--planes", 0), 2, "--planes 0 must be at least 1"),
        (("--planes", 3, "--format", "jpeg"), 2, "--planes 3: jpeg holds one plane"),
        (("--format", "png", "--size-px", 20000), 2, "png is for fields of at most 8192 px"),
        (("--planes", 3, "--format", "dicom"), 2, "--planes 3: dicom holds one plane"),
        (("--patients", 90000, "--size-px", 200000), 75, "slides need about"),
    ],
)
@pytest.mark.slow
def test_simulate__impossible_settings_leave_nothing(here, tmp_path, words, code, said) -> None:
    done = here("simulate", "-o", tmp_path / "x", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "suffix"), [("svs-like", ".svs"), ("jpeg", ".jpg"), ("png", ".png"), ("dicom", "")]
)
def test_simulate__formats_can_be_tiled(here, tmp_path, kind, suffix) -> None:
    out, words = tmp_path / "out", ("--patients", 1, "--slides-per-patient", 1, "--size-px", 600)
    assert here("simulate", "-o", out, *words, "--format", kind).returncode == 0
    slide = out / "slides" / f"p1_s1{suffix}"
    done = here("info", slide, "--json")
    assert json.loads(done.stdout)["mpp"] == pytest.approx(0.25)
    done = here("tile", slide, "-o", tmp_path / "stores", "--tile-px", 256)
    assert done.returncode == 0, done.stderr


def test_config__is_the_same_whoever_covers() -> None:
    assert SimulateConfig(size_px=4096).share_covered == 1.0
    assert SimulateConfig(size_px=4097).share_covered == 0.3
    assert SimulateConfig(size_px=8000, covered=0.1).share_covered == 0.1
    assert as_record(SimulateConfig())["covered"] is None
    with pytest.raises(UsageError, match="SimulateConfig"):
        SimulateConfig(planes=2, format="svs-like")


@pytest.mark.slow
def test_kill__leaves_no_half_slide_and_goes_on(cytofm, tmp_path) -> None:
    words = ["simulate", "-o", str(tmp_path / "killed"), "--patients", "4", "--size-px", "700"]
    for after_s in (2.0, 4.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "cytofm_cli", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for slide in tmp_path.glob("killed/slides/[!.]*.tiff"):
            assert tifffile.imread(slide).shape == (700, 700, 3)
    assert cytofm(*words).returncode == 0
    words[2] = str(tmp_path / "whole")
    assert cytofm(*words).returncode == 0
    killed = {name: data for name, data in content(tmp_path / "killed").items() if "/." not in name}
    assert killed == content(tmp_path / "whole")
