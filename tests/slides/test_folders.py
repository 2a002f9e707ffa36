"""What a folder holds: each slide once, under one stable name, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import pyvips

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import dicom
from cytofm_cli.slides.folders import find_slides, join_series, slide_id_of
from cytofm_cli.slides.open import open_slide

from .dicom_files import REDUCED, write_dicom, write_slide

NAMES = ("l0.dcm", "l1.dcm", "label.dcm", "macro.dcm")
VMS = (
    "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=part.jpg\nImageFile(1,0)=second.JPG\n"
    "MapFile=map2.jpg\nOptimisationFile=slide.opt\nMacroImage=macro.jpg\n"
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path) -> dict[str, str]:
    """Return slide id → path below the folder."""
    paths = find_slides(str(folder))
    ids = [slide_id_of(path) for path in paths]
    assert len(set(ids)) == len(ids)
    return {i: os.path.relpath(p, folder) for i, p in zip(ids, paths, strict=True)}


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        ("1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"),
        ("A", "B", "C", "D"),
        ("l0.DCM", "l1.Dcm", "LABEL.DCM", "m.dicom"),
    ],
    ids=["dcm", "uids", "bare", "upper"],
)
@pytest.mark.parametrize(
    "beside", [(), ("crc.json", "DICOMDIR", "README", "thumb.jpg", "a.png", ".x.dcm")], ids=str
)
def test_dicom__a_series_is_one_slide_whatever_its_files_are_called(
    tmp_path, names, beside
) -> None:
    write_slide(tmp_path / "in" / "S1", names, series="1.2.3", seed=1)
    touch(tmp_path / "in" / "S1", *beside)
    assert found(tmp_path / "in") == {"S1": "S1"}
    assert slide_id_of(find_slides(str(tmp_path / "in" / "S1"))[0]) == "S1"
    info = open_slide(str(tmp_path / "in" / "S1")).info
    assert (info.size_px0, len(info.levels), info.mpp, info.objective) == ((256, 256), 2, 0.25, 40)


def test_dicom__several_series_in_one_folder_are_several_slides(tmp_path) -> None:
    for n, letter in enumerate("ab"):
        write_slide(tmp_path, tuple(f"{letter}_{i}.dcm" for i in range(4)), series=f"1.{n}", seed=n)
    assert found(tmp_path) == {"a_0": "a_0.dcm", "b_0": "b_0.dcm"}
    both = [open_slide(str(tmp_path / name)).overview(1) for name in ("a_0.dcm", "b_0.dcm")]
    assert np.abs(both[0].astype(int) - both[1]).mean() > 20
    with pytest.raises(SlideError, match="holds 2 DICOM slides") as caught:
        open_slide(str(tmp_path))
    assert "a_0.dcm, b_0.dcm" in str(caught.value.hint)


def test_dicom__beside_a_slide_of_another_format(tmp_path) -> None:
    write_slide(tmp_path, NAMES, series="1.2.3", seed=1)
    touch(tmp_path, "x.svs")
    assert found(tmp_path) == {"l0": "l0.dcm", "x": "x.svs"}


def test_dicom__labels_thumbnails_and_other_objects_are_no_slides(tmp_path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for kind in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        folder = tmp_path / kind
        folder.mkdir()
        write_dicom(folder / "a.dcm", pixels, image_type=("DERIVED", "PRIMARY", kind, "NONE"))
        assert find_slides(str(folder)) == []
        for path in (folder, folder / "a.dcm"):
            with pytest.raises(SlideError, match=f"holds only the {kind.lower()} of a DICOM"):
                open_slide(str(path))
    microscopy_bulk = "1.2.840.10008.5.1.4.1.1.91.1"
    write_dicom(tmp_path / "LABEL" / "ann.dcm", pixels, sop_class=microscopy_bulk)
    assert find_slides(str(tmp_path)) == []


def test_dicom__a_file_that_is_damaged_is_named_not_left_out(tmp_path) -> None:
    (tmp_path / "cut.dcm").write_bytes(b"not DICOM")
    assert found(tmp_path) == {"cut": "cut.dcm"}


@pytest.mark.parametrize("implicit", [False, True])
def test_dicom__header_is_read_past_nested_sequences(tmp_path, implicit) -> None:
    """The series of a referenced object comes first in the file, and is not this one's."""
    path = tmp_path / "a"
    pixels = np.zeros((100, 130, 3), np.uint8)
    write_dicom(path, pixels, series="1.22.333", image_type=REDUCED, implicit=implicit)
    read = dicom.read(str(path))
    assert read == dicom.Instance(path=str(path), series="1.22.333", kind="VOLUME", n_px=13_000)
    whole = path.read_bytes()
    for cut in range(0, 900, 7):
        path.write_bytes(whole[:cut])
        dicom.read(str(path))  # never an error of its own


def test_join_series__files_of_one_slide_are_one(tmp_path) -> None:
    write_slide(tmp_path / "S1", NAMES, series="1.2.3", seed=1)
    files = [str(tmp_path / "S1" / name) for name in NAMES]
    assert join_series([*files, "x.svs"]) == [str(tmp_path / "S1"), "x.svs"]
    assert join_series(files[:1]) == files[:1]
    write_dicom(tmp_path / "S1" / "other.dcm", np.zeros((64, 64, 3), np.uint8), series="7.7")
    both = [*files, str(tmp_path / "S1" / "other.dcm")]
    assert join_series(both) == [files[0], both[-1]]


def test_folder__links_are_followed_once(tmp_path) -> None:
    touch(tmp_path, "store/p1/b.svs", "slides/a.svs", "slides/deep/c.svs")
    slides = tmp_path / "slides"
    (slides / "p1").symlink_to(tmp_path / "store" / "p1")
    (slides / "again").symlink_to(tmp_path / "store" / "p1")
    (slides / "loop").symlink_to(slides)
    (slides / "0deep").symlink_to(slides / "deep")
    (slides / "deep" / "up").symlink_to(tmp_path)
    assert found(slides) == {"a": "a.svs", "c": "deep/c.svs", "b": "again/b.svs"}


def test_folder__a_link_to_a_listed_file_is_no_second_slide(tmp_path) -> None:
    touch(tmp_path, "z.svs", "far/b.svs")
    (tmp_path / "a.svs").symlink_to(tmp_path / "z.svs")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    assert found(tmp_path) == {"z": "z.svs", "b": "far/b.svs", "gone": "gone.svs"}


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", ".AppleDouble", "__MACOSX", "Thumbs", "#recycle", "$RECYCLE.BIN", "done.zarr"],
)
def test_folder__thumbnails_of_file_servers_are_no_slides(tmp_path, folder) -> None:
    touch(tmp_path, "a.svs", f"{folder}/a.svs/thumb.jpg", f"{folder}/x.jpg", "._a.svs")
    assert found(tmp_path) == {"a": "a.svs"}


@pytest.mark.parametrize("suffix", [".vms", ".VMU"])
def test_folder__parts_of_a_slide_are_no_slides(tmp_path, suffix) -> None:
    touch(tmp_path, "part.jpg", "second.JPG", "map2.jpg", "macro.jpg", "field.jpg")
    (tmp_path / f"slide{suffix}").write_text(VMS)
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0001.dat", "m/preview.jpg")
    touch(tmp_path, "deep.dzi", "deep_files/0/0_0.jpg")
    assert found(tmp_path) == {"field": "field.jpg", "m": "m.mrxs", "slide": f"slide{suffix}"}


@pytest.mark.parametrize(
    ("layout", "kind"),
    [("dz", "Deep Zoom"), ("google", "Google Maps"), ("zoomify", "Zoomify")]
    + [(layout, "IIIF") for layout in ("iiif", "iiif3")],
)
def test_folder__tiles_of_zoomable_pictures_are_no_slides(tmp_path, caplog, layout, kind) -> None:
    image = pyvips.Image.black(700, 600, bands=3).cast("uchar")
    image.dzsave(str(tmp_path / "x"), layout=layout, tile_size=128)
    (below,) = tmp_path.glob("x*/")
    touch(below, "a.svs")
    assert found(tmp_path) == {"a": f"{below.name}/a.svs"}
    assert f"{below}: tiles of a zoomable picture ({kind}), no slides: give the" in caplog.text
    below.rename(tmp_path / "renamed")
    assert found(tmp_path / "renamed") == {"a": "a.svs"}


def test_folder__tiles_are_known_by_the_name_of_their_folder(tmp_path) -> None:
    touch(tmp_path, "x_files/0/0_0.jpg", "x_files/1/0_0.jpg", "z/TileGroup0/0-0-0.jpg")
    touch(tmp_path, "y.dzi", "y_files/9/0_0.jpg", "y_files/9/0_1.jpg")
    touch(tmp_path, "case_files/a.jpg", "b_files/0/c.jpg", "b_files/d.jpg")
    assert sorted(found(tmp_path)) == ["a", "c", "d"]


@pytest.mark.parametrize(
    "names",
    [
        ("1.jpg", "2.jpg", "3.jpg"),
        ("0/1.jpg", "1/2.jpg", "2/3.jpg"),  # patients
        ("0/0_0.jpg", "0/0_1.jpg", "1/1_0.jpg", "2/1_1.jpg"),  # fields of a grid
        ("0/0_0.jpg", "1/0_5.jpg", "2/0_6.jpg"),
        ("0/0/0.jpg", "1/1/1.jpg", "2/3/6.jpg"),  # slides of patients
        ("0/0/0.jpg", "1/1/1.jpg", "2/4/3.jpg"),
        ("0/0/0.jpg", "1/1/1.jpg", "3/3/3.jpg"),
        ("0,0,64,64/a.jpg", "64,0,64,64/b.jpg"),
    ],
    ids=str,
)
def test_folder__fields_that_are_called_by_numbers_are_slides(tmp_path, names) -> None:
    touch(tmp_path, *names)
    assert sorted(found(tmp_path).values()) == sorted(names)


def test_folder__data_of_a_mirax_slide_that_is_gone_are_no_slides(tmp_path, caplog) -> None:
    touch(tmp_path, "m/Slidedat.ini", "m/Data0001.dat", "m/preview.jpg", "a.svs")
    assert found(tmp_path) == {"a": "a.svs"}
    assert "m: the folder of a MIRAX slide" in caplog.text


def test_folder__pictures_of_a_slide_beside_it_are_no_slides(tmp_path, caplog) -> None:
    beside = ("a_label.png", "A-Macro.JPG", "a.thumbnail.jpeg", "a.svs.jpg", "a.svs_overview.png")
    touch(tmp_path, "a.svs", *beside, "b_label.png", "label.jpg", "far/a_label.png", "a_2.jpg")
    assert sorted(found(tmp_path)) == ["a", "a_2", "a_label", "b_label", "label"]
    assert caplog.text.count("a picture of the slide a") == len(beside)


def test_folder__a_link_to_itself_is_named_and_the_rest_is_found(tmp_path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "loop.svs").symlink_to(tmp_path / "loop.svs")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert found(tmp_path) == {"a": "a.svs", "loop": "loop.svs"}
    with pytest.raises(SlideError, match=r"loop\.svs"):
        open_slide(str(tmp_path / "loop.svs"))


def test_folder__one_that_cannot_be_listed_is_named(tmp_path, caplog, monkeypatch) -> None:
    touch(tmp_path, "a.svs", "closed/b.svs")
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path) == {"a": "a.svs"}
    assert "closed: cannot be listed (Permission denied): what is in it is left out" in caplog.text


def test_folder__slides_that_nothing_reads_are_named(tmp_path) -> None:
    touch(tmp_path, "a.vsi", "_a_/stack1/frame_t.ets", "b.kfb", "c.sdpc", "d.isyntax", "e.TMAP")
    assert sorted(found(tmp_path)) == ["a", "b", "c", "d", "e"]


def test_folder__a_series_in_two_folders_is_one_slide(tmp_path, caplog) -> None:
    names = ("a.dcm", "b.dcm", "c.dcm", "d.dcm")
    write_slide(tmp_path / "x" / "S1", names, series="1.2.3", seed=1)
    (tmp_path / "x" / "S1" / "low").mkdir()
    (tmp_path / "x" / "S1" / "b.dcm").rename(tmp_path / "x" / "S1" / "low" / "b.dcm")
    write_slide(tmp_path / "backup" / "again", names, series="1.2.4", seed=2)
    write_slide(tmp_path / "x" / "S2", names, series="1.2.4", seed=2)
    assert sorted(found(tmp_path)) == ["S1", "again"]
    assert "belongs to the DICOM slide" in caplog.text


def test_folder__what_belongs_to_an_olympus_slide_is_no_slide(tmp_path, save) -> None:
    touch(tmp_path, "T.VSI", "_T_/stack1/frame_t_0.ETS", "_T_/preview.jpg", "_other_/a.jpg")
    assert sorted(found(tmp_path)) == ["T", "a"]
    shutil.copy(save("t.tif"), tmp_path / "T.VSI")
    with pytest.raises(SlideError, match=r"with its picture in _T_/stack1/frame_t_0\.ETS"):
        open_slide(str(tmp_path / "T.VSI"))


def test_slide_id__of_a_folder_named_from_inside(tmp_path, monkeypatch) -> None:
    (tmp_path / "case7" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "case7")
    assert [slide_id_of(path) for path in (".", "./", "x/..")] == ["case7"] * 3


def test_shells__are_refused_by_name(tmp_path, save) -> None:
    tiff = save("a.tif")
    touch(tmp_path, "_s_/stack1/frame_t.ets", "m/readme")
    for name, told in {
        "s.vsi": r"is a slide in Olympus VSI, with its picture in _s_/stack1/frame_t\.ets, which",
        "s.tif": r"Olympus VSI slide: the slide itself is in _s_",  # renamed
        "alone.vsi": r"Olympus VSI slide: its folder _alone_ .* is not beside it",
        "a.kfb": "has the name of a slide in KFBIO KFB, but is a TIFF file",
        "a.sdpc": "has the name of a slide in Sqray SDPC, but is a TIFF file",
        "a.tmap": "has the name of a slide in UNIC TMAP, but is a TIFF file",
        "a.zvi": "is a Zeiss ZVI slide",
        "a.ndpis": "only lists the channels",
        "m.mrxs": "is a MIRAX slide whose folder m with Slidedat.ini is not beside it",
    }.items():
        shutil.copy(tiff, tmp_path / name)
        with pytest.raises(SlideError, match=told) as caught:
            open_slide(str(tmp_path / name))
        assert caught.value.hint
    (tmp_path / "v.vms").write_text(VMS)
    with pytest.raises(SlideError, match=r"5 of 5 parts are not beside it, part\.jpg among them"):
        open_slide(str(tmp_path / "v.vms"))
    for head, name, suffix in (
        (b'<DataObject ObjectType="DPUfsImport">', "Philips iSyntax", ".isyntax"),
        (b"\xf1\x01\xee\xeeKFB\0", "KFBIO KFB", ".kfb"),
        (b"TMAP07\0\0", "UNIC TMAP", ".tmap"),
    ):
        (tmp_path / "i.svs").write_bytes(head + bytes(200))
        with pytest.raises(SlideError, match=f"is a slide in {name} under another") as caught:
            open_slide(str(tmp_path / "i.svs"))
        assert caught.value.hint == f"call it {suffix}."


@pytest.mark.parametrize("name", ["vsi-ets-test-jpg2k.vsi", "vsi-without-its-ets.vsi"])
@pytest.mark.parametrize("suffix", [".vsi", ".tif"])
@pytest.mark.needs_shared("data/wsi_extra")
def test_shells__real_olympus_files_whatever_their_suffix(shared, tmp_path, name, suffix) -> None:
    shutil.copy(shared / "wsi_extra" / name, tmp_path / f"a{suffix}")
    with pytest.raises(SlideError, match="is the shell of an Olympus VSI slide"):
        open_slide(str(tmp_path / f"a{suffix}"))
