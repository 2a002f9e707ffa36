"""What cannot be regions of a slide is refused in one line that says what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.nuclei.detectors.imported import ImportedConfig, ImportedNuclei
from cytofm_cli.regions.base import Place
from cytofm_cli.regions.config import RegionChoice, TileRegions
from cytofm_cli.regions.files import RegionFile, region_files
from cytofm_cli.regions.read import read_regions
from cytofm_cli.regions.safe_xml import read_xml
from cytofm_cli.regions.select import open_regions
from cytofm_cli.units import Size

from .test_formats import PLACE, SQUARE, aperio, aperio_region, asap, asap_file, feature, geojson

BOWTIE = [(0, 0), (200, 200), (200, 0), (0, 200)]
BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;">]>
<ASAP_Annotations><Annotations>&c;</Annotations></ASAP_Annotations>"""
REMOTE = """<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><Annotations/>"""


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.xml", BOMB, "DOCTYPE"),
        ("a.xml", REMOTE, "DOCTYPE"),
        ("a.xml", "<Annotations><Annotation>", "no XML"),
        ("a.xml", "", "no XML"),
        ("a.xml", "<Other/>", "<Other> is the XML of no program that is known"),
        ("a.xml", asap_file(), "holds no regions"),
        ("a.xml", asap_file(asap([("1", "2"), ("x", "3"), ("4", "5")])), "annotation 0"),
        ("a.xml", aperio(aperio_region(SQUARE[:2])), "layer 2, region 1: its vertices are no"),
        ("a.xml", aperio(aperio_region(SQUARE), mpp="0.5"), "was drawn at 0.5 µm/px, and the"),
        ("a.geojson", geojson(), "holds no regions"),
        ("a.geojson", "{", "not valid JSON"),
        (
            "a.geojson",
            geojson(feature(SQUARE), feature(BOWTIE)),
            "feature 1 ('Tumor'): its outline",
        ),
        ("a.geojson", geojson(feature([(1, 1), (2, 2), (3, 3)])), "encloses no area"),
        ("a.geojson", geojson(feature([(1, 1), (1, 1), (2, 2)])), "feature 0: its coordinates"),
        ("a.geojson", geojson(feature([(0, 0), (float("nan"), 1), (2, 2)])), "feature 0"),
        ("a.geojson", geojson(feature(SQUARE), unit="microns"), "says that it is in micrometres"),
        ("a.geojson", geojson(feature(SQUARE), unit="feet"), "is in 'feet'"),
        ("a.txt", "1,2", "cannot be read from .txt"),
    ],
)
def test_bad_file__is_refused_by_name(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_regions(path, PLACE, lambda _: None)
    assert told in refused.value.message and str(path) in refused.value.message
    assert "\n" not in refused.value.one_line()


@pytest.mark.parametrize(
    ("name", "content", "told", "todo"),
    [
        ("a.geojson.gz", gzip.compress(b"{}", mtime=0), "cannot be read from .gz", "gunzip"),
        ("a.zip", b"PK\x03\x04", "cannot be read from .zip", "unpack it"),
        ("a.qpdata", b"\xac\xed\0\x05w", "cannot be read from .qpdata", "Export objects"),
        ("a.geojson", gzip.compress(b"{}", mtime=0), "is compressed by gzip", "gunzip"),
        ("a.geojson", b"PK\x03\x04", "is a zip file", "unpack it"),
        ("a.geojson", b"\xac\xed\0\x05w", "is a data file of QuPath's own", "Export objects"),
        ("a.geojson", "[]".encode("utf-16"), "is text in UTF-16", "UTF-8"),
        ("a.geojson", b" \n", "is empty", "Export objects"),
    ],
)
def test_what_qupath_makes_beside_geojson__is_named(
    tmp_path: Path, name: str, content: bytes, told: str, todo: str
) -> None:
    """The same for regions and for nuclei."""
    path = tmp_path / name
    path.write_bytes(content)
    nuclei = ImportedNuclei(ImportedConfig(nuclei=path))
    for read in (
        lambda: read_regions(path, PLACE, lambda _: None),
        lambda: nuclei.read(0.25, None, lambda _: None),
    ):
        with pytest.raises(InputError) as refused:
            read()
        assert str(path) in refused.value.message and told in refused.value.message
        assert todo in str(refused.value.hint)


def test_xml__has_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<a>" * 100 + "</a>" * 100)
    with pytest.raises(InputError, match="more than 64 deep"):
        read_xml(path)
    path.write_text(f"<a>{'x' * 1000}</a>")
    with pytest.raises(InputError, match="at most 999 are read"):
        read_xml(path, most_bytes=999)
    assert read_xml(path).tag == "a"


def test_small_loop_of_a_hand__is_taken(tmp_path: Path) -> None:
    # The line crosses itself near a corner: a loop of 8 px² on 20 000.
    drawn = [(100, 200), (300, 200), (300, 300), (104, 300), (100, 304), (100, 300), (104, 304)]
    (tmp_path / "a.geojson").write_text(geojson(feature(drawn)))
    assert read_regions(tmp_path / "a.geojson", PLACE, lambda _: None).counts == {"Tumor": 1}


def test_outside__says_how_many_and_where(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    far = [(x + 5000, y) for x, y in SQUARE]
    path.write_text(geojson(feature(SQUARE), feature(far)))
    with pytest.raises(InputError, match=r"1 of 2 regions lie outside the slide s") as refused:
        read_regions(path, PLACE, lambda _: None)
    assert "feature 1" in refused.value.message and "x is to be 0 to 1000" in refused.value.message
    over = [(x + 800, y) for x, y in SQUARE]  # half of it lies on the slide
    path.write_text(geojson(feature(over)))
    assert read_regions(path, PLACE, lambda _: None).counts == {"Tumor": 1}


def test_micrometres__are_recognised_by_their_reach(tmp_path: Path) -> None:
    # The slide is 1000 x 800 px, 250 x 200 µm: regions that end just there are in micrometres.
    path = tmp_path / "a.geojson"
    path.write_text(geojson(feature([(10, 10), (60, 10), (60, 60)]),
                            feature([(200, 150), (245, 150), (245, 195)])))  # fmt: skip
    with pytest.raises(InputError, match="covers just the slide's size in micrometres") as refused:
        read_regions(path, PLACE, lambda _: None)
    assert "--region-unit um" in str(refused.value.hint)
    point = np.array([[960.0, 620.0]])  # 240, 155 µm
    in_um = read_regions(path, PLACE, lambda _: None, unit="um")
    in_px = read_regions(path, PLACE, lambda _: None, unit="px")
    assert in_um.inside(["Tumor"], point).all() and not in_px.inside(["Tumor"], point).any()


def test_micrometres__are_recognised_by_the_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(geojson(*(feature([(a, 50), (a + 20, 50), (a + 20, 70), (a, 70)])
                              for a in (100, 130, 160))))  # fmt: skip
    config, file = RegionChoice(regions=path), RegionFile(path, "0")
    mask = np.zeros((80, 100), bool)
    mask[15:32, 35:80] = True  # where the regions lie as micrometres: 400..720, 200..280 px
    with pytest.raises(InputError, match="beside the cells as pixels, and on them as micrometres"):
        open_regions(file, config, PLACE, lambda _: None, foreground_HW=mask)
    for other in (~mask, np.zeros_like(mask), np.ones_like(mask)):
        wanted = open_regions(file, config, PLACE, lambda _: None, foreground_HW=other)
        assert wanted.include == ("Tumor",)


@pytest.mark.parametrize("shape", [(80, 90), (100, 80), (81, 90)])
def test_mask_of_another_shape__is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.ones(shape, np.uint8)).save(path)
    with pytest.raises(InputError, match="is not the shape of the slide"):
        read_regions(path, PLACE, lambda _: None)


def test_mask__colour_and_empty_and_torn_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    for picture, told in (
        (np.ones((80, 100, 3), np.uint8), "3 channels; a mask has one"),
        (np.zeros((80, 100), np.uint8), "holds no regions"),
    ):
        Image.fromarray(picture).save(path)
        with pytest.raises(InputError, match=told):
            read_regions(path, PLACE, lambda _: None)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="not a readable image"):
        read_regions(path, PLACE, lambda _: None)


def test_mask_of_a_rounded_level__fits(tmp_path: Path) -> None:
    Image.fromarray(np.ones((7, 9), np.uint8)).save(tmp_path / "m.png")
    odd = Place(slide_id="s", size_px0=Size(1001, 801), mpp=0.25)  # 9.0 x 7.2 at 1/111
    assert read_regions(tmp_path / "m.png", odd, lambda _: None).classes == ("1",)


def test_class_that_is_not_there__is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(geojson(feature(SQUARE, "Tumor"), feature(SQUARE, "Stroma")))
    for name in ("region_include", "region_exclude", "region_label"):
        config = RegionChoice(regions=path, **{name: ("tumour",)})
        with pytest.raises(InputError, match="its classes are Stroma, Tumor") as refused:
            open_regions(RegionFile(path, "0"), config, PLACE, lambda _: None)
        assert refused.value.hint == "did you mean 'Tumor'?"
    # In a cohort a slide may lack what is left out elsewhere.
    notes: list[str] = []
    config = RegionChoice(regions=path, region_exclude=("Artefact",))
    wanted = open_regions(RegionFile(path, "0", alone=False), config, PLACE, notes.append)
    assert wanted.exclude == () and "no region of class Artefact" in notes[0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"region_include": ("a",)}, "region_include.*means nothing without regions"),
        ({"regions": Path("r"), "region_include": ("a",), "region_exclude": ("a", "b")}, "'a' are"),
        ({"regions": Path("r"), "region_rule": "fraction>=0"}, "choose centre"),
        ({"regions": Path("r"), "region_rule": "fraction>=1.1"}, "choose centre"),
        ({"regions": Path("r"), "region_rule": "fraction>=1.1.1"}, "choose centre"),
        ({"regions": Path("r"), "region_rule": "middle"}, "choose centre"),
    ],
)
def test_settings__that_cannot_be_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        TileRegions(**settings)


def test_files__one_for_several_slides_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(geojson(feature(SQUARE)))
    config = RegionChoice(regions=path)
    with pytest.raises(UsageError, match="does not say which slide its regions are of"):
        region_files(config, ["a", "b"], lambda _: None)
    assert region_files(config, ["x"], lambda _: None)["x"].path == path
    for source in (tmp_path, tmp_path / "{slide}.geojson", tmp_path / "{slide_id}.geojson"):
        files = region_files(RegionChoice(regions=source), ["a", "b"], lambda _: None)
        assert {name: file.path for name, file in files.items()} == {"a": path}


def test_files__in_a_folder_of_slides_drawings_come_before_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "a.geojson", "b.png", "c.tif"):
        (tmp_path / name).touch()
    told: list[str] = []
    files = region_files(RegionChoice(regions=tmp_path), ["a", "b"], told.append)
    expected = {"a": tmp_path / "a.geojson", "b": tmp_path / "b.png"}
    assert {name: file.path for name, file in files.items()} == expected
    assert told == [f"1 belong to none of the 2 slides: {tmp_path / 'c.tif'}"]
    (tmp_path / "a.xml").touch()
    with pytest.raises(UsageError, match=r"two files are of slide a: a\.geojson and a\.xml"):
        region_files(RegionChoice(regions=tmp_path), ["a"], told.append)
