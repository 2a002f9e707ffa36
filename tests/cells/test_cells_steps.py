"""Train, apply, count: on stores of cells whose classes are known."""

from __future__ import annotations

import csv
import io as text_io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.cells.apply import basis_of, stored_embeddings
from cytofm_cli.cells.run_folder import load_run
from cytofm_cli.errors import (
    ConfigMismatchError,
    InputError,
    StoreError,
    UsageError,
    WeightsError,
)
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.store import io, schema

from .drawn_cells import CROP, HOW, Cohort, embed_cells, train


@pytest.fixture(scope="session")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "bethesda"
    train(cohort, out)
    return out


@pytest.fixture
def stores(cohort: Cohort, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cohort.stores, tmp_path / "stores"))


@pytest.fixture(scope="session")
def applied(cohort: Cohort, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(cohort.stores, tmp_path_factory.mktemp("applied") / "stores"))
    cytofm.apply_cells(run, folder).raise_failures()
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_train__judges_groups_held_out_and_is_skipped_when_done(
    cohort: Cohort, run: Path, tmp_path: Path
) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["class_names"] == ["NILM", "LSIL", "HSIL"]
    assert (metrics["instances"], metrics["slides"], metrics["groups"]) == (36, 4, 2)
    assert metrics["balanced_accuracy"]["value"] > 0.9
    rows = rows_of(run / "predictions.csv")
    assert {row["group"]: row["fold"] for row in rows} == {"g0": "0", "g1": "1"}
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == pytest.approx(metrics["accuracy"]["value"])
    assert [sum(row) for row in metrics["confusion"]] == [12, 12, 12]
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert train(cohort, run).skipped
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
    with pytest.raises(ConfigMismatchError, match="ordinal"):
        train(cohort, run, ordinal=True)
    train(cohort, tmp_path / "again")
    for name in ("model.safetensors", "predictions.csv", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_train__keeps_features_for_another_model(cohort: Cohort, run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    (kept,) = (out / "features").iterdir()
    age = kept.stat().st_mtime_ns
    report = train(cohort, out, model="mlp", hidden=4, ordinal=True, overwrite=True)
    assert report.metrics["model"] == "mlp"
    assert "quadratic_kappa" in report.metrics
    assert kept.stat().st_mtime_ns == age
    (out / "model.safetensors").unlink()  # a RUN of which a part is lost is made again
    assert not train(cohort, out, model="mlp", hidden=4, ordinal=True).skipped
    load_run(out)


def test_train__a_run_that_was_killed_before_its_end_goes_on(
    cohort: Cohort, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cytofm_cli.cells.run_folder.save_card", stop)
    with pytest.raises(KeyboardInterrupt):
        train(cohort, out)
    monkeypatch.undo()
    with pytest.raises(InputError, match="not a finished RUN"):
        load_run(out)
    assert not train(cohort, out).skipped
    assert (out / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


def test_apply__gives_every_nucleus_what_the_model_says_by_hand(
    cohort: Cohort, run: Path, applied: Path
) -> None:
    trained = load_run(run)
    for path in sorted(applied.glob("*.zarr")):
        store = io.open_store(path)
        record = store.classes_record()
        slide, step = store.slide_id, schema.classes_step("bethesda")
        embed_cells(path, cell_um=CROP)  # afterwards: it was applied without
        x_ND = io.open_store(path).embeddings("handcrafted", "cell").values
        fold = None if slide == "s4" else int(slide[1]) // 2
        of = trained.whole if fold is None else trained.folds[fold]
        card = trained.card
        heat = card.temperature if fold is None else card.temperatures[fold]
        p_NC = of.answer(x_ND).probabilities(heat).astype(np.float32)
        assert np.array_equal(store.read(f"{step}/probability"), p_NC)
        assert np.array_equal(store.read(f"{step}/class"), p_NC.argmax(1))
        assert record.basis == ("new" if fold is None else "out-of-fold")
        assert (record.n, record.classes, record.detector) == (9, card.classes, "classical")
        # Nuclei lie in reading order of the discs or not: by their place.
        xy_px0 = store.nuclei().xy_px0
        order = np.round((xy_px0 - 40) / 80) @ [1, 3]
        said = [card.classes[c] for c in store.read(f"{step}/class")]
        truth = [cohort.truth[slide][int(i)] for i in order]
        assert np.mean([a == b for a, b in zip(said, truth, strict=True)]) > 0.85


def test_apply__stored_embeddings_give_the_same_and_are_named(
    run: Path, applied: Path, stores: Path
) -> None:
    for path in stores.glob("*.zarr"):
        embed_cells(path, cell_um=CROP)
    card = load_run(run).card
    store = io.open_store(stores / "s0.zarr")
    bag = "embeddings/handcrafted/cell"
    assert stored_embeddings(store, card, "classical") == bag
    outcomes = cytofm.apply_cells(run, stores)
    assert [of.status for of in outcomes] == ["done"] * 5
    for path in stores.glob("*.zarr"):
        mine, theirs = io.open_store(path), io.open_store(applied / path.name)
        step = "classes/bethesda"
        for name in ("class", "probability", "abstained"):
            assert np.array_equal(mine.read(f"{step}/{name}"), theirs.read(f"{step}/{name}"))
        assert mine.steps[step].id == theirs.steps[step].id
        assert bag in (mine.steps[step].made_from or {})
        assert bag not in (theirs.steps[step].made_from or {})
    assert [of.status for of in cytofm.apply_cells(run, stores)] == ["skipped"] * 5


@pytest.mark.parametrize("other", [{"cell_um": 20.0}, {"cell_um": CROP, "dtype": "float16"}])
def test_apply__embeddings_of_other_crops_or_rounded_are_not_taken(
    run: Path, applied: Path, stores: Path, other: dict
) -> None:
    path = stores / "s0.zarr"
    embed_cells(path, **other)
    assert stored_embeddings(io.open_store(path), load_run(run).card, "classical") is None
    cytofm.apply_cells(run, path).raise_failures()
    mine, theirs = io.open_store(path), io.open_store(applied / path.name)
    for array in ("classes/bethesda/class", "classes/bethesda/probability"):
        assert np.array_equal(mine.read(array), theirs.read(array))


def test_apply__abstains_below_a_threshold_and_refuses_to_change_it_unasked(
    run: Path, applied: Path
) -> None:
    path = applied / "s1.zarr"
    store = io.open_store(path)
    p_N = store.read("classes/bethesda/probability").max(1)
    threshold = float(np.median(p_N))
    with pytest.warns(cytofm.CytofmWarning, match="abstain"):
        refused = cytofm.apply_cells(run, path, abstain=threshold)
    with pytest.raises(ConfigMismatchError, match="abstain"):
        refused.raise_failures()
    outcomes = cytofm.apply_cells(run, path, abstain=threshold, overwrite=True)
    silent_N = io.open_store(path).read("classes/bethesda/abstained")
    assert silent_N.sum() == 4
    assert outcomes[0].facts["abstained"] == 4
    (count,) = cytofm.count_cells(path)
    assert (count.n, count.n_abstained, count.count_C.sum()) == (9, 4, 5)
    (bag,) = load_bags(path, "cells:bethesda", "cell")
    assert np.array_equal(bag.features_ND.sum(1) == 0, silent_N == 1)
    cytofm.apply_cells(run, path, overwrite=True).raise_failures()


def test_apply__nuclei_found_anew_drop_the_classes(run: Path, applied: Path, stores: Path) -> None:
    path = shutil.copytree(applied / "s0.zarr", stores / "t.zarr")
    with pytest.warns(cytofm.CytofmWarning) as said:
        cytofm.detect(path, detector_settings={"min_radius_um": 20.0}, overwrite=True)
    assert any("it drops classes/bethesda" in str(one.message) for one in said)
    assert not [step for step in io.open_store(path).steps if step.startswith("classes/")]
    with pytest.raises(StoreError, match="no classes"):
        cytofm.count_cells(stores / "s0.zarr").raise_failures()


def test_count__is_counted_by_hand(applied: Path, tmp_path: Path) -> None:
    table = tmp_path / "counts.csv"
    counts = cytofm.count_cells(applied, table, min_probability=0.6, top_k=2)
    rows = rows_of(table)
    assert [row["slide_id"] for row in rows] == [f"s{i}" for i in range(5)]
    for of, row in zip(counts, rows, strict=True):
        p_NC = io.open_store(applied / f"{of.slide_id}.zarr").read("classes/bethesda/probability")
        kept = p_NC.max(1) >= 0.6
        n_C = [int((p_NC[kept].argmax(1) == c).sum()) for c in range(3)]
        assert [int(row[f"n_{name}"]) for name in of.classes] == n_C
        assert int(row["below_gate"]) == int((~kept).sum())
        assert int(row["counted"]) == sum(n_C) == int(row["nuclei"]) - int(row["below_gate"])
        shares = [float(row[f"share_{name}"]) for name in of.classes]
        assert shares == pytest.approx(np.array(n_C) / sum(n_C), abs=1e-5)
        top = np.sort(p_NC[:, 2])[-2:].mean()
        assert float(row["top2_HSIL"]) == pytest.approx(top, abs=1e-5)
        assert float(row["mean_NILM"]) == pytest.approx(p_NC[:, 0].mean(), abs=1e-5)


def test_count__says_where_slides_were_classified_otherwise(
    cohort: Cohort, run: Path, applied: Path, tmp_path: Path
) -> None:
    assert cytofm.count_cells(applied).notes == ()
    stores = Path(shutil.copytree(applied, tmp_path / "stores"))
    other = tmp_path / "bethesda"
    train(cohort, other, penalty=0.01)
    cytofm.apply_cells(run, stores / "s0.zarr", abstain=0.5, overwrite=True).raise_failures()
    cytofm.apply_cells(other, stores / "s1.zarr", overwrite=True).raise_failures()
    assert cytofm.count_cells(stores).notes == (
        "counts are of classes by 2 models: s0, s2, s3 and 1 more; s1",
        "counts are of classes by 2 thresholds of abstaining: s0; s1, s2, s3 and 1 more",
    )


@pytest.mark.parametrize("distance", [None, "knn"])
def test_one_class__scores_every_nucleus_and_the_slide_by_its_farthest(
    cohort: Cohort, stores: Path, tmp_path: Path, distance: str | None
) -> None:
    out = tmp_path / "odd"
    how = {name: value for name, value in HOW.items() if name != "penalty"}
    report = cytofm.train_cells(
        stores, cohort.labels, out, model="one-class", distance=distance, **how
    )
    assert report.metrics["normal"] == ["NILM"]
    assert report.metrics["auc"]["value"] > 0.8
    assert "score" in rows_of(out / "predictions.csv")[0]
    with pytest.raises(UsageError, match=r"--abstain 0\.5 has no meaning for one-class"):
        cytofm.apply_cells(out, stores, abstain=0.5)
    cytofm.apply_cells(out, stores).raise_failures()
    for count in cytofm.count_cells(stores, top_k=3):
        store = io.open_store(stores / f"{count.slide_id}.zarr")
        score_N = store.read("classes/odd/score")
        assert count.top_score == pytest.approx(np.sort(score_N)[-3:].mean(), rel=1e-5)
        (bag,) = load_bags(store.path, "cells", "cell")
        assert np.array_equal(bag.features_ND[:, 0], score_N)
        nearer = store.read("classes/odd/probability")[:, 1]
        assert np.array_equal(store.read("classes/odd/class"), nearer >= 0.99)


def test_basis__is_that_of_the_classifier_that_saw_neither_slide_nor_patient(run: Path) -> None:
    card = load_run(run).card
    assert basis_of(card, "s0", None) == (0, "out-of-fold")
    assert basis_of(card, "s4", None) == (None, "new")
    assert basis_of(card, "s4", "G1") == (1, "out-of-fold")
    assert basis_of(card, "s4", "g9") == (None, "new")
    assert basis_of(card, "s0", "g1") == (None, "training")


def test_apply__a_table_of_patients_turns_to_the_fold_that_held_them_out(
    run: Path, stores: Path, tmp_path: Path
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("slide_id,group\ns4,g1\n")
    cytofm.apply_cells(run, stores / "s4.zarr", groups=table).raise_failures()
    record = io.open_store(stores / "s4.zarr").classes_record()
    assert (record.basis, record.config["fold"]) == ("out-of-fold", 1)


def test_apply__a_patient_that_was_learnt_under_its_slides_is_known_by_the_table(
    cohort: Cohort, stores: Path, tmp_path: Path
) -> None:
    labels, out = tmp_path / "points.csv", tmp_path / "run"
    rows = [row.rpartition(",")[0] for row in cohort.labels.read_text().splitlines()]
    labels.write_text("\n".join(rows) + "\n")
    cytofm.train_cells(cohort.stores, labels, out, **{**HOW, "folds": 4})  # slides are groups

    def basis(slide: str) -> tuple[str, int | None]:
        record = io.open_store(stores / f"{slide}.zarr").classes_record()
        return record.basis, record.config["fold"]

    cytofm.apply_cells(out, stores).raise_failures()
    assert [basis(f"s{i}")[0] for i in range(5)] == ["out-of-fold"] * 4 + ["new"]
    fold = basis("s3")
    table = tmp_path / "patients.csv"
    table.write_text("slide_id,patient\ns0,a\ns1,b\ns2,A\ns3,c\ns4,c\n")
    with pytest.warns(cytofm.CytofmWarning, match="has learnt from cells of this slide or its"):
        cytofm.apply_cells(out, stores, groups=table, overwrite=True).raise_failures()
    assert basis("s0") == basis("s2") == ("training", None)
    # Another record than that of a new slide, which the same classifier judges.
    assert io.open_store(stores / "s0.zarr").classes_record().config["basis"] == "training"
    assert basis("s1")[0] == "out-of-fold"
    assert basis("s3") == basis("s4") == fold
    table.write_text("slide_id,patient\ns0,a\ns1,\ns4,\n")  # of whom nothing is known
    cytofm.apply_cells(out, stores / "s4.zarr", groups=table, overwrite=True).raise_failures()
    assert basis("s4") == ("new", None)


def test_apply__a_slide_without_nuclei_is_done_and_said(run: Path, stores: Path) -> None:
    path = stores / "s4.zarr"
    with pytest.warns(cytofm.CytofmWarning, match="no nuclei found"):
        cytofm.detect(path, detector_settings={"min_radius_um": 20.0}, overwrite=True)
    with pytest.warns(cytofm.CytofmWarning, match="no nuclei"):
        cytofm.apply_cells(run, path).raise_failures()
    (count,) = cytofm.count_cells(path)
    assert count.n == 0
    assert np.isnan(count.share_C).all()
    row = next(csv.DictReader(text_io.StringIO(cytofm.count_cells(path).csv())))
    assert (row["n_NILM"], row["share_NILM"], row["mean_NILM"]) == ("0", "", "")


def test_damaged_run__is_refused_and_nothing_is_written(
    run: Path, stores: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "bethesda"))
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="not the file"):
        cytofm.apply_cells(out, stores)
    shutil.copy(run / "model.safetensors", out)
    card = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(card | {"classes": card["classes"][:2]}))
    with pytest.raises(WeightsError, match=r"model\.json names other classes"):
        cytofm.apply_cells(out, stores)
    (out / "model.json").unlink()
    with pytest.raises(InputError, match="not a finished RUN"):
        cytofm.apply_cells(out, stores)
    assert not list(stores.glob("*.zarr/classes"))
