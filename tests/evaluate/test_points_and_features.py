"""From tables of points to features: who is where, and which pixels are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.errors import InputError, LabelError, UsageError
from cytofm_cli.evaluate import features
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.points import Points, make_tasks, read_points


def table(folder: Path, text: str, name: str = "points.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


class Middle:
    """An encoder that gives the middle pixel and the side of what it sees."""

    spec = EncoderSpec(name="middle", dim=4, input_px=None)

    def prepare(self, pixels_BHWC):
        return pixels_BHWC

    def encode(self, batch):
        side = batch.shape[1]
        middle = batch[:, side // 2, side // 2].astype(np.float32)
        return np.concatenate([middle, np.full((len(batch), 1), side, np.float32)], 1)


def test_read_points__matches_ids_and_file_names_and_sorts_by_slide(tmp_path: Path) -> None:
    path = table(tmp_path, "image;x;y;label;group\nb;5;6;q;g2\nd/a.jpg;1;2.5;p;g1\nc.jpg;0;0;p;g1")
    points, unknown = read_points(path, {"a", "b"})
    assert points.slides == ("a", "b")
    assert points.xy_px0.tolist() == [[1, 2.5], [5, 6]]
    assert points.labels == ("p", "q")
    assert points.groups == ("g1", "g2")
    assert unknown == ["c.jpg"]


def test_read_points__groups_come_from_the_table_or_are_the_slides(tmp_path: Path) -> None:
    path = table(tmp_path, "slide_id,x,y,label\na,1,2,p\nb,3,4,q\n")
    groups = table(tmp_path, "image,group,more\na.jpg,g1,x\nb.jpg,g1,y\n", "groups.csv")
    assert read_points(path, {"a", "b"})[0].groups == ("a", "b")
    assert read_points(path, {"a", "b"}, groups)[0].groups == ("g1", "g1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,x,y\na,1,2\n", "label"),
        ("image,x,y,label\n", "no rows"),
        ("image,x,y,label\na,one,2,p\n", "'one'"),
        ("image,x,y,label\na,nan,2,p\n", "'nan'"),
        ("image,x,y,label\na,1,2,\n", "empty label"),
        ("image,x,y,label\na,1,2\n", "line 2"),
        ("image,x,y,label\nz.jpg,1,2,p\nw,1,2,p\n", r"2 slide\(s\).*w, z.jpg"),
    ],
)
def test_read_points__refuses_what_it_cannot_use(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LabelError, match=said):
        read_points(table(tmp_path, text), {"a"})


def test_read_points__slide_without_group_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "slide_id,x,y,label\na,1,2,p\nb,3,4,q\n")
    groups = table(tmp_path, "slide_id,group\na,g1\n", "groups.csv")
    with pytest.raises(LabelError, match=r"no group: b"):
        read_points(path, {"a", "b"}, groups)


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ("a,1,2,q,g1", "slide a at x 1, y 2 has two labels: 'p' and 'q'"),
        ("a,1.0,2,p,g2", "slide a at x 1, y 2 has two groups: 'g1' and 'g2'"),
    ],
)
def test_read_points__a_cell_of_two_patients_or_classes_is_refused(
    tmp_path: Path, again: str, said: str
) -> None:
    path = table(tmp_path, f"slide_id,x,y,label,group\na,1,2,p,g1\nb,1,2,q,g2\n{again}\n")
    with pytest.raises(LabelError, match=said):
        read_points(path, {"a", "b"})


def test_read_points__a_point_that_comes_again_is_taken_once_and_counted(tmp_path: Path) -> None:
    rows = "a,1,2,p,g1\na,1,2, P ,g1\na,1,3,q,g1\na,1,2,p,g1\nb,1,2,q,g2\n"
    points, _ = read_points(table(tmp_path, f"slide_id,x,y,label,group\n{rows}"), {"a", "b"})
    assert points.xy_px0.tolist() == [[1, 2], [1, 3], [1, 2]]
    assert points.labels == ("p", "q", "q")
    assert points.notes[-1].endswith("2 point(s) come again and are taken once")


def test_read_points__table_of_excel_in_europe(tmp_path: Path) -> None:
    text = "sep=;\r\nImage;Class;X;Y;Patient ID\r\na.tif;lsil;1,5;2,25;p1\r\nb.tif;LSIL;3;4;P1\r\n"
    path = table(tmp_path, text + "b.tif;LSIL;5,5;6;p1\r\n")
    points, unknown = read_points(path, {"a", "b"})
    assert unknown == []
    assert points.xy_px0.tolist() == [[1.5, 2.25], [3, 4], [5.5, 6]]
    assert points.labels == ("LSIL",) * 3
    assert points.groups == ("p1",) * 3
    said = " ".join(points.notes)
    assert "label 'LSIL' is also written 'lsil'" in said
    assert "group 'p1' is also written 'P1'" in said
    assert "groups are those of column Patient ID" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,x,y,label\na,1,2,NA\n", r"line 2, column label: empty label \('NA'\)"),
        ("image,x,y,label\n\na,1,NA,p\n", r"line 3, column y: no number \('NA'\)"),
        ("image,x,y,label,group\na,1,2,p,NA\n", "no group: a"),
        ("image,x,y,label,case,patient\na,1,2,p,1,2\na,1,2,p,3,2\n", "patient and case group"),
        ("image,x,y,lable\na,1,2,p\n", "no column label"),
    ],
)
def test_read_points__missing_cells_and_columns_by_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(LabelError, match=said):
        read_points(table(tmp_path, text), {"a"})


def test_make_tasks__bethesda_in_other_spellings_and_positive_in_any_case(tmp_path: Path) -> None:
    points = bethesda(tmp_path, "nilm/a Ascus/a hsil/b nilm/b Ascus/b hsil/a")
    labels, abnormal = make_tasks(points, None, None)
    assert labels.classes == ("nilm", "Ascus", "hsil")
    assert abnormal.y_N.tolist() == [0, 1, 1, 0, 1, 1]
    *_, picked = make_tasks(points, None, ["HSIL"])
    assert picked.y_N.tolist() == [0, 0, 1, 0, 0, 1]


def bethesda(tmp_path: Path, rows: str) -> object:
    lines = [f"s{i},1,1,{word.replace('/', ',')}" for i, word in enumerate(rows.split())]
    path = table(tmp_path, "slide_id,x,y,label,group\n" + "\n".join(lines))
    return read_points(path, {f"s{i}" for i in range(len(lines))})[0]


def test_make_tasks__bethesda_presets_and_classes_of_one_group(tmp_path: Path) -> None:
    points = bethesda(tmp_path, "NILM/a HSIL/a LSIL/b NILM/b ASC-US/a ASC-H/b ASC-US/b SCC/a")
    labels, abnormal = make_tasks(points, None, None)
    assert labels.classes == ("NILM", "ASC-US")
    assert labels.left_out == {"HSIL": 1, "LSIL": 1, "ASC-H": 1, "SCC": 1}
    assert labels.rows_N.tolist() == [0, 3, 4, 6]
    assert labels.y_N.tolist() == [0, 0, 1, 1]
    assert abnormal.y_N.tolist() == [0, 1, 1, 0, 1, 1, 1, 1]
    plus, picked = make_tasks(points, ["lsil_plus"], ["ASC-US"])
    assert plus.y_N.tolist() == [0, 1, 1, 0, 0, 1, 0, 1]
    assert picked.y_N.tolist() == [0, 0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("rows", "names", "positive", "said"),
    [
        ("p/a p/b", None, None, "one label"),
        ("p/a q/a", None, None, "one group"),
        ("p/a q/b", None, None, "fewer than two labels"),
        ("p/a q/b", ["abnormal"], None, "Bethesda"),
        ("p/a q/b p/b", None, ["q"], r"1 instance\(s\) are positive, in 1 group"),
        ("p/a q/b", None, ["r"], "no point has class 'r'"),
    ],
)
def test_make_tasks__refuses_what_cannot_be_judged(
    tmp_path: Path, rows: str, names, positive, said: str
) -> None:
    with pytest.raises(LabelError, match=said):
        make_tasks(bethesda(tmp_path, rows), names, positive)
    with pytest.raises(UsageError, match="no task"):
        make_tasks(bethesda(tmp_path, "p/a q/b p/b"), ["what"], None)


def sources(smears, kind: str) -> list[Source]:
    if kind == "slides":
        return [Source(name, str(path)) for name, path in smears.slides.items()]
    return [Source(name, str(smears.stores / f"{name}.zarr")) for name in smears.slides]


@pytest.mark.parametrize("kind", ["slides", "stores"])
def test_cell_features__crops_are_centred_on_the_points(smears, kind: str) -> None:
    found, _ = read_points(smears.points, set(smears.slides), smears.groups)
    where = sources(smears, kind)
    points, unread = features.locate(found, where, mpp=0.25)
    assert unread == 0
    values = features.cell_features(points, where, Middle(), crop_um=8, mpp=0.25)
    assert (values[:, 3] == 32).all()
    blue = np.array(points.labels) == "blue"
    assert ((values[:, 2] > values[:, 0]) == blue).all()
    assert (values[:, 1] < 100).all()  # inside the cell, not on the glass


def test_cell_features__stores_and_slides_give_the_same(smears) -> None:
    found, _ = read_points(smears.points, set(smears.slides), smears.groups)
    one, other = (
        features.cell_features(found, sources(smears, kind), Middle(), crop_um=6, mpp=0.25)
        for kind in ("slides", "stores")
    )
    np.testing.assert_array_equal(one, other)


def test_locate__points_beyond_the_slide_are_refused_by_name(smears, tmp_path: Path) -> None:
    path = table(tmp_path, "slide_id,x,y,label\ns1,10,10,p\ns1,500,10,p\ns1,10,300,p\n")
    found, _ = read_points(path, set(smears.slides))
    with pytest.raises(LabelError, match=r"s1: 2 point\(s\).*x 500, y 10.*384 × 256"):
        features.locate(found, sources(smears, "slides"), mpp=0.25)


def test_label_tiles__takes_the_worst_point_inside(smears, tmp_path: Path) -> None:
    text = "slide_id,x,y,label\ns0,5,5,NILM\ns0,9,9,HSIL\ns0,100,5,ASC-US\ns0,128,127.5,LSIL\n"
    found, _ = read_points(table(tmp_path, text), set(smears.slides))
    store = sources(smears, "stores")
    tiles = features.label_tiles(found, store, rule="worst", positive=None)
    assert dict(zip(map(tuple, tiles.xy_px0.tolist()), tiles.labels, strict=True)) == {
        (0, 0): "HSIL",
        (128, 0): "LSIL",
    }
    tiles = features.label_tiles(found, store, rule="any", positive=["ASC-US"])
    assert tiles.labels == ("ASC-US", "LSIL")
    seen = features.tile_features(tiles, store, Middle())
    assert (seen[:, 3] == 128).all()


def test_label_tiles__labels_without_order_need_a_positive_one(smears) -> None:
    found, _ = read_points(smears.points, set(smears.slides))
    with pytest.raises(LabelError, match="no order"):
        features.label_tiles(found, sources(smears, "stores"), rule="worst", positive=None)
    with pytest.raises(UsageError, match="--positive"):
        features.label_tiles(found, sources(smears, "stores"), rule="any", positive=None)
    with pytest.raises(UsageError, match="needs stores"):
        features.label_tiles(found, sources(smears, "slides"), rule="any", positive=["red"])


def test_check_finite__names_encoder_and_slides() -> None:
    points = Points(("a", "b", "b"), np.zeros((3, 2)), ("p",) * 3, ("g",) * 3)
    values = np.zeros((3, 2))
    values[2, 1] = np.nan
    with pytest.raises(InputError, match=r"encoder x gave NaN .* 1 of 3 .*slides b"):
        features.check_finite(values, points, "x")
