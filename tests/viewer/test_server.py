"""What the server answers; whom it refuses: test_guard.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.errors import UsageError
from cytofm_cli.pictures.colours import GREEN, class_colour, colour_map
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store.io import open_store
from cytofm_cli.units import Box
from cytofm_cli.viewer.kept import Kept
from cytofm_cli.viewer.shelf import MOST_OPEN, Shelf
from cytofm_cli.viewer.slide_view import SlideView

from ..nodes import put_node  # noqa: TID252 - of all tests
from ..tiles.stacks import stack_of  # noqa: TID252 - the folders are no packages
from .asking import TOKEN, Asking, stores_of


def test_square__has_the_pixels_of_the_reader(asking: Asking, finished: Path) -> None:
    facts = asking.json("slides/0")
    assert (facts["size_px0"], facts["deepest"]) == ([1600, 1600], 2)
    path = sorted((finished / "slides").iterdir())[0]
    with open_slide(str(path)) as slide:
        for zoom, box, level in [(2, Box(512, 1024, 512, 512), 0), (0, Box(0, 0, 400, 400), 1)]:
            column, row = (box.x // 512, box.y // 512) if zoom else (0, 0)
            shown = asking.picture(f"slides/0/square/{zoom}/{column}/{row}.jpg")
            assert shown.shape == (512, 512, 3)
            assert slide.info.levels[level].downsample == 4**level
            away = shown[: box.h, : box.w].astype(int) - slide.read(level, box)
            assert np.abs(away).mean() < 5  # JPEG again; another place is 20 away


def test_square__that_is_none_is_refused_in_words(asking: Asking) -> None:
    answer = asking.get("slides/0/square/2/4/0.jpg")
    assert (answer.status_code, "no square 4, 0 at zoom 2" in answer.text) == (400, True)
    assert asking.get("slides/9/square/0/0/0.jpg").status_code == 400
    assert asking.get("slides/0/layer/secret/0/0/0.png").status_code == 400
    for query in ("number=7", "number=-1", "number=x", "number=nan", "number=1e99"):
        assert asking.get(f"slides/0/layer/nuclei/0/0/0.png?{query}").status_code == 400


def test_layer_nuclei__lies_on_the_outlines_in_the_colour_of_the_class(
    asking: Asking, finished: Path
) -> None:
    table = open_store(stores_of(finished)[0]).nuclei()
    near = [
        row
        for row, (x, y) in enumerate(table.xy_px0.tolist())
        if 40 < x < 470 and 40 < y < 470 and len(table.polygon(row))
    ]
    assert near
    canvas = asking.picture("slides/0/layer/nuclei/2/0/0.png")
    for row in near:
        for x, y in table.polygon(row).astype(int):
            part = canvas[y - 1 : y + 2, x - 1 : x + 2]
            assert (part[part[..., 3] == 255][:, :3] == class_colour(0)).all(axis=1).any()
    assert asking.picture("slides/0/layer/nuclei/0/0/0.png")[..., 3].any()  # dots from afar


def test_layer_map__has_the_colour_of_the_rank(asking: Asking, finished: Path) -> None:
    store = open_store(stores_of(finished)[0])
    tiles_px0 = store.read("embeddings/handcrafted/tile/xy_px0")
    maps = asking.json("slides/0")["maps"]
    number = next(i for i, m in enumerate(maps) if (m["run"], m["unit"]) == ("model", "tile"))
    whole = [
        asking.picture(f"slides/0/layer/map/0/0/0.png?number={number}&of={column}")
        for column in (0, 1)
    ]
    count = len(tiles_px0)
    for x, y in (tiles_px0 + 128).tolist():
        # Tiles at the edge overlap; the highest lies on top. Row i has attention i, score -i.
        over = np.flatnonzero(((tiles_px0 <= (x, y)) & (tiles_px0 + 256 > (x, y))).all(1))
        tops = [(over.max() + 0.5) / count, 1 - (over.min() + 0.5) / count]
        for canvas, share in zip(whole, tops, strict=True):
            expected = [*colour_map()[round(share * 255)].tolist(), 255]
            assert canvas[y // 4, x // 4].tolist() == expected


def test_layer_foreground__is_the_mask(asking: Asking, finished: Path) -> None:
    store = open_store(stores_of(finished)[0])
    mask_HW = store.read("foreground") != 0
    canvas = asking.picture("slides/0/layer/foreground/0/0/0.png")
    height, width = mask_HW.shape
    rows = ((np.arange(400) + 0.5) * 4 * height / 1600).astype(int)
    columns = ((np.arange(400) + 0.5) * 4 * width / 1600).astype(int)
    assert np.array_equal(canvas[:400, :400, 3] > 0, mask_HW[rows][:, columns])
    assert (canvas[canvas[..., 3] > 0][:, :3] == GREEN).all()
    assert not canvas[400:].any()


def test_top__lists_the_highest_first_and_leaves_out_what_is_unknown(
    work: Path, tmp_path: Path
) -> None:
    import zarr

    store = open_store(stores_of(work)[0])
    area = zarr.open_array(store.path / "nuclei/classical/area_um2", mode="r+")
    area[0] = np.nan
    asking = Asking(stores_of(work), tmp_path / "marks.jsonl")
    titles = [each["title"] for each in asking.json("slides/0")["rankings"]]
    number = titles.index("classical: area, µm²")
    items = asking.json(f"slides/0/top/{number}?count=500")
    known = np.sort(area[:][1:])[::-1]
    assert [item["value"] for item in items] == known[:500].astype(float).tolist()
    xy = store.nuclei_xy_px0()
    best = int(np.nanargmax(area[:]))
    assert [items[0]["x"], items[0]["y"]] == np.round(xy[best].astype(float), 2).tolist()
    lowest = asking.json(f"slides/0/top/{number}?count=1&lowest=1")
    assert lowest[0]["value"] == float(known[-1])
    tile = titles.index("model: attention for the slide's answer")
    last = asking.json(f"slides/0/top/{tile}?count=1")[0]
    assert last["value"] == asking.json(f"slides/0/top/{tile}?count=500")[0]["value"]
    assert asking.get("slides/0/top/99").status_code == 400
    assert asking.get(f"slides/0/top/{number}?count=0").status_code == 400
    asking.close()


def test_crop__is_the_slide_around_the_cell(asking: Asking, finished: Path) -> None:
    facts = asking.json("slides/0")
    assert facts["cell_px0"] == 30 / facts["mpp"]
    crop = asking.picture("slides/0/crop.jpg?x=800&y=700&unit=cell")
    assert crop.shape == (112, 112, 3)
    side = round(facts["cell_px0"])
    path = sorted((finished / "slides").iterdir())[0]
    with open_slide(str(path)) as slide:
        around = slide.read(0, Box(800 - side // 2, 700 - side // 2, side, side))
    small = np.asarray(Image.fromarray(around).resize((112, 112), Image.Resampling.LANCZOS))
    assert np.abs(crop.astype(int) - small).mean() < 4
    for query in ("x=1&y=-5", "x=nan&y=1", "y=3", "x=1e400&y=1"):
        assert asking.get(f"slides/0/crop.jpg?{query}").status_code == 400


def test_mark__snaps_to_the_nucleus_under_the_point(asking: Asking, finished: Path) -> None:
    xy = open_store(stores_of(finished)[0]).nuclei_xy_px0().astype(float)
    x, y = xy[3]
    answer = asking.post("slides/0/mark", {"x": x + 3, "y": y - 2, "key": 5}).json()
    assert answer["mark"] == {"slide_id": "p1_s1", "x": round(x, 2), "y": round(y, 2), "key": 5}
    # The other slide has no nuclei: the point itself.
    answer = asking.post("slides/1/mark", {"x": 17.126, "y": 9, "key": 2}).json()
    assert answer["marks"] == [{"slide_id": "p2_s1", "x": 17.13, "y": 9.0, "key": 2}]
    table = asking.get("marks.csv").text.splitlines()
    assert table == [
        "slide_id,x,y,label", f"p1_s1,{x:.2f},{y:.2f},HSIL", "p2_s1,17.13,9.00,ASC-US",
    ]  # fmt: skip
    assert len(asking.json("slides/1/marks.geojson")["features"]) == 1
    undone = asking.post("undo", {}).json()
    assert (undone["slide"], undone["marks"]) == (1, [])
    assert asking.json("slides/1")["marks"] == []
    assert asking.post("undo", {}).json()["slide"] == 0
    assert asking.post("undo", {}).json() == {"undone": None}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"x": 1, "y": 2}, {"x": 1, "y": 2, "key": 12}, {"x": "a", "y": 2, "key": 1}, [1],
        {"x": None, "y": 2, "key": 1}, {"x": 1e999, "y": 2, "key": 1},
        {"x": 1, "y": 2, "key": "1"}, {"x": 1, "y": 2, "key": 1, "nuclei": 9},
    ],
)  # fmt: skip
def test_mark__nonsense_is_refused_in_words(asking: Asking, body: Any) -> None:
    text = json.dumps(body)
    answer = asking.client.post(f"/{TOKEN}/slides/0/mark", content=text)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert asking.client.post(f"/{TOKEN}/name", content=b"\xff{").status_code == 400


def test_name__is_kept_for_the_key(asking: Asking) -> None:
    assert asking.post("name", {"key": 7, "name": "<b>odd</b>"}).status_code == 200
    names = {each["key"]: each["name"] for each in asking.json("start")["keys"]}
    assert (names[7], names[1]) == ("<b>odd</b>", "NILM")
    assert asking.post("name", {"key": 7, "name": ""}).status_code == 400


def test_slide__that_is_gone_shows_the_thumbnail_and_says_so(work: Path, tmp_path: Path) -> None:
    root = stores_of(work)[1] / "zarr.json"
    text = root.read_text()
    was = open_store(stores_of(work)[1]).slide.path
    put_node(root, text.replace(json.dumps(was)[1:-1], "gone/away.svs"))
    asking = Asking(stores_of(work), tmp_path / "marks.jsonl")
    facts = asking.json("slides/1")
    assert facts["notes"][0].startswith("Only the thumbnail is shown. gone/away.svs: the slide of")
    assert "No nuclei" in facts["notes"][1]
    with_slide = asking.picture("slides/0/square/0/0/0.jpg")
    alone = asking.picture("slides/1/square/2/1/1.jpg")
    assert alone.shape == with_slide.shape == (512, 512, 3)
    assert alone.std() > 3  # enlarged, and not blank
    asking.close()


def test_slide__of_several_focal_planes_says_which_one_is_shown(work: Path, tmp_path: Path) -> None:
    root = stores_of(work)[0] / "zarr.json"
    content = json.loads(root.read_text())
    content["attributes"]["cytofm"]["slide"] |= {"n_focal_planes": 5, "focal_plane": 0}
    put_node(root, content)
    asking = Asking(stores_of(work), tmp_path / "marks.jsonl")
    told = "The slide has 5 focal planes; number 0 is shown."
    assert [told in asking.json(f"slides/{number}")["notes"] for number in (0, 1)] == [True, False]
    asking.close()


def test_store__of_another_version_or_damaged_is_told_and_the_others_are_shown(
    work: Path, tmp_path: Path
) -> None:
    root = stores_of(work)[0] / "zarr.json"
    put_node(root, root.read_text().replace('"schema": 1', '"schema": 99'))
    asking = Asking(stores_of(work), tmp_path / "marks.jsonl")
    answer = asking.get("slides/0")
    assert answer.status_code == 409
    assert "has store schema 99" in answer.json()["error"]
    assert "Hint: update cytofm" in answer.json()["error"]
    assert asking.json("slides/1")["slide_id"] == "p2_s1"
    shutil.rmtree(stores_of(work)[1])
    assert asking.get("slides/0").status_code == 409  # asked again, it is looked at again
    asking.close()


def test_attention__of_embeddings_made_anew_is_left_out_with_a_note(
    work: Path, tmp_path: Path
) -> None:
    store = stores_of(work)[0]
    node = store / "attention" / "model" / "cell" / "zarr.json"
    content = json.loads(node.read_text())
    parents = content["attributes"]["cytofm"]["made_from"]
    content["attributes"]["cytofm"]["made_from"] = dict.fromkeys(parents, "another")
    put_node(node, content)
    asking = Asking([store], tmp_path / "marks.jsonl")
    facts = asking.json("slides/0")
    assert {each["unit"] for each in facts["maps"]} == {"tile"}
    assert any("attention/model/cell is not shown: it is out of date" in n for n in facts["notes"])
    asking.close()


def test_shelf__ten_thousand_slides_are_listed_unopened_and_few_are_open(finished: Path) -> None:
    names = [f"Slide {i:05d}" for i in range(10_000)]
    shelf = Shelf([Path("stores") / f"{name}.zarr" for name in names])
    assert shelf.find("", 9_990, 200) == (10_000, [(i, names[i]) for i in range(9_990, 10_000)])
    assert shelf.find("099 SLIDE", 20, 2) == (120, [(9_900, names[9_900]), (9_901, names[9_901])])
    assert shelf.find("nothing", 0, 5) == (0, [])
    with pytest.raises(UsageError, match="same name"):
        Shelf([Path("a/x.zarr"), Path("b/x.zarr")])


def test_shelf__closes_what_was_not_looked_at_longest_and_nothing_in_use(
    finished: Path, tmp_path: Path
) -> None:
    source = stores_of(finished)[1]
    paths = [tmp_path / f"s{i}.zarr" for i in range(MOST_OPEN + 2)]
    for path in paths:
        shutil.copytree(source, path)
    with Shelf(paths) as shelf, shelf.use(0) as first:
        for number in range(1, len(paths)):
            with shelf.use(number) as view:
                assert view.square(0, 0, 0).shape == (512, 512, 3)
        assert len(shelf._open) == MOST_OPEN
        assert 0 in shelf._open
        assert first.square(1, 0, 0).any()


def test_kept__forgets_what_was_not_asked_for_longest() -> None:
    kept, made = Kept(most_bytes=30), []

    def make(key: str) -> bytes:
        return kept.get(key, lambda: made.append(key) or b"0123456789")

    for key in "abcabd":  # a, b and c fit; d drops c
        make(key)
    assert (made, kept.n_bytes) == (["a", "b", "c", "d"], 30)
    make("a")
    make("c")
    assert made == ["a", "b", "c", "d", "c"]
    assert kept.get("large", lambda: b"x" * 31) == b"x" * 31
    assert kept.n_bytes == 0


def test_twenty_at_once__are_all_answered_and_equal(asking: Asking) -> None:
    from concurrent.futures import ThreadPoolExecutor

    paths = [f"slides/0/square/2/{i % 4}/{i // 5}.jpg" for i in range(10)]
    paths += [f"slides/0/layer/nuclei/2/{i % 4}/{i // 5}.png" for i in range(10)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(asking.get, paths))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert [asking.get(path).content for path in paths] == [a.content for a in answers]


def test_marks__are_set_and_read_at_once_and_none_is_lost(asking: Asking) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def set_and_read(number: int) -> list[int]:
        body = {"x": number, "y": 1, "key": 1 + number % 9, "snap": False}
        answers = [
            asking.post("slides/1/mark", body), asking.get("marks.csv"), asking.get("slides/1"),
            asking.get("slides/1/marks.geojson"), asking.get("start"),
        ]  # fmt: skip
        return [answer.status_code for answer in answers]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(set_and_read, range(24))) == [[200] * 5] * 24
    assert {mark["x"] for mark in asking.json("slides/1")["marks"]} == set(range(24))


def test_planes__are_shown_one_by_one_or_as_the_tiles_have_them(
    stacked: Path, tmp_path: Path
) -> None:
    asking = Asking([stacked], tmp_path / "marks.jsonl")
    facts = asking.json("slides/0")
    assert facts["planes"] == {"n": 3, "um": [0, 1.5, 3], "middle": 1, "tiles": "best"}
    assert not any("focal planes" in note for note in facts["notes"])
    stack, sharpest = stack_of(512, width=512), [0, 1, 2, 0]
    tiled = np.concatenate(
        [stack[plane][:, 128 * i : 128 * (i + 1)] for i, plane in enumerate(sharpest)], axis=1
    )
    expected = {None: tiled, 0: stack[0], 2: stack[2]}
    with SlideView(stacked) as view:
        for plane, pixels in expected.items():
            np.testing.assert_array_equal(view.square(0, 0, 0, plane), pixels)
    for plane in expected:
        query = "" if plane is None else f"?plane={plane}"
        shown = asking.picture(f"slides/0/square/0/0/0.jpg{query}").astype(float)
        away = {other: np.abs(shown - pixels).mean() for other, pixels in expected.items()}
        assert min(away, key=away.__getitem__) == plane
    asking.close()


@pytest.mark.parametrize("word", ["3", "-2", "best", "nan"])
def test_planes__what_is_none_is_refused_in_words(stacked: Path, tmp_path: Path, word: str) -> None:
    asking = Asking([stacked], tmp_path / "marks.jsonl")
    answer = asking.get(f"slides/0/square/0/0/0.jpg?plane={word}")
    assert answer.status_code == 400
    assert "plane" in answer.json()["error"]
    asking.close()
