"""Paired comparison and the benchmark's tables."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cytofm_cli.config import resolve
from cytofm_cli.errors import ConfigMismatchError, UsageError
from cytofm_cli.mil.answers import read_answers
from cytofm_cli.mil.benchmark import BenchmarkReport, benchmark, check_folder, write_tables
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.sources import make_sources
from cytofm_cli.stats.compare import share_splits

N = 72


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    for encoder, size in (("sharp", 3.0), ("blurred", 0.0)):
        (folder / encoder).mkdir()
        for i in range(N):
            x = rng.normal(size=(6, 5)).astype(np.float32)
            x[:, 0] += size * (i % 2)
            with h5py.File(folder / encoder / f"s{i:02d}.h5", "w") as file:
                file["features"] = x
    rows = "".join(f"s{i:02d},{i % 2},p{i // 2}\n" for i in range(N))
    (folder / "labels.csv").write_text("slide_id,label,group\n" + rows)
    report = run_benchmark(folder)
    assert report.failures == {}
    return folder


def run_benchmark(
    folder: Path,
    methods: tuple[str, ...] = ("mean", "max"),
    tune: dict[str, list[str]] | None = None,
    overwrite: bool = False,
    **more: object,
) -> BenchmarkReport:
    settings = {"folds": 3, "seeds": 1, "epochs": 5, "bootstrap": 300, "workers": 1, **more}
    if not tune:
        settings["lr"] = 0.05
    config = resolve(MilConfig, "mil", settings)
    sources = make_sources([folder / "sharp", folder / "blurred"], [], ["tile"])
    labels, out = folder / "labels.csv", folder / "out"
    return benchmark(config, sources, methods, labels, out, tune=tune, overwrite=overwrite)


def test_benchmark__all_runs_share_the_folds(made: Path) -> None:
    runs = sorted((made / "out" / "runs").iterdir())
    assert [run.name for run in runs] == [
        "blurred_tile-max", "blurred_tile-mean", "sharp_tile-max", "sharp_tile-mean",
    ]  # fmt: skip
    assert share_splits([read_answers(run) for run in runs])


def test_benchmark__tables_rank_mark_and_agree(made: Path) -> None:
    out = made / "out"
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == "| bags | mean | max | mean rank |"
    sharp, blurred = lines[2], lines[3]
    assert sharp.startswith("| sharp tile | **")
    assert sharp.endswith("| 1.0 |")
    assert blurred.endswith("| 2.0 |")
    assert blurred.count("†") == 2
    assert "†" not in sharp
    legend = "\n".join(lines[4:])
    assert "recall of '1'" in legend
    assert "over groups: score intervals" in legend and "answers swapped by group" in legend
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [(r["bags"], r["method"]) for r in rows] == [
        ("sharp tile", "mean"), ("sharp tile", "max"),
        ("blurred tile", "mean"), ("blurred tile", "max"),
    ]  # fmt: skip
    assert {(r["encoder"], r["unit"]) for r in rows} == {("", "tile")}
    metrics = json.loads((out / "runs" / "sharp_tile-mean" / "metrics.json").read_text())
    assert float(rows[0]["auc"]) == pytest.approx(metrics["auc"]["value"], abs=1e-6)
    tex = (out / "table.tex").read_text()
    assert tex.count(r"\textbf{") == 1
    assert tex.count(r"$^\dagger$") >= 2
    pairs = json.loads((out / "comparisons.json").read_text())
    assert len(pairs) == 6


def test_benchmark__again_is_skipped_and_a_lost_run_is_made_again_alike(made: Path) -> None:
    out = made / "out"
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    stamp = (out / "runs" / "sharp_tile-max" / "metrics.json").stat().st_mtime_ns
    shutil.rmtree(out / "runs" / "blurred_tile-mean")
    run_benchmark(made)
    assert (out / "runs" / "sharp_tile-max" / "metrics.json").stat().st_mtime_ns == stamp
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_benchmark__other_positive_class_is_refused_before_training(made: Path) -> None:
    settings = {"folds": 3, "seeds": 1, "epochs": 5, "bootstrap": 300, "lr": 0.05}
    config = resolve(MilConfig, "mil", {**settings, "positive": "0"})
    sources = make_sources([made / "sharp", made / "blurred"], (), ("tile",))
    with pytest.raises(ConfigMismatchError, match=r"classes: .'0', '1'. → .'1', '0'."):
        check_folder(config, sources, ("mean", "max"), made / "labels.csv", made / "out")


@pytest.mark.slow
def test_benchmark__settings_are_tuned_in_every_run(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
    report = run_benchmark(tmp_path, ("mean",), {"lr": ["1e-9", "0.05"]}, inner_folds=2)
    assert "with lr chosen within each training part" in report.table
    for run in (tmp_path / "out" / "runs").iterdir():
        tuned = json.loads((run / "metrics.json").read_text())["tuned"]
        assert [len(fold["tried"]) for fold in tuned] == [2, 2, 2]
        if run.name == "sharp_tile-mean":
            assert {fold["settings"]["lr"] for fold in tuned} == {0.05}  # 1e-9 learns nothing


def test_benchmark__a_setting_of_one_head_is_not_tuned_for_all(made: Path) -> None:
    with pytest.raises(UsageError, match="hidden: not a setting that all heads share"):
        run_benchmark(made, ("abmil",), {"hidden": ["8", "16"]})


def test_benchmark__one_bad_encoder_is_recorded_and_the_rest_is_done(
    made: Path, tmp_path: Path
) -> None:
    for name in ("sharp", "blurred"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "labels.csv", tmp_path)
    with h5py.File(tmp_path / "blurred" / "s03.h5", "a") as file:
        file["features"][0, 0] = np.nan
    report = run_benchmark(tmp_path, ("mean",))
    assert list(report.failures) == ["blurred_tile-mean"]
    assert "s03" in report.failures["blurred_tile-mean"]
    record = json.loads((tmp_path / "out" / "failures.jsonl").read_text())
    assert record["run"] == "blurred_tile-mean"
    assert "| blurred tile | – |" in report.table


def test_make_sources__names_tell_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    named = [s.name for s in make_sources([a], ["x", "y"], ["tile", "cell"])]
    assert named == ["x tile", "x cell", "y tile", "y cell"]
    assert [s.name for s in make_sources([a, b], ["x"], ["tile"])] == ["a x tile", "b x tile"]
    with pytest.raises(UsageError, match="same name"):
        make_sources([a, a], [], ["tile"])
    with pytest.raises(UsageError, match="--unit cells: choose tile, cell"):
        make_sources([a], ["x"], ["cells"])


def test_make_sources__row_is_named_by_the_encoder_that_the_bags_state(tmp_path: Path) -> None:
    folder = tmp_path / "stores"
    folder.mkdir()
    with h5py.File(folder / "s.h5", "w") as file:
        file["features"] = np.ones((2, 3), np.float32)
        file["features"].attrs["encoder"] = "uni"
    (source,) = make_sources([folder], [], ["tile"])
    assert (source.name, source.encoder) == ("uni tile", "uni")


def test_benchmark__older_runs_of_other_heads_are_named_and_not_in_the_table(made: Path) -> None:
    before = {p.name: p.read_bytes() for p in (made / "out").iterdir() if p.is_file()}
    report = run_benchmark(made, ("mean",))
    assert report.left_out == ["blurred_tile-max", "sharp_tile-max"]
    assert "| bags | mean | mean rank |" in report.table
    pairs = json.loads((made / "out" / "comparisons.json").read_text())
    assert [(p["first"], p["second"]) for p in pairs] == [("sharp tile mean", "blurred tile mean")]
    assert run_benchmark(made).left_out == []
    after = {p.name: p.read_bytes() for p in (made / "out").iterdir() if p.is_file()}
    assert after == before


def test_benchmark__runs_and_folds_of_other_settings_are_refused_before_training(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    said = r"sharp_tile-mean \(mil\.epochs: 5 → 2\); blurred_tile-mean \(mil\.epochs: 5 → 2\)\."
    with pytest.raises(ConfigMismatchError, match=said):
        run_benchmark(tmp_path, ("mean",), epochs=2)
    with pytest.raises(ConfigMismatchError, match=r"splits\.csv \(3 folds → 2\)"):
        run_benchmark(tmp_path, ("abmil",), folds=2)
    with pytest.raises(ConfigMismatchError, match="the same slides in other folds: another seed"):
        run_benchmark(tmp_path, ("abmil",), seed=1)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    report = run_benchmark(tmp_path, ("mean",), epochs=2, overwrite=True)
    assert report.left_out == ["blurred_tile-max", "sharp_tile-max"]


def test_benchmark__run_that_fails_now_shows_no_older_result(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with h5py.File(tmp_path / "blurred" / "s03.h5", "a") as file:
        file["features"][0, 0] += 1.0
    report = run_benchmark(tmp_path, ("mean",))
    assert "task.bags_digest" in report.failures["blurred_tile-mean"]
    assert "| blurred tile | – |" in report.table
    assert json.loads((tmp_path / "out" / "comparisons.json").read_text()) == []


def test_write_tables__nothing_trained_for_a_cell_leaves_a_dash(made: Path) -> None:
    text = write_tables(
        made / "out",
        ["sharp tile", "other"],
        ["mean"],
        resolve(MilConfig, "mil", {"bootstrap": 200}),
    )
    assert "| other | – | – |" in text
    write_tables(
        made / "out", ["sharp tile", "blurred tile"], ["mean", "max"],
        resolve(MilConfig, "mil", {"bootstrap": 300}),
    )  # fmt: skip


def test_benchmark__rows_that_would_share_a_folder_are_refused(made: Path, tmp_path: Path) -> None:
    for name in ("a b", "a_b"):
        shutil.copytree(made / "sharp", tmp_path / name)
    sources = make_sources([tmp_path / "a b", tmp_path / "a_b"], (), ("tile",))
    with pytest.raises(UsageError, match=r"both lie in runs/a_b_tile-mean"):
        benchmark(
            resolve(MilConfig, "mil"), sources, ["mean"], made / "labels.csv", tmp_path / "out"
        )


def test_benchmark__devices_are_dealt_to_the_runs_and_compared_run_by_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = (made / "out" / "table.csv").read_bytes()
    assert run_benchmark(made, device="cpu,auto").failures == {}  # four runs, all done on a CPU
    assert (made / "out" / "table.csv").read_bytes() == before
    with pytest.raises(UsageError, match="cuda:1: there is no GPU here"):
        run_benchmark(made, device="cpu,cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigMismatchError) as caught:
        run_benchmark(made, device="cuda:0,cuda:1")
    assert caught.value.message.count("'cpu' → 'cuda:0'") == 2
    assert caught.value.message.count("'cpu' → 'cuda:1'") == 2
