"""Runs of robustness and retention on small slides, and what they are summed up to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cytofm_cli as cytofm
from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.errors import ConfigMismatchError, InputError, UsageError
from cytofm_cli.evaluate import probe, retention, robustness
from cytofm_cli.evaluate.conditions import Changed
from cytofm_cli.evaluate.perturbation_names import parse
from tests.evaluate.conftest import MPP, Smears

QUICK: dict[str, Any] = {"threads": 1, "device": "cpu"}


def as_stores(smears: Smears, folder: Path, names: dict[str, str]) -> Path:
    """Copy stores under other names: slides that show the same places."""
    folder.mkdir()
    for name, origin in names.items():
        shutil.copytree(smears.stores / f"{origin}.zarr", folder / f"{name}.zarr")
    return folder


def pairs_table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["slide_a,slide_b,group", *rows]) + "\n")
    return path


def test_robustness__of_perturbed_cells(smears: Smears, tmp_path: Path) -> None:
    words = ("turn:90", "jpeg:30", "stain:1")
    how = {"points": smears.points, "perturb": words, "crop_um": 12.0, **QUICK}
    report = cytofm.robustness(smears.stores, tmp_path / "run", **how)
    assert (report.metrics["places"], report.metrics["slides"]) == (48, 6)
    rows = {row["second"]: row for row in report.metrics["comparisons"]}
    assert list(rows) == list(words)
    assert {row["group"] for row in rows.values()} == {"turn", "jpeg", "stain"}
    # The handcrafted features are blind to turns; the stain moves them more than anything.
    assert rows["turn:90"]["cosine"] == pytest.approx(1.0, abs=1e-3)
    assert rows["stain:1"]["cosine"] < rows["jpeg:30"]["cosine"] < 1
    assert rows["jpeg:30"]["chance"]["10"] == pytest.approx(10 / 95)
    summary = report.metrics["groups"]["handcrafted"]["all"]["cosine"]
    assert summary["mean"] == pytest.approx(np.mean([row["cosine"] for row in rows.values()]))
    assert report.metrics["leaderboard"] == {"handcrafted": None}
    names = {path.name for path in report.path.iterdir()}
    assert names == {
        "config.toml", "metrics.json", "table.md", "cosine.svg", "top10.svg", "features"
    }  # fmt: skip
    assert len(list((report.path / "features").iterdir())) == 4

    kept = {path: path.stat().st_mtime_ns for path in (report.path / "features").iterdir()}
    again = cytofm.robustness(smears.stores, tmp_path / "run", **how)
    assert again.skipped
    assert again.metrics == json.loads((report.path / "metrics.json").read_text())
    with pytest.raises(ConfigMismatchError, match="perturb"):
        cytofm.robustness(smears.stores, tmp_path / "run", **{**how, "perturb": ("turn:180",)})
    more = {**how, "perturb": (*words, "turn:180")}
    extended = cytofm.robustness(smears.stores, tmp_path / "run", overwrite=True, **more)
    assert extended.metrics["comparisons"][:3] == report.metrics["comparisons"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_robustness__of_slides_gives_the_same_as_of_their_stores(
    smears: Smears, tmp_path: Path
) -> None:
    how = {"points": smears.points, "perturb": ("defocus:1",), "crop_um": 12.0, **QUICK}
    stores = cytofm.robustness(smears.stores, tmp_path / "a", **how)
    slides = cytofm.robustness(smears.folder, tmp_path / "b", slide_mpp=MPP, **how)
    assert slides.metrics["comparisons"] == stores.metrics["comparisons"]


def test_robustness__of_some_places_is_drawn_by_the_seed(smears: Smears, tmp_path: Path) -> None:
    how = {"points": smears.points, "perturb": ("jpeg:30",), "max_places": 20, **QUICK}
    first, same, other = (
        cytofm.robustness(smears.stores, tmp_path / name, seed=seed, **how).metrics
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first["places"] == 20
    assert first == same
    assert first["comparisons"] != other["comparisons"]


def test_robustness__of_pairs_of_slides(smears: Smears, tmp_path: Path) -> None:
    names = {"a": "s0", "b": "s0", "c": "s1", "d": "s2"}
    stores = as_stores(smears, tmp_path / "stores", names)
    rows = ("a,b,inter-scanner", "a,c,inter-staining", "b,d.svs,both")
    pairs = pairs_table(tmp_path / "pairs.csv", *rows)
    how = {"pairs": pairs, "unit": "tile", "k": (1, 10), **QUICK}
    report = cytofm.robustness(stores, tmp_path / "run", **how)
    same, *others = report.metrics["comparisons"]
    assert (same["first"], same["second"], same["group"]) == ("a", "b", "inter-scanner")
    assert same["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert same["top"] == {"1": 1.0, "10": 1.0}
    assert all(row["cosine"] < 1 for row in others)
    groups = report.metrics["groups"]["handcrafted"]
    expected = np.median([row["cosine"] for row in (same, *others)])
    expected += groups["inter-scanner"]["top10"]["median"]
    expected += groups["inter-staining"]["top10"]["median"] + groups["both"]["top10"]["median"]
    assert report.metrics["leaderboard"]["handcrafted"] == pytest.approx(expected / 4)
    assert "features" not in report.metrics["encoders"]["handcrafted"]

    # Embeddings of the stores are the same features.
    cytofm.embed(stores, encoder="handcrafted", dtype="float32", device="cpu")
    stored = cytofm.robustness(stores, tmp_path / "stored", **how)
    assert stored.metrics["encoders"]["handcrafted"]["features"] == "of the stores"
    assert not (stored.path / "features").exists()
    for row, other in zip(
        report.metrics["comparisons"], stored.metrics["comparisons"], strict=True
    ):
        assert row["cosine"] == pytest.approx(other["cosine"], abs=1e-6)


def test_robustness__of_pairs_takes_the_stored_embeddings_of_cells(
    smears: Smears, tmp_path: Path
) -> None:
    names = {"a": "s0", "b": "s0", "c": "s1", "d": "s1"}
    stores = as_stores(smears, tmp_path / "stores", names)
    cytofm.detect(stores)
    pairs = pairs_table(tmp_path / "pairs.csv", "a,b,", "c,d,")
    how = {"pairs": pairs, "k": (1,), **QUICK}
    computed = cytofm.robustness(stores, tmp_path / "computed", **how)
    each = [row["places"] for row in computed.metrics["comparisons"]]
    assert computed.metrics["places"] == 2 * sum(each)
    cytofm.embed(stores, encoder="handcrafted", unit="cell", dtype="float32", device="cpu")
    stored = cytofm.robustness(stores, tmp_path / "stored", **how)
    assert stored.metrics["encoders"]["handcrafted"]["features"] == "of the stores"
    assert stored.metrics["comparisons"] == computed.metrics["comparisons"]
    assert list(stored.metrics["groups"]["handcrafted"]) == ["all"]
    # Crops of another size are not those.
    other = cytofm.robustness(stores, tmp_path / "other", crop_um=9.0, **how)
    assert "features" not in other.metrics["encoders"]["handcrafted"]


def test_robustness__of_perturbed_tiles(smears: Smears, tmp_path: Path) -> None:
    how = {"unit": "tile", "perturb": ("turn:180", "defocus:4"), **QUICK}
    turned, blurred = cytofm.robustness(smears.stores, tmp_path / "run", **how).metrics[
        "comparisons"
    ]
    assert turned["places"] == 36
    assert turned["cosine"] == pytest.approx(1.0, abs=1e-3)
    assert blurred["cosine"] < 0.99


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a,b,x"], "one pair"),
        (["a,b,x", "a,z,x"], "slide 'z' is not given"),
        (["a,b,x", "a,a,x"], "paired with itself"),
        (["a,b,x", "b,a,x"], "a pair already"),
        (["a,b,x", "a,e,x"], "6 and 2 places: not the same"),
        (["a,b,x", "a,f,x"], "other coordinates"),
    ],
)
def test_robustness__refuses_pairs_that_cannot_be(
    smears: Smears, tmp_path: Path, rows: list[str], said: str
) -> None:
    stores = as_stores(smears, tmp_path / "stores", {"a": "s0", "b": "s1", "e": "s2", "f": "s3"})
    import zarr

    for name, change in (("e", lambda xy: xy[:2]), ("f", lambda xy: xy + 3)):
        path = stores / f"{name}.zarr" / "tiles" / "xy_px0"
        values = change(np.asarray(zarr.open_array(path, mode="r")))
        zarr.save_array(path, values, mode="w")
    pairs = pairs_table(tmp_path / "pairs.csv", *rows)
    with pytest.raises(InputError, match=said):
        cytofm.robustness(stores, tmp_path / "run", pairs=pairs, unit="tile", **QUICK)
    assert not (tmp_path / "run").exists()


def test_robustness__refuses_one_place_and_slides_without_points(
    smears: Smears, tmp_path: Path
) -> None:
    (tmp_path / "one.csv").write_text("slide_id,x,y,label\ns0,48.5,64.5,red\n")
    how = {"perturb": ("jpeg:30",), **QUICK}
    with pytest.raises(InputError, match="one place"):
        cytofm.robustness(smears.stores, tmp_path / "run", points=tmp_path / "one.csv", **how)
    with pytest.raises(UsageError, match="which cells"):
        cytofm.robustness(smears.folder, tmp_path / "run", slide_mpp=MPP, **how)
    with pytest.raises(UsageError, match="--points are cells"):
        cytofm.robustness(smears.stores, tmp_path / "run", points=smears.points, unit="tile", **how)
    with pytest.raises(UsageError, match="compared as they are"):
        cytofm.robustness(smears.stores, tmp_path / "run", pairs=smears.groups, **how)
    with pytest.raises(UsageError, match="no such kind"):
        cytofm.robustness(smears.stores, tmp_path / "run", perturb=("jpg:30",))
    assert not (tmp_path / "run").exists()


class Blind:
    """An encoder that gives no number where it sees anything but glass."""

    spec = EncoderSpec(name="blind", dim=2, input_px=None)

    def prepare(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        return pixels_BHWC

    def encode(self, batch: np.ndarray) -> np.ndarray:
        values = batch.reshape(len(batch), -1)[:, :2].astype(np.float32)
        return np.where(values < 245, np.nan, values)


def test_robustness__refuses_features_that_are_not_finite(
    smears: Smears, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytofm_cli.evaluate.choice import Choice

    monkeypatch.setattr(Choice, "load", lambda self, **_: Blind())
    how = {"points": smears.points, "perturb": ("defocus:2",), "crop_um": 4.0, **QUICK}
    with pytest.raises(InputError, match="NaN or infinite features"):
        cytofm.robustness(smears.stores, tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_changed__shows_perturbed_images_and_has_what_the_encoder_has() -> None:
    class Pixels(Blind):
        batch_px = 77

        def encode(self, batch: np.ndarray) -> np.ndarray:
            return batch.reshape(len(batch), -1).astype(np.float32)

    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    changed = Changed(Pixels(), parse("turn:90"), mpp=0.25, seed=(0,))
    assert np.array_equal(
        changed.encode(changed.prepare(images)).reshape(images.shape),
        np.rot90(images, axes=(1, 2)),
    )
    assert (changed.spec.dim, changed.batch_px) == (2, 77)
    assert not hasattr(changed, "enter_thread")


def test_summarise__by_hand() -> None:
    def row(group: str, cosine: float) -> dict[str, Any]:
        return {
            "group": group,
            "cosine": cosine,
            "apart": 0.0,
            "top": {"10": cosine / 2},
            "chance": {"10": 0.1},
        }

    summary = robustness.summarise([row("x", 0.2), row("x", 0.4), row("x", 0.9), row("", 0.1)])
    assert list(summary) == ["x", "all"]
    of = summary["x"]["cosine"]
    assert (of["median"], of["q25"], of["q75"], of["pairs"]) == pytest.approx((0.4, 0.3, 0.65, 3))
    assert of["mean"] == pytest.approx(0.5)
    assert of["std"] == pytest.approx(np.sqrt((0.09 + 0.01 + 0.16) / 3))
    assert summary["all"]["top10"]["median"] == pytest.approx(0.15)
    assert summary["all"]["chance10"]["mean"] == pytest.approx(0.1)


def test_leaderboard__is_h0_minis_of_its_four_medians() -> None:
    def of(cosine: float, top10: float) -> dict[str, dict[str, float]]:
        return {"cosine": {"median": cosine}, "top10": {"median": top10}}

    summary = {
        "Inter scanner": of(0, 0.864), "inter_staining": of(0, 0.318), "both": of(0, 0.183),
        "all": of(0.8, 0),
    }  # fmt: skip
    assert robustness.leaderboard(summary) == pytest.approx(0.541, abs=5e-4)
    assert robustness.leaderboard({name: summary[name] for name in ("both", "all")}) is None


def test_retention__of_cells_that_stay_and_of_cells_that_lose_their_colour(
    smears: Smears, tmp_path: Path
) -> None:
    words = ("turn:90", "defocus:4")
    how = {
        "groups": smears.groups, "perturb": words, "crop_um": 12.0, "k": 5, "inner_folds": 2,
        "swaps": 100, **QUICK,
    }  # fmt: skip
    report = cytofm.retention(smears.stores, smears.points, tmp_path / "run", **how)
    rows = {(row["probe"], row["condition"]): row for row in report.metrics["comparisons"]}
    assert list(rows) == [
        (name, word) for name in ("linear", "knn5") for word in ("unchanged", *words)
    ]
    assert "change" not in rows["linear", "unchanged"]
    for (name, word), row in rows.items():
        if word != "unchanged":
            gap = row["auc"]["value"] - rows[name, "unchanged"]["auc"]["value"]
            assert row["change"]["value"] == pytest.approx(gap)
            assert row["change"]["p"] <= row["change"]["p_adjusted"] <= 1
    assert rows["linear", "turn:90"]["change"]["value"] == pytest.approx(0, abs=0.02)

    # Unchanged cells are judged as `evaluate probe` judges them.
    plain = cytofm.probe(
        smears.stores, smears.points, tmp_path / "probe", groups=smears.groups, crop_um=12.0,
        k=(5,), inner_folds=2, replicates=100, draws=2, **QUICK,
    )  # fmt: skip
    probes = plain.metrics["tasks"]["labels"]["encoders"]["handcrafted"]["probes"]
    for name in ("linear", "knn5"):
        assert rows[name, "unchanged"]["auc"] == probes[name]["auc"]
    assert cytofm.retention(smears.stores, smears.points, tmp_path / "run", **how).skipped
    assert {path.name for path in report.path.glob("*.svg")} == {"labels.svg"}


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_out_of_fold_under__is_out_of_fold_where_nothing_changes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(24, 3))
    y_N, group_N = np.arange(24) % 2, np.arange(24) // 4
    moved_ND = x_ND + rng.normal(size=x_ND.shape)
    fold_N = np.where(group_N == 5, -1, group_N % 3)
    same, moved = retention.out_of_fold_under(
        x_ND, [x_ND, moved_ND], y_N, group_N, fold_N, probe.knn((3,))
    )
    plain = probe.out_of_fold(x_ND, y_N, group_N, fold_N, probe.knn((3,)))
    assert same["knn3"] == pytest.approx(plain["knn3"], abs=1e-12)
    for fold in range(3):  # learnt from unchanged cells, asked about changed ones
        train, test = fold_N != fold, fold_N == fold
        (said,) = probe.knn((3,))(
            x_ND[train], y_N[train], group_N[train], moved_ND[test], 2
        ).values()
        assert moved["knn3"][test] == pytest.approx(said, abs=1e-12)
    assert (moved["knn3"][fold_N < 0] == 0).all()
