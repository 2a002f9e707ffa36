"""Bags from files of other tools, tables of labels, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cytofm_cli.errors import InputError, LabelError
from cytofm_cli.mil.bag import Bag, fingerprint
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.cache import bag_file
from cytofm_cli.mil.labels import build_cohort, read_labels
from cytofm_cli.words import named


def write_h5(path: Path, features: np.ndarray, key: str = "features", coords: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = features
        if coords:
            file["coords"] = np.arange(2 * len(features)).reshape(-1, 2)


def bags_of(*ids: str, width: int = 3) -> list[Bag]:
    return [Bag(i, np.full((2, width), n, np.float32)) for n, i in enumerate(ids)]


def test_load_bags__clam_folder_of_h5_read_as_written(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    write_h5(tmp_path / "h5_files" / "b.h5", features + 1)
    write_h5(tmp_path / "h5_files" / "a.h5", features)
    first, second = load_bags(tmp_path, None, "tile")
    assert (first.slide_id, second.slide_id) == ("a", "b")
    np.testing.assert_array_equal(first.features_ND, features)
    np.testing.assert_array_equal(first.xy_px0, np.arange(8).reshape(-1, 2))


def test_load_bags__trident_folder_needs_a_choice_between_encoders(tmp_path: Path) -> None:
    write_h5(tmp_path / "features_uni" / "a.h5", np.ones((2, 3), np.float32))
    write_h5(tmp_path / "features_r50" / "a.h5", np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="several encoders"):
        load_bags(tmp_path, None, "tile")
    assert load_bags(tmp_path, "r50", "tile")[0].features_ND.shape == (2, 4)


def test_load_bags__stamp_coordinates_in_um_are_not_taken_for_pixels(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", np.ones((2, 3), np.float16), key="feats")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["unit"] = "um"
    assert load_bags(tmp_path, None, "tile")[0].xy_px0 is None


def test_load_bags__pt_tensor_of_half_precision(tmp_path: Path) -> None:
    values = torch.randn(6, 3).half()
    torch.save(values, tmp_path / "s.pt")
    (bag,) = load_bags(tmp_path, None, "tile")
    assert bag.features_ND.dtype == np.float16  # cast when it is used, not before
    np.testing.assert_array_equal(bag.features_ND, values.numpy())


def test_load_bags__mapped_bags_hold_the_same_and_travel_as_a_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, dtype, n in (("a", np.float16, 3), ("b", np.float32, 500), ("c", np.float16, 1)):
        write_h5(tmp_path / f"{name}.h5", rng.normal(size=(n, 7)).astype(dtype))
    plain = load_bags(tmp_path, None, "tile")
    with bag_file(tmp_path / "run") as cache:
        mapped = load_bags(tmp_path, None, "tile", cache)
        assert len(pickle.dumps(mapped)) < 1500
        for bags in (mapped, pickle.loads(pickle.dumps(mapped))):
            for one, other in zip(plain, bags, strict=True):
                assert isinstance(other.features_ND, np.memmap)
                assert one.features_ND.dtype == other.features_ND.dtype
                np.testing.assert_array_equal(one.features_ND, other.features_ND)
        assert fingerprint(plain) == fingerprint(mapped)
        assert [p.suffix for p in tmp_path.iterdir() if p.name.startswith(".")] == [".bags"]
    assert not list(tmp_path.glob(".*"))


def test_bag_file__lies_in_the_cache_folder_and_tidies_after_a_killed_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYTOFM_CACHE_DIR", str(tmp_path / "scratch"))
    with bag_file(tmp_path / "run") as cache:
        assert cache.parent == tmp_path / "scratch"
        cache.parent.mkdir()
        mine = cache.name
    dead = cache.with_name(mine.replace(f"-{os.getpid()}.", "-999999999."))
    other_host = cache.with_name(mine.replace("-", "-elsewhere-", 1))
    for path in (dead, other_host):
        path.touch()
    with bag_file(tmp_path / "run"):
        assert [p.name for p in (tmp_path / "scratch").iterdir()] == [other_host.name]


def test_load_bags__pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Trap(), tmp_path / "s.pt")
    with pytest.raises(InputError, match=r"s\.pt") as error:
        load_bags(tmp_path, None, "tile")
    assert "weights_only" not in error.value.one_line()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x80\x02X\xff", b"G", b"J\x01", b"PK\x03\x04"])
def test_load_bags__garbage_named_pt_is_named(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "s.pt").write_bytes(junk)
    with pytest.raises(InputError, match=r"s\.pt: not a readable file of tensors"):
        load_bags(tmp_path, None, "tile")


def test_load_bags__h5_of_an_unexpected_shape_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("features")
    with pytest.raises(InputError, match=r"a\.h5: `features` is a group"):
        load_bags(tmp_path, None, "tile")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((2, 3), np.float32)
        file["coords"] = np.arange(4)
    with pytest.raises(InputError, match=r"a\.h5: 2 features but coordinates.*\(4,\)"):
        load_bags(tmp_path, None, "tile")


def test_load_bags__folder_above_trident_jobs(tmp_path: Path) -> None:
    small, large = (tmp_path / f"{mag}x_256px_0px_overlap" for mag in (40, 20))
    write_h5(small / "features_uni" / "a.h5", np.ones((2, 3), np.float32))
    write_h5(small / "patches" / "a_patches.h5", np.ones((2, 9), np.float32))
    for encoder in (None, "uni"):
        assert load_bags(tmp_path, encoder, "tile")[0].features_ND.shape == (2, 3)
    write_h5(large / "features_uni" / "a.h5", np.ones((2, 3), np.float32))
    with pytest.raises(InputError, match=r"20x_256px_0px_overlap/features_uni, 40x_"):
        load_bags(tmp_path, "uni", "tile")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((2, 3), np.nan, np.float32), "1 slide.* NaN or infinite.*b"),
        (np.zeros((0, 3), np.float32), "1 slide.*empty bag.*b"),
        (np.zeros((2, 4), np.float32), "do not fit.*a is 3, b is 4"),
        (np.zeros(3, np.float32), "expected numbers"),
        (np.full((2, 3), np.inf, np.float16), "NaN or infinite"),
    ],
)
def test_load_bags__bad_bag_is_named(tmp_path: Path, bad: np.ndarray, message: str) -> None:
    write_h5(tmp_path / "a.h5", np.ones((2, 3), np.float32))
    write_h5(tmp_path / "b.h5", bad, coords=False)
    with pytest.raises(InputError, match=message):
        load_bags(tmp_path, None, "tile")


def test_load_bags__text_file_named_h5_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no <slide>\.zarr"):
        load_bags(tmp_path, None, "tile")
    (tmp_path / "x.h5").write_text("not hdf5")
    with pytest.raises(InputError, match="not a readable HDF5"):
        load_bags(tmp_path, None, "tile")
    with pytest.raises(InputError, match="no such folder"):
        load_bags(tmp_path / "missing", None, "tile")


def test_fingerprint__changes_with_one_value_and_with_a_name() -> None:
    bags = bags_of("a", "b")
    changed = [bags[0], Bag("b", bags[1].features_ND + np.float32(1e-6))]
    renamed = [bags[0], Bag("c", bags[1].features_ND)]
    assert len({fingerprint(bags), fingerprint(changed), fingerprint(renamed)}) == 3


def test_named__shows_three_and_counts_the_rest() -> None:
    assert named(["d", "a", "c", "b", "e"]) == "a, b, c and 2 more"


def labels_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    return path


def test_read_labels__byte_order_mark_semicolons_and_spaces(tmp_path: Path) -> None:
    path = labels_file(tmp_path, "\ufeffslide_id; label ;group\ns1;0;p1\ns2 ; 1;p1\n")
    table = read_labels(path)
    assert table.slide_ids == ("s1", "s2")
    assert table.labels == ("0", "1")
    assert table.groups == ("p1", "p1")
    assert table.group_column == "group"


def test_read_labels__slide_is_its_own_group_without_the_column(tmp_path: Path) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,label\na,0\nb,1\n"))
    assert table.groups == ("a", "b")
    assert table.group_column is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,labels\na,1\n", "no column label"),
        ("", "is empty"),
        ("slide_id,label\n", "no rows"),
        ("slide_id,label\na,1\na,0\n", "1 slide.s. come twice: a"),
        ("slide_id,label\na,1,x\n", "line 2"),
        ("slide_id,label\na\n", "line 2"),
        ("slide_id,label\n,1\n", "line 2: empty slide_id"),
        ("slide_id,label,group\na,1,\n", "no group: a"),
        ("slide_id,label,split\na,1,dev\n", "split 'dev'"),
        ("slide_id,label,group,split\na,1,p,train\nb,0,p,test\n", "group 'p' is in two splits"),
    ],
)
def test_read_labels__bad_table_says_what_and_where(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(labels_file(tmp_path, text))


def test_read_labels__not_text_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"slide_id,label\n\x81,1\n")
    with pytest.raises(LabelError, match="UTF-8"):
        read_labels(path)
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_build_cohort__unmatched_slides_are_named_and_counted(tmp_path: Path) -> None:
    rows = "".join(f"s{i},{i % 2}\n" for i in range(6))
    table = read_labels(labels_file(tmp_path, f"slide_id,label\n{rows}"))
    bags = bags_of("s0", "s1", "other")
    with pytest.raises(LabelError, match=r"4 labelled .*s2, s3, s4 and 1 more; 1 bag.*other") as e:
        build_cohort(bags, table)
    assert "--allow-missing" in (e.value.hint or "")
    cohort = build_cohort(bags, table, allow_missing=True)
    assert cohort.slide_ids == ["s0", "s1"]
    assert cohort.y_N.tolist() == [0, 1]


def test_build_cohort__slides_named_by_their_files(tmp_path: Path) -> None:
    text = "PATIENT,FILENAME,Label\np1,scans/a.svs,0\np2,b.h5,1\n"
    cohort = build_cohort(bags_of("a", "b"), read_labels(labels_file(tmp_path, text)))
    assert cohort.slide_ids == ["a", "b"]
    assert cohort.y_N.tolist() == [0, 1]
    assert cohort.groups == ("p1", "p2")
    assert (cohort.label_column, cohort.group_column) == ("Label", "PATIENT")
    doubled = read_labels(labels_file(tmp_path, "slide_id,label\na.svs,0\na,1\nb,1\n"))
    with pytest.raises(LabelError, match=r"'a\.svs' and 'a' are one slide, a"):
        build_cohort(bags_of("a", "b"), doubled)


def test_build_cohort__lost_leading_zeros_are_the_hint(tmp_path: Path) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,label\n1,0\n2,1\n"))
    with pytest.raises(LabelError) as error:
        build_cohort(bags_of("001", "002"), table)
    assert "leading zeros" in (error.value.hint or "")


def test_build_cohort__nothing_in_common_is_an_error_even_when_missing_is_allowed(
    tmp_path: Path,
) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,label\na,0\nb,1\n"))
    with pytest.raises(LabelError, match="2 labelled"):
        build_cohort(bags_of("x", "y"), table, allow_missing=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\na,1\nb,1\n", "same label"),
        ("slide_id,label,group\na,1,p\nb,0,p\n", "one group"),
        ("slide_id,label\na,1\nb,\n", "1 bag.s. have no label: b"),
    ],
)
def test_build_cohort__unusable_labels(tmp_path: Path, text: str, message: str) -> None:
    table = read_labels(labels_file(tmp_path, text))
    with pytest.raises(LabelError, match=message):
        build_cohort(bags_of("a", "b"), table)


@pytest.mark.parametrize(
    "column",
    "group Group patient patient_id PATIENT case case_id Subject patient-id PatientID".split(),
)
def test_read_labels__patients_by_the_columns_of_other_tools(tmp_path: Path, column: str) -> None:
    for name in (column, column.replace("_", " ")):
        text = f"slide_id,label,{name}\na,0,p\nb,1,p\nc,1,q\n"
        table = read_labels(labels_file(tmp_path, text))
        assert table.groups == ("p", "p", "q")
        assert table.group_column == name


def test_read_labels__two_columns_of_patients_must_agree(tmp_path: Path) -> None:
    rows = "slide_id,label,case_id,patient\na,0,c1,p1\nb,1,c2,{}\nc,1,c3,p3\n"
    assert read_labels(labels_file(tmp_path, rows.format("p2"))).group_column == "patient"
    path = labels_file(tmp_path, rows.format("p1"))
    with pytest.raises(LabelError, match="columns patient and case_id group the") as e:
        read_labels(path)
    assert "--group patient or --group case_id" in (e.value.hint or "")
    assert read_labels(path, group_column="Case-ID").groups == ("c1", "c2", "c3")
    with pytest.raises(LabelError, match="no column donor"):
        read_labels(path, group_column="donor")


def test_read_labels__patient_in_two_spellings_is_one(tmp_path: Path) -> None:
    text = "slide_id,label,patient\na,0,P1\nb,1,p1\nc,1,7.0\nd,0,7\n"
    table = read_labels(labels_file(tmp_path, text))
    assert table.groups == ("P1", "P1", "7.0", "7.0")
    assert len(table.notes) == 2
    with pytest.raises(LabelError, match=r"2 slide\(s\) have no patient: b, c"):
        read_labels(labels_file(tmp_path, "slide_id,label,patient\na,0,p\nb,1,NA\nc,1,\n"))


def test_read_labels__label_by_another_name_if_only_one_could_be_meant(tmp_path: Path) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,Diagnosis\na,0\nb,1\n"))
    assert (table.label_column, table.labels) == ("Diagnosis", ("0", "1"))
    path = labels_file(tmp_path, "slide_id,diagnosis,class\na,0,1\n")
    with pytest.raises(LabelError, match="no column label; class and diagnosis could be meant"):
        read_labels(path)
    assert read_labels(path, label_column="Class").labels == ("1",)


@pytest.mark.parametrize("word", ["", "NA", "nan", "NaN", "N/A", "null", "#N/A", " na "])
def test_read_labels__na_is_no_class(tmp_path: Path, word: str) -> None:
    text = f"slide_id,label\na,neg\nb,pos\nc,{word}\n"
    table = read_labels(labels_file(tmp_path, text))
    assert table.labels == ("neg", "pos", "")
    with pytest.raises(LabelError, match=r"1 bag\(s\) have no label: c"):
        build_cohort(bags_of("a", "b", "c"), table)
    cohort = build_cohort(bags_of("a", "b", "c"), table, allow_missing=True)
    assert cohort.classes == ("neg", "pos")
    assert cohort.notes == ("left out: 1 bag(s) have no label: c",)


def test_read_labels__none_is_a_class_the_negative_one(tmp_path: Path) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,label\na,None\nb,HPV\n"))
    cohort = build_cohort(bags_of("a", "b"), table)
    assert cohort.classes == ("None", "HPV")
    assert cohort.positive == "HPV"


def test_build_cohort__positive_class_of_two_is_chosen(tmp_path: Path) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,label\na,Normal\nb,Abnormal\n"))
    bags = bags_of("a", "b")
    assert build_cohort(bags, table).classes == ("Normal", "Abnormal")
    assert build_cohort(bags, table, positive="normal").classes == ("Abnormal", "Normal")
    with pytest.raises(LabelError, match="no slide has class 'tumour'") as error:
        build_cohort(bags, table, positive="tumour")
    assert "Normal, Abnormal" in (error.value.hint or "")
    with pytest.raises(LabelError, match="--classes puts 'Abnormal' last"):
        build_cohort(bags, table, classes=("normal", "abnormal"), positive="normal")
    more = read_labels(labels_file(tmp_path, "slide_id,label\na,x\nb,y\nc,z\n"))
    with pytest.raises(LabelError, match=r"there are 3 classes \(x, y, z\)"):
        build_cohort(bags_of("a", "b", "c"), more, positive="x")


def test_build_cohort__given_class_order_is_kept(tmp_path: Path) -> None:
    table = read_labels(labels_file(tmp_path, "slide_id,label\na,benign\nb,malign\n"))
    cohort = build_cohort(bags_of("a", "b"), table, classes=("malign", "benign"))
    assert cohort.y_N.tolist() == [1, 0]
    with pytest.raises(LabelError, match="does not name: malign"):
        build_cohort(bags_of("a", "b"), table, classes=("benign", "other"))
