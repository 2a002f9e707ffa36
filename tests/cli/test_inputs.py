"""From words to slides: order, ids, manifests, shards, refusals."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.api import inputs
from cytofm_cli.api.inputs import SlideRef, find_slides, list_slides, slide_id_of, take_shard
from cytofm_cli.errors import InputError, UsageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_slides__folder_is_searched_and_sorted_and_stores_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "a.TIFF", "notes.txt", "deep/c.jpg", ".hidden.svs", "s.zarr/t.png")
    refs = find_slides([str(tmp_path)])
    assert [(ref.slide_id, Path(ref.path).name) for ref in refs] == [
        ("a", "a.TIFF"),
        ("b", "b.svs"),
        ("c", "c.jpg"),
    ]


def test_find_slides__empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no slides found") as caught:
        find_slides([str(tmp_path)])
    assert caught.value.exit_code == 3
    assert ".svs" in str(caught.value.hint)


def test_find_slides__two_slides_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.svs", "two/a.svs")
    with pytest.raises(InputError, match=r"two slides are called 'a'.*one/a\.svs.*two/a\.svs"):
        find_slides([str(tmp_path)])


def test_find_slides__a_path_named_twice_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    monkeypatch.chdir(tmp_path)
    refs = find_slides(["a.svs", str(tmp_path), "./a.svs"])
    assert [ref.slide_id for ref in refs] == ["a", "b"]


def test_list_slides__names_need_not_differ(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.svs", "two/a.svs")
    assert [ref.slide_id for ref in list_slides([str(tmp_path)])] == ["a", "a"]


def test_find_slides__globs_urls_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    monkeypatch.setattr("sys.stdin", io.StringIO("s3://bucket/c.tiff\n\nd e.svs\n"))
    refs = find_slides([f"{tmp_path}/*.svs", "-"])
    assert [ref.slide_id for ref in refs] == ["a", "b", "c", "d e"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb.svs\0c.svs\0"))
    assert [ref.slide_id for ref in find_slides(["-"])] == ["a\nb", "c"]


def test_find_slides__a_file_is_named_by_its_link_not_its_target(tmp_path: Path) -> None:
    touch(tmp_path, "target/0001.svs")
    (tmp_path / "patient7.svs").symlink_to(tmp_path / "target" / "0001.svs")
    assert find_slides([str(tmp_path / "patient7.svs")])[0].slide_id == "patient7"


@pytest.mark.parametrize(
    ("path", "slide_id"),
    [
        ("x/a.b.svs", "a.b"),
        ("a.ome.tif", "a"),
        ("😐.svs", "😐"),
        ("s3://b/k/slide.tiff?versionId=3", "slide"),
        ("case7/", "case7"),
        ("scan.unknown", "scan.unknown"),
        (".svs", ".svs"),
    ],
)
def test_slide_id_of__drops_only_slide_suffixes(path: str, slide_id: str) -> None:
    assert slide_id_of(path) == slide_id


def test_manifest__relative_paths_and_mpp(tmp_path: Path) -> None:
    manifest = tmp_path / "slides.csv"
    manifest.write_text("\ufeffslide_id,path,mpp,label\nq,sub/a.svs,0.5,x\np,/abs/b.svs,,y\n")
    assert find_slides([], manifest) == [
        SlideRef("p", "/abs/b.svs", None),
        SlideRef("q", str(tmp_path / "sub/a.svs"), 0.5),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "slide_id;path;mpp\n001;s1.tif;0,25\n002;s2.tif;NA\n",
        "slide_id, path, mpp\n001, s1.tif, 0.25\n002, s2.tif,\n",
        "Slide ID\tFile\tMPP\r\n001\ts1.tif\t0,25\r\n002\ts2.tif\t\r\n",
        "sep=;\nSLIDE_ID;PATH;MPP\n001;s1.tif;0,25\n\n;;\n002;s2.tif;\n",
    ],
)
def test_manifest__dialects_of_excel_and_by_hand(tmp_path: Path, text: str) -> None:
    manifest = tmp_path / "slides.csv"
    manifest.write_text(text)
    assert find_slides([], manifest) == [
        SlideRef("001", str(tmp_path / "s1.tif"), 0.25),
        SlideRef("002", str(tmp_path / "s2.tif"), None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,file\na,b\n", r"no column slide_id \(found: id, file\)"),
        ("slide_id,pth\na,b\n", "no column path"),
        ("slide_id,path\na,b.svs,0.5\n", "line 2: 3 cells, but the header has 2"),
        ("slide_id,path\n,b.svs\n", "line 2: slide_id and path must not be empty"),
        ("slide_id,path,mpp\na,b.svs,half\n", "line 2, column mpp: 'half' is no number"),
        ("slide_id,path,mpp\na,b.svs,250\n", "line 2: mpp 250 is not between"),
        ("slide_id,path\n../a,b.svs\n", "cannot name a slide"),
        ("slide_id,path\na,b.svs\na,c.svs\n", "two slides are called 'a'"),
    ],
)
def test_manifest__mistakes_are_named_with_their_line(
    tmp_path: Path, text: str, message: str
) -> None:
    manifest = tmp_path / "slides.csv"
    manifest.write_text(text)
    with pytest.raises(InputError, match=message):
        find_slides([], manifest)


@given(names=st.sets(st.text(min_size=1), max_size=40), parts=st.integers(1, 9))
def test_take_shard__parts_are_disjoint_and_complete(names: set[str], parts: int) -> None:
    shards = [take_shard(sorted(names), f"{i}/{parts}", key=str) for i in range(parts)]
    assert sorted(item for shard in shards for item in shard) == sorted(names)


@given(names=st.sets(st.text(min_size=1), min_size=1, max_size=40), seen=st.integers(0, 39))
def test_take_shard__does_not_depend_on_what_else_is_there(names: set[str], seen: int) -> None:
    # Array tasks list a folder of stores while other tasks still write into it.
    some = sorted(names)[: seen + 1]
    for part in range(4):
        whole = take_shard(sorted(names), f"{part}/4", key=str)
        assert take_shard(some, f"{part}/4", key=str) == [name for name in whole if name in some]


def test_take_shard__many_slides_are_spread_evenly() -> None:
    names = [f"slide_{number:04}" for number in range(2000)]
    sizes = [len(take_shard(names, f"{part}/8", key=str)) for part in range(8)]
    assert min(sizes) > 200


@pytest.mark.parametrize("shard", ["3/3", "a/b", "1", "-1/2", "0/0"])
def test_take_shard__impossible_parts_are_refused(shard: str) -> None:
    with pytest.raises(UsageError, match="must be i/n"):
        take_shard(["a"], shard, key=str)


def test_are_stores__mixed_inputs_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "stores/x.zarr/zarr.json")
    slide, store = str(tmp_path / "a.svs"), str(tmp_path / "stores" / "x.zarr")
    assert not inputs.are_stores([str(tmp_path)])
    assert inputs.are_stores([store])
    with pytest.raises(UsageError, match="stores and slides"):
        inputs.are_stores([store, slide])
