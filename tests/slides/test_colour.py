"""Colour models and samples: RGB as the file means it, or a refusal by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box

SIDE = 160
CODECS = ["lzw", "zstd", "deflate", None]
TILES = [(64, 64), None]
BOTH = list(itertools.product(CODECS, TILES))


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    """Return (160, 160, 3) uint8 of smooth colours, so that subsampling loses little."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(3 * x), np.cos(2 * y), np.sin(2 * x + 3 * y) ** 2]
    return np.stack([90 + 150 * wave.clip(0, 1) for wave in waves], -1).astype(np.uint8)


def read(path: Path | str) -> np.ndarray:
    slide = open_slide(str(path))
    pixels = slide.read(0, Box(0, 0, *slide.info.size_px0))
    slide.close()
    return pixels


def save(path: Path, pixels: np.ndarray, **options: object) -> str:
    tifffile.imwrite(path, pixels, metadata=None, **options)
    return str(path)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return 8-bit L*a*b* with a and b offset by 128, by LittleCMS."""
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    change = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    values = np.array(ImageCms.applyTransform(Image.fromarray(rgb), change))
    values[..., 1:] += 128  # Pillow keeps a and b signed
    return values


@pytest.mark.parametrize(("codec", "tile"), BOTH)
@pytest.mark.parametrize("kind", ["icclab", "cielab"])
def test_lab__is_converted(tmp_path, rgb, codec, tile, kind) -> None:
    lab = to_lab(rgb)
    if kind == "cielab":
        lab[..., 1:] -= 128
    path = save(tmp_path / "a.tif", lab, photometric=kind, compression=codec, tile=tile)
    np.testing.assert_allclose(read(path).astype(int), rgb, atol=4)


@pytest.mark.parametrize(("codec", "tile"), BOTH)
def test_ycbcr__that_is_not_jpeg_is_converted(tmp_path, rgb, codec, tile) -> None:
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = save(
        tmp_path / "a.tif", ycbcr, photometric="ycbcr", subsampling=(1, 1), compression=codec,
        tile=tile,
    )  # fmt: skip
    np.testing.assert_allclose(read(path).astype(int), rgb, atol=3)


def subsampled(ycbcr: np.ndarray, across: int, down: int) -> np.ndarray:
    """Store blocks of Y with one Cb and one Cr each; return them as a picture of bytes."""
    h, w = (side // step for side, step in zip(ycbcr.shape, (down, across), strict=False))
    blocks = ycbcr.reshape(h, down, w, across, 3).transpose(0, 2, 1, 3, 4)
    luma = blocks[..., 0].reshape(h, w, -1)
    chroma = blocks[..., 1:].mean((2, 3)).round().astype(np.uint8)
    return np.concatenate([luma, chroma], -1)


@pytest.mark.parametrize(("across", "down"), [(2, 2), (2, 1), (1, 2), (4, 2)])
def test_ycbcr__of_fewer_colour_samples_is_unpacked(tmp_path, rgb, across, down) -> None:
    """A strip of blocks written as grey bytes, whose tags are then made to say what they are."""
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    data = subsampled(ycbcr, across, down).reshape(1, -1)
    path = tmp_path / "a.tif"
    extra = [(530, 3, 2, (across, down), True), (262, 3, 1, 6, True)]
    tifffile.imwrite(
        path, data, photometric="minisblack", metadata=None, extratags=extra[:1],
        rowsperstrip=1,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages[0].tags
        for name, value in (
            ("ImageWidth", SIDE), ("ImageLength", SIDE), ("RowsPerStrip", SIDE),
            ("PhotometricInterpretation", 6),
        ):  # fmt: skip
            tags[name].overwrite(value)
        tags["SamplesPerPixel"].overwrite(3)
        tags["BitsPerSample"].overwrite((8, 8, 8))
    np.testing.assert_allclose(read(path).astype(int), rgb, atol=8)


@pytest.mark.parametrize(("codec", "tile"), BOTH)
@pytest.mark.parametrize(("extra", "value"), [("unspecified", 0), ("unspecified", 77)])
def test_extra_sample__without_meaning_is_not_alpha(
    tmp_path, rgb, codec, tile, extra, value
) -> None:
    more = np.full((SIDE, SIDE, 1), value, np.uint8)
    for pixels, kind in ((rgb, "rgb"), (rgb[..., :1], "minisblack")):
        path = save(
            tmp_path / f"{kind}.tif", np.concatenate([pixels, more], -1), photometric=kind,
            extrasamples=[extra], compression=codec, tile=tile, planarconfig="contig",
        )  # fmt: skip
        np.testing.assert_array_equal(read(path), np.broadcast_to(pixels, rgb.shape))


@pytest.mark.parametrize(("codec", "tile"), BOTH)
@pytest.mark.parametrize("alpha", ["assocalpha", "unassalpha"])
def test_alpha__is_laid_on_white(tmp_path, codec, tile, alpha) -> None:
    """Half transparent (100, 50, 0): straight 178, 153, 128; premultiplied it is stored as such."""
    share = 128 / 255
    stored = [100, 50, 0] if alpha == "unassalpha" else [round(v * share) for v in (100, 50, 0)]
    pixels = np.tile(np.array([*stored, 128], np.uint8), (SIDE, SIDE, 1))
    path = save(
        tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[alpha], compression=codec,
        tile=tile,
    )  # fmt: skip
    expected = [v * share + 255 * (1 - share) for v in (100, 50, 0)]
    np.testing.assert_allclose(read(path)[80, 80].astype(float), expected, atol=2)


@pytest.mark.parametrize(("codec", "tile"), BOTH)
def test_planes__of_colour_are_joined(tmp_path, rgb, codec, tile) -> None:
    path = save(
        tmp_path / "a.tif", np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate",
        compression=codec, tile=tile,
    )  # fmt: skip
    np.testing.assert_array_equal(read(path), rgb)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tile", TILES)
def test_grey__white_is_zero_palette_and_one_bit(tmp_path, rgb, codec, tile) -> None:
    grey = rgb[..., 0]
    options = {"compression": codec, "tile": tile}
    path = save(tmp_path / "w.tif", 255 - grey, photometric="miniswhite", **options)
    np.testing.assert_array_equal(read(path), np.repeat(grey[..., None], 3, 2))
    colours = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16) * 257
    path = save(tmp_path / "p.tif", grey, photometric="palette", colormap=colours, **options)
    np.testing.assert_array_equal(read(path), (colours.T // 257)[grey])
    bits = grey > 150
    for kind, pixels in (("minisblack", bits), ("miniswhite", ~bits)):
        path = save(tmp_path / f"{kind}.tif", pixels, photometric=kind, **options)
        np.testing.assert_array_equal(read(path), np.where(bits, 255, 0)[..., None].repeat(3, 2))


@pytest.mark.parametrize(("codec", "tile"), BOTH)
def test_cmyk__is_converted_as_pillow_does_by_every_reader(tmp_path, codec, tile) -> None:
    inks = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    path = save(tmp_path / "a.tif", inks, photometric="separated", compression=codec, tile=tile)
    wanted = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    np.testing.assert_array_equal(read(path), wanted)


def test_signed_grey__negative_is_black_and_told(tmp_path) -> None:
    pixels = np.arange(-128, 128, dtype=np.int16).astype(np.int8).reshape(16, 16)
    for codec in (None, "zstd"):
        path = save(tmp_path / "a.tif", pixels, photometric="minisblack", compression=codec)
        np.testing.assert_array_equal(read(path)[..., 0], np.maximum(pixels, 0))
        assert any("signed" in note for note in open_slide(path).info.notes)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float16", "int16", "uint32"])
@pytest.mark.parametrize("codec", [None, "zstd"])
def test_wide_samples__are_refused_with_what_to_do(tmp_path, rgb, dtype, codec) -> None:
    path = save(tmp_path / "a.tif", rgb.astype(dtype), photometric="rgb", compression=codec)
    with pytest.raises(SlideError, match="samples; only 8-bit ones are read") as caught:
        open_slide(path)
    assert caught.value.hint == "scale it to 8 bits."


def test_wide_png__has_the_message_of_a_wide_tiff(tmp_path, rgb) -> None:
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="has 16-bit samples; only 8-bit") as caught:
        open_slide(str(tmp_path / "a.png"))
    assert caught.value.hint == "scale it to 8 bits."


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        ("PhotometricInterpretation", 10, r"as ITU L\*a\*b\*"),
        ("PhotometricInterpretation", 32845, "as LogLuv"),
        ("PhotometricInterpretation", 77, "unknown colour model 77"),
        ("PhotometricInterpretation", 3, "palette pixels without a palette"),
        ("PhotometricInterpretation", 5, "contradicts itself: cmyk pixels of 3 samples"),
        ("SamplesPerPixel", 1, "contradicts itself|different kinds"),
        ("BitsPerSample", (8, 8, 4), "different kinds in one pixel"),
    ],
)
def test_contradictory_tags__are_refused_by_name(tmp_path, rgb, tag, value, told) -> None:
    path = save(tmp_path / "a.tif", rgb, photometric="rgb", tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags[tag].overwrite(value)
    with pytest.raises(SlideError, match=told):
        open_slide(path)
