"""Images of cells as tiles: where their pixels go, what surrounds them, how bad ones are told."""

from __future__ import annotations

import io
import lzma
import tarfile
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.errors import InputError
from cytofm_cli.slides.cell_images import ImagePlace, find_images
from cytofm_cli.slides.cell_pixels import decode, size_of
from cytofm_cli.tiles.cell_table import read_cells
from cytofm_cli.tiles.cells import (
    CellImage,
    Sheet,
    corners_of,
    cut,
    fingerprint,
    side_for,
    survey,
)
from cytofm_cli.work.opencv import opencv

RNG = np.random.default_rng(0)


def picture(width: int, height: int, *, rim: int = 0, rim_grey: int = 0) -> np.ndarray:
    """Return noise of 60 to 199 with a rim of one grey level."""
    image = RNG.integers(60, 200, (height, width, 3), dtype=np.uint8)
    if rim:
        image[:rim] = image[-rim:] = image[:, :rim] = image[:, -rim:] = rim_grey
    return image


def png(image: np.ndarray, **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


def sheet(side_px: int = 32, **changes: object) -> Sheet:
    values = {"mpp": 0.25, "tolerance": 0.05, "apart": "cut-out", "fill": 0, **changes}
    return Sheet(side_px=side_px, **values)  # type: ignore[arg-type]


def cell(**changes: object) -> CellImage:
    return CellImage(**{"file": "a.png", "place": None, "mpp": 0.25, **changes})  # type: ignore[arg-type]


def test_cut__pastes_the_image_unscaled_into_the_middle() -> None:
    image = picture(20, 11)
    tile = cut(cell(), png(image), sheet())
    wanted = np.zeros((32, 32, 3), np.uint8)
    wanted[10:21, 6:26] = image
    np.testing.assert_array_equal(tile.image_HWC, wanted)
    assert tile.point == (16.0, 15.5)
    assert (tile.is_cut, tile.converted) == (False, frozenset())
    np.testing.assert_array_equal(tile.mask_HW, wanted.any(2))


def test_cut__background_is_no_tissue_and_the_point_is_the_rows() -> None:
    image = picture(20, 12, rim=3)
    image[3, 3] = 16  # a JPEG's ripple is still background
    tile = cut(cell(xy=(4.5, 9.0)), png(image), sheet(fill=0))
    assert tile.mask_HW.sum() == 14 * 6 - 1
    assert tile.point == (6 + 4.5, 10 + 9.0)
    white = cut(cell(), png(picture(20, 12, rim=3, rim_grey=255)), sheet(fill=255))
    assert white.mask_HW.sum() == 14 * 6
    assert (white.image_HWC[0] == 255).all()


def test_cut__unknown_background_is_the_colour_of_the_border() -> None:
    image = picture(16, 16)
    image[0] = image[-1] = image[:, 0] = image[:, -1] = (200, 180, 160)
    tile = cut(cell(), png(image), sheet(apart="border", fill=255))
    assert tile.image_HWC[0, 0].tolist() == [200, 180, 160]
    assert tile.mask_HW.sum() == 16 * 16


@pytest.mark.parametrize(
    ("xy", "left"), [(None, 14), ((3.0, 30.0), 0), ((58.0, 30.0), 28), ((40.0, 30.0), 24)]
)
def test_cut__larger_image_shows_its_cell(xy: tuple[float, float] | None, left: int) -> None:
    image = picture(60, 60)
    tile = cut(cell(xy=xy), png(image), sheet())
    np.testing.assert_array_equal(tile.image_HWC, image[14:46, left : left + 32])
    assert tile.is_cut
    assert tile.point[0] == min(max((xy or (30.0, 30.0))[0] - left, 1), 31)


def test_cut__finer_image_is_reduced_and_a_coarser_one_refused() -> None:
    image = np.full((40, 24, 3), 120, np.uint8)
    tile = cut(cell(mpp=0.125, xy=(6.0, 30.0)), png(image), sheet())
    assert tile.mask_HW.sum() == 12 * 20
    assert tile.point == (10 + 3.0, 6 + 15.0)
    same = cut(cell(mpp=0.24), png(image[:20]), sheet())  # within the tolerance: as it is
    assert same.mask_HW.sum() == 24 * 20
    with pytest.raises(ValueError, match=r"0\.5 µm/px, coarser than the wanted 0\.25"):
        cut(cell(mpp=0.5), png(image), sheet())
    with pytest.raises(ValueError, match="has 24 x 40 px, and the cell lies at x 25, y 3"):
        cut(cell(xy=(25.0, 3.0)), png(image), sheet())


def test_decode__converts_grey_16_bits_and_transparency_and_says_so() -> None:
    grey = picture(9, 7)[:, :, 0]
    found = decode(png(grey))
    np.testing.assert_array_equal(found.image_HWC, np.repeat(grey[:, :, None], 3, 2))
    assert found.converted == {"grey"}
    wide = RNG.integers(0, 2**16, (7, 9), dtype=np.uint16)
    found = decode(png(wide))
    np.testing.assert_array_equal(found.image_HWC[:, :, 1], wide >> 8)
    assert found.converted == {"grey", "16-bit"}
    rgba = np.dstack([picture(9, 7), np.full((7, 9), 255, np.uint8)])
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 51
    found = decode(png(rgba), beyond=10)
    np.testing.assert_array_equal(found.image_HWC[1:], rgba[1:, :, :3])
    assert found.image_HWC[0, 0].tolist() == [10, 10, 10]
    np.testing.assert_array_equal(found.image_HWC[0, 1], np.rint(0.2 * rgba[0, 1, :3] + 0.8 * 10))
    assert found.converted == {"transparent"}


def test_decode__16_bits_of_colour_keep_the_upper_8() -> None:
    wide = RNG.integers(0, 2**16, (7, 9, 3), dtype=np.uint16)
    found = decode(opencv().imencode(".png", wide)[1].tobytes())
    np.testing.assert_array_equal(found.image_HWC[:, :, ::-1], wide >> 8)
    assert found.converted == {"16-bit"}


def test_decode__opaque_alpha_hides_nothing_and_12_of_16_bits_are_dim() -> None:
    image = picture(9, 7)
    found = decode(png(np.dstack([image, np.full((7, 9), 255, np.uint8)])))
    np.testing.assert_array_equal(found.image_HWC, image)
    assert found.converted == frozenset()
    camera = RNG.integers(0, 2**12, (7, 9), dtype=np.uint16)
    assert decode(png(camera)).converted == {"grey", "16-bit", "dim"}
    assert decode(png(camera << 4)).converted == {"grey", "16-bit"}
    assert decode(png(np.zeros((7, 9), np.uint8))).converted == {"grey"}


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_decode__of_several_frames_the_first_is_taken_and_said(kind: str) -> None:
    frames = [Image.fromarray(np.full((7, 9, 3), value, np.uint8)) for value in (40, 160, 250)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    found = decode(buffer.getvalue())
    assert "frames" in found.converted
    assert np.abs(found.image_HWC.astype(int) - 40).max() <= 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"no image", "is no image that can be read"),
        (png(picture(1, 1)), "has 1 x 1 px, which is no image of one cell"),
        (png(picture(40, 40))[:-900], "cannot be decoded"),
    ],
    ids=["empty", "text", "one pixel", "truncated"],
)
def test_decode__bad_images_are_named(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(data)


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


LINKS = [
    ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
    ("nothing.png", tarfile.LNKTYPE, "/etc/passwd"),
    ("device.png", tarfile.CHRTYPE, ""),
]


def archives(folder: Path, members: dict[str, bytes]) -> tuple[Path, Path]:
    tar, zipped = folder / "cells.tar", folder / "cells.zip"
    with tarfile.open(tar, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind, to in LINKS:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, to
            archive.addfile(link)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, data) in enumerate(members.items()):
            method = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)[number % 2]
            archive.writestr(name, data, method)
    return tar, zipped


def test_find_images__archives_and_folders_hold_the_same_images(tmp_path: Path) -> None:
    members = {f"p{i}/{i}.png": png(picture(8, 8 + i)) for i in range(4)}
    others = {"../out.png": b"x", "/root.png": b"x", "__MACOSX/1.png": b"x", ".a.png": b"x"}
    for name, data in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True)
        (tmp_path / "folder" / name).write_bytes(data)
    places = [*archives(tmp_path, members | others | {"note.txt": b"x"}), tmp_path / "folder"]
    for place in places:
        found = find_images(place)
        assert {name: at.read() for name, at in found.items() if not at.why} == members
        why = {name: at.why for name, at in found.items() if at.why}
        assert (
            set(why)
            == {
                "folder": set(),
                "cells.zip": {"../out.png", "/root.png"},
                "cells.tar": {"../out.png", "/root.png", "link.png", "nothing.png"},
            }[place.name]
        )
        for name in why:
            with pytest.raises(ValueError, match=r"leads out of the archive|is a (symbolic )?link"):
                found[name].read()
    assert not (tmp_path / "out.png").exists()


def test_find_images__hard_link_of_a_tar_is_the_member_it_names(tmp_path: Path) -> None:
    tar, _ = archives(tmp_path, {"a.png": png(picture(8, 8))})
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("p/b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./a.png"
        archive.addfile(link)
    found = find_images(tar)
    assert found["p/b.png"] == found["a.png"]
    assert not found["a.png"].why


def encrypted(zipped: Path) -> None:
    """Mark the first member of a zip as encrypted."""
    content = bytearray(zipped.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    zipped.write_bytes(content)


def test_find_images__encrypted_and_misplaced_members_of_a_zip_are_told(tmp_path: Path) -> None:
    data = png(picture(8, 8))
    _, zipped = archives(tmp_path, {"a.png": data, "b.png": data})
    encrypted(zipped)
    found = find_images(zipped)
    with pytest.raises(ValueError, match="is encrypted"):
        found["a.png"].read()
    assert found["b.png"].read() == data
    beyond = replace(found["b.png"], offset=10**6)
    with pytest.raises(ValueError, match="lies past the end of the archive"):
        beyond.read()


def test_read_cells__of_images_alone_says_what_is_left_out(tmp_path: Path) -> None:
    data = png(picture(8, 8))
    _, zipped = archives(tmp_path, {"a.png": data, "b.png": data})
    encrypted(zipped)
    table = read_cells(zipped, None, mpp=0.25)
    assert [of.file for of in table.of_store["cells"]] == ["b.png"]
    assert table.notes[1].endswith("1 images are left out: a.png is encrypted")
    _, zipped = archives(tmp_path, {"a.png": data})
    encrypted(zipped)
    with pytest.raises(InputError, match=r"none of its 1 images can be read: a\.png is encrypted"):
        read_cells(zipped, None, mpp=0.25)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "c.png").write_bytes(data)
    assert list(read_cells(tmp_path / "deeper" / "..", None, mpp=0.25).of_store) == [tmp_path.name]


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_read_cells__finds_names_with_marks_however_they_are_written(
    tmp_path: Path, stored: str, written: str
) -> None:
    name = "Zelle ü/é.png"
    on_disk, in_table = (unicodedata.normalize(form, name) for form in (stored, written))
    (tmp_path / on_disk).parent.mkdir()
    (tmp_path / on_disk).write_bytes(png(picture(8, 8)))
    _, zipped = archives(tmp_path, {on_disk: png(picture(8, 8))})
    table = tmp_path / "table.csv"
    table.write_text(f"file\n{in_table}\n", encoding="utf-8")
    for images in (None, zipped):
        (cell,) = read_cells(table, images, mpp=0.25).of_store["table"]
        assert cell.file == in_table
        assert cell.read()


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".7z", ".rar", ".tbz2"])
def test_read_cells__packed_archives_are_no_tables(tmp_path: Path, suffix: str) -> None:
    packed = tmp_path / f"cells{suffix}"
    packed.write_bytes(bytes(1024))
    packed.write_bytes(lzma.compress(packed.read_bytes()))
    with pytest.raises(InputError, match="is no uncompressed tar") as refused:
        read_cells(packed, None, mpp=0.25)
    assert "unpack it" in str(refused.value.hint)


def test_find_images__damage_is_seen(tmp_path: Path) -> None:
    data = png(picture(30, 30))
    tar, zipped = archives(tmp_path, {"a.png": data, "b.png": data})
    of_zip = find_images(zipped)
    content = bytearray(zipped.read_bytes())
    at = content.rindex(data)  # of b.png, stored as it is
    content[at + 40] ^= 1
    zipped.write_bytes(content)
    assert of_zip["a.png"].read() == data
    with pytest.raises(ValueError, match="checksum differs"):
        of_zip["b.png"].read()
    of_tar = find_images(tar)
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match="lies past the end of the archive"):
        of_tar["a.png"].read()
    with tarfile.open(tmp_path / "cells.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(InputError, match="is no uncompressed tar"):
        find_images(tmp_path / "cells.tar.gz")


def places(tmp_path: Path, images: list[bytes]) -> list[CellImage]:
    cells = []
    for number, data in enumerate(images):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        cells.append(cell(file=path.name, place=ImagePlace(str(path))))
    return cells


def test_survey__finds_size_and_background(tmp_path: Path) -> None:
    cut_out = places(tmp_path, [jpeg(picture(30, 20 + i, rim=8)) for i in range(5)])
    found = survey([*cut_out, cell()], 0.25, 0.05)
    assert found.largest_px == 30
    assert found.black > 0.9
    assert found.white == 0
    assert survey(cut_out, 0.5, 0.05).largest_px == 15
    plain = survey(places(tmp_path, [png(picture(30, 20)), b""]), 0.25, 0.05)
    assert (plain.black, plain.white) == (0, 0)
    assert [side_for(px) for px in (1, 16, 17, 394)] == [16, 16, 32, 400]


def test_corners_of__fill_a_square_sheet_row_by_row() -> None:
    assert corners_of(5, 32).tolist() == [[0, 0], [32, 0], [64, 0], [0, 32], [32, 32]]
    assert corners_of(1, 32).tolist() == [[0, 0]]
    assert size_of(png(picture(9, 7))) == (9, 7)


def test_fingerprint__knows_names_bytes_points_and_resolution_but_no_folder(
    tmp_path: Path,
) -> None:
    images = [png(picture(8, 8)) for _ in range(2)]
    (tmp_path / "b").mkdir()
    marks = [
        fingerprint(places(tmp_path, images)),
        fingerprint(places(tmp_path / "b", images)),
        fingerprint(places(tmp_path, images[::-1])),
        fingerprint([cell(file="0.png", place=ImagePlace(str(tmp_path / "0.png")), mpp=0.5)]),
    ]
    first = places(tmp_path, images)[:1]
    marks += [fingerprint([replace(of, xy=xy) for of in first]) for xy in (None, (4, 4), (4, 4.5))]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 6
    gone = [cell(file=f"{i}.jpg") for i in range(5)]
    with pytest.raises(InputError, match=r"5 of 5 images cannot be used: 0.jpg is missing; 1.jpg"):
        fingerprint(gone)


def test_cut__another_background_is_painted_over_with_its_rim() -> None:
    image = picture(20, 20, rim=4)
    tile = cut(cell(), png(image), sheet(fill=240, repaint=0))
    wanted = np.full((32, 32, 3), 240, np.uint8)
    wanted[12:20, 12:20] = image[6:14, 6:14]
    np.testing.assert_array_equal(tile.image_HWC, wanted)
    assert tile.mask_HW.sum() == 8 * 8
