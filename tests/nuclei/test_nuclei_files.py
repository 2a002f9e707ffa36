"""Which file of nuclei is of which slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.nuclei.files import match_files
from cytofm_cli.slide_files import slide_of

IDS = ["a", "b", "c.1"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "slide"),
    [
        ("a", "a"),
        ("a.svs", "a"),
        ("c.1", "c.1"),
        ("c.1.ome.tiff", "c.1"),
        ("slides/b.mrxs", "b"),
        (r"D:\slides\b.ndpi", "b"),
        ("b.scn - image 2", "b"),
        ("a_detections", "a"),
        ("a.svs Detections", "a"),
        ("aa", None),
        ("c", None),
        ("a - copy", None),
    ],
)
def test_slide_of__names_of_slides_files_and_pictures(name, slide):
    assert slide_of(name, IDS) == slide


def test_folder__is_matched_by_name_and_the_rest_is_named(tmp_path):
    touch(tmp_path, "a.geojson", "b.svs.csv", "d.geojson", "readme.md", ".a.csv")
    found = match_files(tmp_path, IDS)
    assert found.of_slide == {"a": tmp_path / "a.geojson", "b": tmp_path / "b.svs.csv"}
    assert found.unmatched == [str(tmp_path / "d.geojson")]


def test_folder__two_files_for_a_slide_are_refused_by_name(tmp_path):
    touch(tmp_path, "a.geojson", "a.csv")
    with pytest.raises(UsageError, match=r"slide a: a\.csv and a\.geojson"):
        match_files(tmp_path, IDS)
    found = match_files(tmp_path / "{slide_id}.csv", IDS)
    assert found.of_slide == {"a": tmp_path / "a.csv"}


def test_pattern__by_field_and_by_star(tmp_path):
    for slide in ("a", "b", "z"):
        (tmp_path / slide).mkdir()
        touch(tmp_path / slide, f"{slide}.geojson", "cells.csv")
    found = match_files(tmp_path / "{slide_id}" / "cells.csv", IDS)
    assert found.of_slide == {i: tmp_path / i / "cells.csv" for i in "ab"}
    assert found.unmatched == [str(tmp_path / "z" / "cells.csv")]
    found = match_files(tmp_path / "*" / "*.geojson", IDS)
    assert found.of_slide == {i: tmp_path / i / f"{i}.geojson" for i in "ab"}
    with pytest.raises(InputError, match="no such file") as refused:
        match_files(tmp_path / "{name}.csv", IDS)
    assert "{slide_id}" in str(refused.value.hint)


def test_one_file__is_of_one_slide(tmp_path):
    (tmp_path / "n.geojson").touch()
    (tmp_path / "p.csv").write_text("x,y\n1,2\n")
    for name in ("n.geojson", "p.csv"):
        assert match_files(tmp_path / name, ["a"]).of_slide == {"a": tmp_path / name}
        with pytest.raises(UsageError, match=f"{name}: does not say which slide .* 3 slides"):
            match_files(tmp_path / name, IDS)


def test_one_table__with_a_slide_column_serves_those_it_names(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("Image\tX\tY\na.svs\t1\t2\nb\t1\t2\nz.svs\t3\t4\n")
    found = match_files(path, IDS)
    assert found.of_slide == {"a": path, "b": path}
    assert found.unmatched == [f"z.svs (in {path})"]
    with pytest.raises(UsageError, match=r"is of 'a\.svs', 'b', 'z\.svs' and of none"):
        match_files(path, ["x"])
