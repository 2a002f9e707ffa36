"""Packages of others that read slides: missing, too old, broken, and what each is asked for."""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cytofm_cli.errors import MissingPackageError, SlideError
from cytofm_cli.registry import readers
from cytofm_cli.slides.open import open_slide
from cytofm_cli.slides.packages import Package, load_first
from cytofm_cli.slides.readers.fastslide import _choose
from cytofm_cli.testing.samples.scanners import half, write_kfb, write_tmap
from cytofm_cli.testing.samples.slides import draw
from cytofm_cli.units import Box, Size


def package(folder: Path, name: str, version: str, code: str = "") -> Package:
    """Write a package with its record, and describe it as a reader does."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return Package(module=name, project=name, at_least="1.10", install=f"pip install {name}")


@pytest.mark.parametrize(
    ("version", "told"),
    [("1.9.7", "1.9.7 is too old, 1.10 is needed"), ("1.10", None), ("2", None)],
)
def test_package__too_old_is_told(tmp_path, monkeypatch, version, told) -> None:
    name = f"slides_old_{version.replace('.', '_')}"
    wanted = package(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    if told is None:
        assert wanted.load().__name__ == name
    else:
        with pytest.raises(MissingPackageError, match=told) as caught:
            wanted.load()
        assert caught.value.hint == f"pip install --upgrade {name}"


def test_package__library_that_does_not_load_is_told(tmp_path, monkeypatch) -> None:
    code = "raise OSError('libx.so.8: cannot open shared object file')"
    broken = package(tmp_path, "slides_broken", "2.0", code)
    broken = replace(broken, module="slides_broken.inner")  # importing the parent fails already
    missing = Package(module="slides_none", project="none", at_least="1", install="get none")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"slides_broken 2\.0 cannot be loaded \(libx\.so\.8: cannot open shared object file\)"
    with pytest.raises(MissingPackageError, match=said):
        broken.load()
    with pytest.raises(MissingPackageError, match=f"none is not installed; {said}") as caught:
        load_first((missing, broken))
    assert caught.value.hint == "pip install --force-reinstall slides_broken"


@pytest.mark.parametrize(
    ("suffix", "module", "hint"),
    [
        (".kfb", "kfbslide", "pip install 'cytofm[kfb]'"),
        (".tmap", "tmapslide", "pip install 'cytofm[tmap]'"),
        (".isyntax", "isyntax", "pip install 'cytofm[isyntax]'"),
    ],
)
def test_missing_package__names_the_format_and_the_extra(
    tmp_path, monkeypatch, suffix, module, hint
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"a{suffix}"
    {".kfb": write_kfb, ".tmap": write_tmap}.get(
        suffix, lambda p, _: p.write_bytes(b"<DataObject")
    )(path, draw(Size(256, 256)))
    with pytest.raises(SlideError, match=f"a{suffix}: is a slide in .* needs {module}") as caught:
        open_slide(str(path))
    assert caught.value.hint == hint
    assert caught.value.exit_code == 3


def test_missing_packages__are_no_news_for_other_files(tmp_path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(SlideError) as caught:
        open_slide(str(tmp_path / "a.tif"))
    assert not any(word in caught.value.message for word in ("kfb", "sdpc", "isyntax", "czi"))


@pytest.fixture
def pixels() -> np.ndarray:
    return draw(Size(700, 500))


@pytest.mark.parametrize(
    ("name", "write", "module"), [("kfb", write_kfb, "kfbslide"), ("tmap", write_tmap, "tmapslide")]
)
def test_kfb_and_tmap__facts_and_pixels(tmp_path, pixels, name, write, module) -> None:
    pytest.importorskip(module)
    path = tmp_path / f"a.{name}"
    write(path, pixels)
    with open_slide(str(path)) as slide:
        info = slide.info
        assert (info.reader, info.mpp, info.objective) == (name, pytest.approx(0.25), 40)
        assert [tuple(level.size_px) for level in info.levels] == [
            (700, 500),
            (350, 250),
            (175, 125),
        ]
        for level, by in enumerate((1, 2, 4)):
            width, height = info.levels[level].size_px
            got = slide.read(level, Box(11, 7, width - 11, height - 7))
            wanted = half(pixels, by)[7:, 11:]
            assert np.abs(got.astype(int) - wanted).mean() < 4  # JPEG of noise
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SlideError), open_slide(str(path)) as slide:
        slide.read(0, Box(0, 0, 700, 500))


@pytest.mark.parametrize(
    ("name", "write", "module"), [("kfb", write_kfb, "kfbslide"), ("tmap", write_tmap, "tmapslide")]
)
def test_kfb_and_tmap__damaged_tile_is_refused_and_the_rest_reads(
    tmp_path, pixels, name, write, module
) -> None:
    pytest.importorskip(module)
    path = tmp_path / f"a.{name}"
    write(path, pixels)
    whole = path.read_bytes()
    tiles = [each.start() for each in re.finditer(b"\xff\xd8\xff", whole)]
    second = tiles[-(6 + 2 + 1) + 1]  # of 6, 2 and 1 tiles in the levels
    path.write_bytes(whole[: second + 3000] + bytes(900) + whole[second + 3900 :])
    with open_slide(str(path)) as slide:
        slide.read(0, Box(0, 0, 256, 500))
        with pytest.raises(SlideError, match="damaged JPEG tile at column 1, row 0 of level 0"):
            slide.read(0, Box(200, 10, 100, 100))
        slide.read(0, Box(512, 0, 188, 500))


def test_tmap__resolution_that_contradicts_the_objective_is_not_used(tmp_path, pixels) -> None:
    pytest.importorskip("tmapslide")
    write_tmap(tmp_path / "a.tmap", pixels, um=0.0688)
    with open_slide(str(tmp_path / "a.tmap")) as slide:
        assert (slide.info.mpp, slide.info.objective) == (None, 40)
        assert "contradicts its objective" in slide.info.notes[0]


class StandIn:
    """A slide with the interface of sdpc-for-python, of 200 x 100 px and half of that."""

    def __init__(self, path: str) -> None:
        self.path, self.asked = path, []
        self.level_dimensions = ((200, 100), (100, 50))
        self.level_downsamples = (1.0, 2.0)
        head = SimpleNamespace(ruler=0.26, rate=40, sliceFormat=4)
        contents = SimpleNamespace(picHead=SimpleNamespace(contents=head))
        self.sdpc = SimpleNamespace(contents=contents)

    def read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        scale = self.level_downsamples[level]
        x, y = (int(place / scale) for place in corner)
        w, h = self.level_dimensions[level]
        scene = np.arange(w * h * 3, dtype=np.uint32).reshape(h, w, 3).astype(np.uint8)
        return scene[y : y + size[1], x : x + size[0]]

    def close(self) -> None:
        self.path = ""


def test_sdpc__is_read_in_level_pixels_and_checked_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opensdpc", None)
    monkeypatch.setitem(sys.modules, "sdpc", SimpleNamespace(Sdpc=StandIn, __spec__=object()))
    path = tmp_path / "a.sdpc"
    path.write_bytes(struct.pack("<2s16xIq", b"SQ", 120, 400).ljust(400, b"\0"))
    with open_slide(str(path)) as slide:
        facts = slide.info
        assert (facts.format, facts.mpp, facts.objective, facts.codec) == (
            "sqray",
            0.26,
            40,
            "hevc",
        )
        scene = np.arange(100 * 50 * 3, dtype=np.uint32).reshape(50, 100, 3).astype(np.uint8)
        np.testing.assert_array_equal(slide.read(1, Box(33, 21, 60, 20)), scene[21:41, 33:93])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SlideError, match="is truncated: 300 of 400 bytes are there"):
        open_slide(str(path))
    path.write_bytes(b"II*\0" + bytes(200))
    with pytest.raises(SlideError, match="name of a slide in Sqray SDPC, but is a TIFF file"):
        open_slide(str(path))
    monkeypatch.setitem(sys.modules, "sdpc", None)
    path.write_bytes(struct.pack("<2s16xIq", b"SQ", 120, 400).ljust(400, b"\0"))
    said = "opensdpc is not installed; sdpc-for-python is not installed"
    with pytest.raises(SlideError, match=said) as caught:
        open_slide(str(path))
    assert caught.value.hint == "pip install --no-deps opensdpc"


class Isyntax:
    """A slide with the interface of pyisyntax, whose levels are read in their own pixels."""

    tile_width = tile_height = 256
    level_dimensions = ((600, 400), (300, 200))
    mpp_x = mpp_y = 0.25
    closed = False

    @classmethod
    def open(cls, path: str) -> Isyntax:
        assert Path(path).is_file()
        return cls()

    def read_icc_profile(self) -> None:
        return None

    def read_region(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        rgba = np.full((height, width, 4), 255, np.uint8)
        rgba[..., 0], rgba[..., 1], rgba[..., 2] = level, x % 256, y % 256
        rgba[0, 0, 3] = 0
        return rgba

    def close(self) -> None:
        self.closed = True


def test_isyntax__transparent_pixels_are_white(tmp_path, monkeypatch) -> None:
    stand_in = SimpleNamespace(ISyntax=Isyntax, __spec__=object())
    monkeypatch.setitem(sys.modules, "isyntax", stand_in)
    (tmp_path / "a.isyntax").write_bytes(b'<DataObject ObjectType="DPUfsImport">')
    with open_slide(str(tmp_path / "a.isyntax")) as slide:
        assert [tuple(level.size_px) for level in slide.info.levels] == [(600, 400), (300, 200)]
        assert (slide.info.mpp, slide.info.levels[0].native_tile_px) == (0.25, (256, 256))
        got = slide.read(1, Box(30, 20, 4, 2))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 3].tolist() == [1, 30, 20]


def picture(name: str, size: tuple[int, int], um: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, dimensions=size, mpp=(um, um))


def test_fastslide__finest_picture_that_is_no_overview_is_the_slide() -> None:
    listed = [
        picture("Overview", (16000, 7600), 2.7),
        picture("macro 1", (99000, 99000), 0.27),
        picture("scan", (90000, 90000), 1.1),
        picture("40x_01", (12000, 12000), 0.17),
        picture("40x_02", (12500, 12700), 0.17),
    ]
    chosen, note = _choose("a.vsi", listed, "OLYMPUS-VSI")
    assert chosen.name == "40x_02"
    assert note == "Of 5 pictures in the file, '40x_02' is read."
    with pytest.raises(SlideError, match="holds only the overview or label"):
        _choose("a.vsi", listed[:2], "OLYMPUS-VSI")
    with pytest.raises(SlideError, match="has 5 scenes"):
        _choose("a.czi", listed, "CZI")


def test_readers_of_packages__are_asked_about_their_own_files_only() -> None:
    names = ("czi", "fastslide", "isyntax", "kfb", "ngff", "sdpc", "tmap", "wsidicom")
    plugins = {name: readers.find(name) for name in names}
    assert all(plugin.only for plugin in plugins.values())
    assert {name for name, plugin in plugins.items() if plugin.extra is None} == {"ngff", "sdpc"}


@pytest.mark.needs_shared("data/wsi_extra")
def test_real_vsi__is_refused_by_name_never_read_as_its_overview(shared) -> None:
    with pytest.raises(SlideError) as caught:
        open_slide(str(shared / "wsi_extra" / "vsi-ets-test-jpg2k.vsi"))
    has = "16-bit samples" in caught.value.message
    assert has or "_vsi-ets-test-jpg2k_/stack1/frame_t_0.ets" in caught.value.message
    with pytest.raises(SlideError, match=r"its folder _vsi-without-its-ets_ .* is not beside it"):
        open_slide(str(shared / "wsi_extra" / "vsi-without-its-ets.vsi"))
