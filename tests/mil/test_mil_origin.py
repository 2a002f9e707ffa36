"""What bags are made from: read, compared, refused, remembered."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cytofm_cli.config import resolve
from cytofm_cli.errors import ConfigMismatchError, InputError, LabelError, WeightsError
from cytofm_cli.mil import foreign, origin
from cytofm_cli.mil.bag import LARGEST, Bag
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.origin import Origin
from cytofm_cli.mil.run import train_run
from cytofm_cli.mil.run_folder import read_config, read_metrics
from cytofm_cli.mil.score import load_run, score_bag, scores_csv

TILES = Origin("uni", "ab" * 32, "cls", "tile", 256, 0.5, seen_mpp=0.57)
QUICK = {"method": "mean", "folds": 2, "seeds": 2, "epochs": 2, "inner_folds": 2, "bootstrap": 100}


def quick(**settings: object) -> MilConfig:
    return resolve(MilConfig, "mil", {**QUICK, "workers": 1, **settings})


def make_bags(n: int = 12, made: Origin = TILES) -> list[Bag]:
    rng = np.random.default_rng(0)
    return [
        Bag(f"s{i:02d}", (rng.normal(size=(4, 3)) + 3 * (i % 2)).astype(np.float32), None, made)
        for i in range(n)
    ]


def write_labels(folder: Path, n: int = 12) -> Path:
    path = folder / "labels.csv"
    rows = [f"s{i:02d},{i % 2},p{i // 2}" for i in range(n)]
    path.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return path


def origins_of(bags: list[Bag]) -> dict[str, Origin]:
    return {bag.slide_id: bag.origin for bag in bags}


def with_origin(bags: list[Bag], number: int, **changed: object) -> list[Bag]:
    bags = list(bags)
    other = dataclasses.replace(bags[number].origin, **changed)
    bags[number] = dataclasses.replace(bags[number], origin=other)
    return bags


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tile_px": 512}, "tile size is 256 px in s00, 512 px in s03"),
        ({"mpp": 0.25}, "resolution is 0.25 µm/px in s03, 0.5 µm/px in s11"),
        ({"encoder": "conch"}, "encoder is conch in s03, uni in s11"),
        ({"encoder": ""}, "encoder is not stated in s03, uni in s11"),
        ({"weights_sha256": "cd" * 32}, "weights is abababababab… in s00, cdcdcdcdcdcd… in s03"),
        ({"pooling": "mean"}, "pooling is cls in s00, mean in s03"),
        ({"seen_mpp": 1.14}, "resolution at the encoder is 0.57 µm/px in s00, 1.14 µm/px in s03"),
    ],
)
def test_common__other_origin_is_refused_with_both_values_and_slides(
    changed: dict[str, object], said: str
) -> None:
    bags = with_origin(make_bags(), 3, **changed)
    with pytest.raises(InputError, match=said) as error:
        origin.common(origins_of(bags))
    assert "--allow-mixed" in (error.value.hint or "")
    found, mixed = origin.common(origins_of(bags), allow_mixed=True)
    assert len(mixed) == 1
    assert said in mixed[0]
    (key,) = changed
    assert getattr(found, key) in (None, "")  # a RUN does not remember what is not one thing
    assert dataclasses.replace(found, **{key: getattr(TILES, key)}) == TILES


def test_common__cells_of_another_crop_are_refused() -> None:
    bags = make_bags(4, Origin("uni", unit="cell", mpp=0.5, cell_um=32.0))
    assert origin.common(origins_of(bags))[0].cell_um == 32.0
    with pytest.raises(InputError, match="cell crop is 16 µm in s01, 32 µm in s03"):
        origin.common(origins_of(with_origin(bags, 1, cell_um=16.0)))


def test_common__scanners_that_tile_reads_as_they_are_go_together() -> None:
    # `cytofm tile --mpp 0.5` reads levels from 0.475 to 0.525 µm/px as they are.
    bags = with_origin(with_origin(make_bags(), 0, mpp=0.475), 1, mpp=0.525)
    found, mixed = origin.common(origins_of(bags))
    assert (found.mpp, mixed) == (0.5, [])


def test_common__what_some_bags_do_not_state_is_no_difference() -> None:
    bags = with_origin(make_bags(), 3, tile_px=None, mpp=None)
    found, mixed = origin.common(origins_of(bags))
    assert (found.tile_px, found.mpp, mixed) == (256, 0.5, [])
    (note,) = origin.notes(origins_of(bags).values(), mixed)
    assert note.endswith("tile size (1), resolution (1)")


def test_train_run__mixed_tile_sizes_are_refused_or_recorded(tmp_path: Path) -> None:
    bags, labels = with_origin(make_bags(), 3, tile_px=512), write_labels(tmp_path)
    with pytest.raises(InputError, match="tile size is 256 px in s00, 512 px in s03"):
        train_run(quick(), bags, labels, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_run(quick(allow_mixed=True), bags, labels, tmp_path / "run")
    section = read_config(tmp_path / "run")["origin"]
    assert section["mixed"] == ["tile size is 256 px in s00, 512 px in s03"]
    assert "tile_px" not in section
    notes = read_metrics(tmp_path / "run")["notes"]
    assert "mixed bags (--allow-mixed): tile size is 256 px in s00, 512 px in s03" in notes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    train_run(quick(), make_bags(), write_labels(folder), folder / "run")
    return folder / "run"


def test_train_run__remembers_what_the_bags_are_made_from(run: Path) -> None:
    assert read_config(run)["origin"] == {
        "encoder": "uni", "weights_sha256": "ab" * 32, "pooling": "cls", "unit": "tile",
        "tile_px": 256, "mpp": 0.5, "seen_mpp": 0.57,
    }  # fmt: skip
    assert load_run(run).origin == TILES


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tile_px": 512, "seen_mpp": 1.14}, "s03: tile size 512 px, the RUN learnt 256 px."),
        ({"mpp": 0.25}, r"s03: resolution 0\.25 µm/px, the RUN learnt 0\.5 µm/px\."),
        ({"encoder": "conch"}, r"s03: encoder conch, the RUN learnt uni\."),
        ({"encoder": ""}, r"s03: encoder not stated, the RUN learnt uni\."),
        ({"weights_sha256": "cd" * 32}, "weights cdcdcdcdcdcd…, the RUN learnt abababababab…"),
        ({"unit": "cell"}, "s03: unit cell, the RUN learnt tile"),
    ],
)
def test_score_bag__other_origin_is_refused_or_told(
    run: Path, changed: dict[str, object], said: str
) -> None:
    ensemble, bags = load_run(run), make_bags()
    other = with_origin(bags, 3, **changed)[3]
    with pytest.raises(InputError, match=said):
        score_bag(ensemble, other)
    allowed, plain = score_bag(ensemble, other, allow_mixed=True), score_bag(ensemble, bags[3])
    np.testing.assert_array_equal(allowed.p_C, plain.p_C)
    assert plain.differs == ()
    assert len(allowed.differs) == 1
    header, row = scores_csv([allowed], ensemble.card.classes).splitlines()
    assert header.endswith(",basis,differs")
    assert allowed.differs[0] in row


def test_load_run__older_run_remembers_encoder_and_unit(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    text = (old / "config.toml").read_text()
    (old / "config.toml").write_text(text[: text.index("[origin]")])
    (old / "models" / "manifest.json").unlink()
    ensemble = load_run(old)
    assert ensemble.origin == Origin("uni", unit="tile")
    assert origin.unstated(ensemble.origin) == ["tile size", "resolution"]
    score_bag(ensemble, with_origin(make_bags(), 3, tile_px=512)[3])
    again = train_run(quick(), make_bags(), write_labels(tmp_path), old)
    assert again.skipped


def test_load_run__missing_models_are_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in ("fold0_seed1", "fold1_seed0"):
        (copy / "models" / f"{name}.safetensors").unlink()
    names = r"fold0_seed1\.safetensors, fold1_seed0\.safetensors"
    with pytest.raises(InputError, match=f"lacks 2 of 4 models: {names}"):
        load_run(copy)
    labels = write_labels(tmp_path)
    assert not train_run(quick(), make_bags(), labels, copy).skipped
    for name in (f"fold{f}_seed{s}.safetensors" for f in (0, 1) for s in (0, 1)):
        assert (copy / "models" / name).read_bytes() == (run / "models" / name).read_bytes()
    assert train_run(quick(), make_bags(), labels, copy).skipped


def test_load_run__exchanged_model_is_found(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    models = copy / "models"
    shutil.copy(models / "fold0_seed1.safetensors", models / "fold0_seed0.safetensors")
    said = r"other files than were trained: models/fold0_seed0\.safetensors \(SHA-256 \w{12}…, rec"
    with pytest.raises(WeightsError, match=said):
        load_run(copy)
    with pytest.raises(WeightsError, match=said):
        train_run(quick(), make_bags(), write_labels(tmp_path), copy)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "groups.csv"
    path.write_text(text)
    return path


def test_known__new_scan_of_a_patient_is_judged_by_models_that_never_saw_the_patient(
    run: Path, tmp_path: Path
) -> None:
    ensemble = load_run(run)
    path = table(tmp_path, "Patient ID;slide_id\np1;rescan.svs\np99;fresh\np1;s02\n")
    known = ensemble.known.with_table(path, ["rescan", "fresh", "else"])
    assert known.folds("rescan") == (ensemble.known.tested["s02"], "out-of-fold (patient)")
    assert len(ensemble.known.tested["s02"]) == 1
    assert known.folds("s02") == (ensemble.known.tested["s02"], "out-of-fold")
    assert known.folds("fresh") == (frozenset(), "new")
    assert [name for name in ("rescan", "fresh", "else") if known.lacks(name)] == ["else"]
    told = dataclasses.replace(ensemble, known=known)
    bag = dataclasses.replace(make_bags()[2], slide_id="rescan")
    blind, seeing = score_bag(told, bag), score_bag(ensemble, bag)
    assert (blind.basis, blind.n_models) == ("out-of-fold (patient)", 2)
    assert (seeing.basis, seeing.n_models) == ("new", 4)
    np.testing.assert_allclose(blind.p_C, score_bag(ensemble, make_bags()[2]).p_C)


def test_known__patients_told_afterwards_count_for_a_run_without_groups(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    rows = [f"s{i:02d},{i % 2}" for i in range(12)]
    labels.write_text("slide_id,label\n" + "\n".join(rows) + "\n")
    train_run(quick(), make_bags(), labels, tmp_path / "run")
    known = load_run(tmp_path / "run").known
    assert not known.grouped
    held = {fold: [s for s, folds in known.tested.items() if fold in folds] for fold in (0, 1)}
    a, b, c = held[0][0], held[0][1], held[1][0]
    path = table(tmp_path, f"slide_id,group\n{a},p\n{b},p\nnew1,p\n{c},q\n{held[0][2]},q\nnew2,q\n")
    told = known.with_table(path, ["new1", "new2"])
    assert told.folds("new1") == (frozenset({0}), "out-of-fold (patient)")
    assert told.folds("new2") == (frozenset(), "training (patient)")
    assert told.folds(c) == (frozenset(), "training (patient)")  # its patient is in both folds
    assert known.folds(c) == (frozenset({1}), "out-of-fold")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,group\ns02,p5\n", "s02 is of patient 'p5', in the RUN also of 'p1'"),
        ("slide_id,group\nx,p5\nx.svs,p6\n", "x is of patient 'p6', in the table also of 'p5'"),
        ("slide_id,group\nx,NA\n", "line 2: slide x has no patient"),
        ("slide_id,label\nx,1\n", "no column group"),
    ],
)
def test_known__contradictions_are_refused(run: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LabelError, match=said):
        load_run(run).known.with_table(table(tmp_path, text), ["x"])


def write_h5(path: Path, **attributes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((2, 3), np.float32)
        file["coords"] = np.zeros((2, 2), np.int64)
        for key, value in attributes.items():
            file["features" if key == "encoder" else "coords"].attrs[key] = value


def test_load_bags__attributes_of_trident_tell_encoder_tile_size_and_resolution(
    tmp_path: Path,
) -> None:
    write_h5(tmp_path / "a.h5", encoder="uni_v1", patch_size=256, target_magnification=20)
    (bag,) = load_bags(tmp_path, None, "tile")
    assert bag.origin == Origin("uni_v1", unit="tile", tile_px=256, mpp=0.5)
    with pytest.raises(InputError, match=r"a\.h5: its encoder is uni_v1, not conch"):
        load_bags(tmp_path, "conch", "tile")
    with pytest.raises(InputError, match=r"a\.h5: its unit is tile, not cell"):
        load_bags(tmp_path, None, "cell")


def test_load_bags__attributes_of_stamp_tell_encoder_tile_size_and_resolution(
    tmp_path: Path,
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["feats"] = np.ones((2, 3), np.float16)
        file["coords"] = np.zeros((2, 2), np.float32)
        told = {"extractor": "ctranspath", "unit": "um", "tile_size_um": 256.0, "tile_size_px": 224}
        file.attrs.update(told)
    (bag,) = load_bags(tmp_path, None, "tile")
    assert bag.origin == Origin("ctranspath", unit="tile", tile_px=224, mpp=256 / 224)


def test_load_bags__attributes_that_are_no_numbers_are_not_known(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", encoder="None", patch_size="big", target_magnification=0)
    assert load_bags(tmp_path, None, "tile")[0].origin == Origin(unit="tile")


def test_train_run__bag_of_one_number_is_noted(tmp_path: Path) -> None:
    bags = make_bags()
    bags[3] = dataclasses.replace(bags[3], features_ND=np.zeros((4, 3), np.float32))
    found = train_run(quick(), bags, write_labels(tmp_path), tmp_path / "run").metrics
    assert "1 slide(s) hold one number everywhere, as failed ones do: s03" in found["notes"]


def test_load_bags__encoder_is_told_by_the_folder_or_the_user(tmp_path: Path) -> None:
    (tmp_path / "features_uni").mkdir()
    torch.save(torch.ones(2, 3), tmp_path / "features_uni" / "a.pt")
    assert load_bags(tmp_path, None, "tile")[0].origin == Origin("uni", unit="tile")
    torch.save(torch.ones(2, 3), tmp_path / "b.pt")
    assert load_bags(tmp_path / "b.pt", None, "cell")[0].origin == Origin("", unit="cell")
    assert load_bags(tmp_path / "b.pt", "timm/x", "cell")[0].encoder == "timm.x"


def test_pt_origin__record_travels_in_the_file_and_torch_reads_the_tensor_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.pt"
    torch.save(torch.arange(6.0).reshape(2, 3), path)
    foreign.add_to_pt(path, TILES)
    assert torch.equal(torch.load(path, weights_only=True), torch.arange(6.0).reshape(2, 3))
    assert load_bags(path, None, "tile")[0].origin == TILES
    with pytest.raises(InputError, match=r"a\.pt: its encoder is uni, not conch"):
        load_bags(path, "conch", "tile")


@pytest.mark.parametrize(
    ("value", "shown"), [(1e30, "1e+30"), (-1e30, "1e+30"), (1.01e6, "1.01e+06")]
)
def test_load_bags__features_too_large_to_multiply_are_refused(
    tmp_path: Path, value: float, shown: str
) -> None:
    write_h5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = np.array([[0, value, 1]], np.float32)
    with pytest.raises(InputError) as error:
        load_bags(tmp_path, None, "tile")
    assert error.value.message == (
        f"1 slide(s) have features beyond ±1e+06 (up to {shown}), which float32 cannot multiply: b."
    )


def test_load_bags__largest_features_of_half_precision_are_fine(tmp_path: Path) -> None:
    assert float(np.finfo(np.float16).max) < LARGEST
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.array([[-65504, 65504]], np.float16)
    assert load_bags(tmp_path, None, "tile")[0].features_ND.tolist() == [[-65504, 65504]]


def test_find_bags__slides_in_another_format_only_are_not_left_out(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5")
    torch.save(torch.ones(2, 3), tmp_path / "a.pt")
    assert [bag.slide_id for bag in load_bags(tmp_path, None, "tile")] == ["a"]
    torch.save(torch.ones(2, 3), tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"1 slide\(s\) as \.h5, and 1 as \.pt only: b"):
        load_bags(tmp_path, None, "tile")


@pytest.mark.parametrize("name", ["splits.csv", "models/decisions.json", "models/manifest.json"])
def test_load_run__what_was_cut_is_not_scored_with(run: Path, tmp_path: Path, name: str) -> None:
    # A shorter splits.csv is a table, too: its slides would be scored by models that saw them.
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: data.rindex(b"\n", 0, -1)])
    with pytest.raises(WeightsError, match=rf"holds other files.*{name}"):
        load_run(copy)


def test_train_run__lost_metrics_are_made_again_a_lost_config_is_said(
    run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    wanted = (copy / "metrics.json").read_bytes()
    for cut in (b"", wanted[:40]):
        (copy / "metrics.json").write_bytes(cut)
        assert not train_run(quick(), make_bags(), write_labels(tmp_path), copy).skipped
        assert (copy / "metrics.json").read_bytes() == wanted
    (copy / "config.toml").unlink()
    with pytest.raises(ConfigMismatchError, match=r"its config\.toml is gone or damaged"):
        train_run(quick(), make_bags(), write_labels(tmp_path), copy)


@pytest.mark.parametrize("word", ["encoder", "extractor", "encoder_name", "model_name"])
@pytest.mark.parametrize("at_file", [True, False])
def test_load_bags__an_encoder_is_read_wherever_an_h5_file_names_it(
    tmp_path: Path, word: str, at_file: bool
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((2, 3), np.float32)
        (file if at_file else file["features"]).attrs[word] = "virchow"
    assert load_bags(tmp_path, None, "tile")[0].encoder == "virchow"
