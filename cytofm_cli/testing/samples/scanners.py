"""Small slides in the formats that packages of others read, written from what those packages read.

Each is a pyramid of the same drawing: JPEG tiles in KFB and TMAP, plain pixels in the others.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import MissingPackageError
from cytofm_cli.registry import Sample
from cytofm_cli.slides.readers.czi import PACKAGE as CZI
from cytofm_cli.slides.readers.wsidicom import PACKAGE as DICOM
from cytofm_cli.testing.samples.slides import draw
from cytofm_cli.units import Size

_TILE_PX: Final = 256
_SIZE: Final = Size(768, 512)
_UM: Final = 0.25


def half(pixels: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    """Average blocks of `by` pixels a side; sides are multiples of it."""
    h, w = (side // by for side in pixels.shape[:2])
    blocks = pixels.reshape(h, by, w, by, -1)
    return np.asarray(blocks.mean((1, 3)).round(), np.uint8)


def _tiles(pixels: NDArray[np.uint8]) -> list[tuple[int, int, bytes]]:
    """Cut into JPEG tiles, row by row: (x, y, stream); those at the edges are smaller."""
    import imagecodecs

    h, w = pixels.shape[:2]
    return [
        (x, y, bytes(imagecodecs.jpeg8_encode(_cut(pixels, x, y), level=90)))
        for y in range(0, h, _TILE_PX)
        for x in range(0, w, _TILE_PX)
    ]


def _cut(pixels: NDArray[np.uint8], x: int, y: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[y : y + _TILE_PX, x : x + _TILE_PX])


def write_kfb(path: Path, pixels: NDArray[np.uint8], *, um: float = _UM) -> None:
    """Write a KFB 1.6 file: header, label and macro, index of tiles, tiles in its order."""
    import imagecodecs

    records, streams = [], []
    for by in (1, 2, 4):
        level = half(pixels, by)
        for x, y, stream in _tiles(level):
            h, w = _cut(level, x, y).shape[:2]
            records.append(struct.pack("<4xIIIIf8xI28x", x, y, w, h, 40 / by, len(stream)))
            streams.append(stream)
    macro = imagecodecs.jpeg8_encode(np.full((20, 30, 3), 200, np.uint8))
    second_at, image_at = 256, 512
    index_at = image_at + len(macro)
    index = b"".join(records)
    payload = bytearray(88)
    height, width = pixels.shape[:2]
    struct.pack_into(
        "<4s4xfIIII4s", payload, 0, b"KFB", 1.6, len(records), height, width, 40, b"JPEG"
    )
    struct.pack_into("<II", payload, 48, second_at, 0)
    struct.pack_into("<QQfxxxxxxxxI", payload, 56, index_at + len(index), index_at, um, _TILE_PX)
    head = b"\xf1\x01\xee\xee" + bytes(payload) + b"\xff\x01\xee\xee"
    second = struct.pack("<4xII4xII20x", 20, 30, len(macro), image_at - second_at)
    second = b"\xf1\x02\xee\xee" + second + b"\xff\x02\xee\xee"
    body = head.ljust(second_at, b"\0") + second.ljust(image_at - second_at, b"\0") + macro
    path.write_bytes(body + index + b"".join(streams))


def write_tmap(path: Path, pixels: NDArray[np.uint8], *, um: float = _UM) -> None:
    """Write a TMAP 7 file: header, table of levels, a block of records a level, tiles."""
    levels = [half(pixels, by) for by in (1, 2, 4)]
    tiles = [_tiles(level) for level in levels]
    records_at = 560 + 16 * 32
    data_at = records_at + sum(40 * len(of_level) for of_level in tiles) + 64
    head = bytearray(560)
    struct.pack_into("<6sxxBBBBB3xf", head, 0, b"TMAP07", 0, 90, 1, 40, 244, um / 1000)
    struct.pack_into("<III", head, 0x14, 0, len(levels), sum(map(len, tiles)))
    table, records, data = b"", b"", b""
    for number, (level, of_level) in enumerate(zip(levels, tiles, strict=True)):
        h, w = level.shape[:2]
        grid = (-(-h // _TILE_PX), -(-w // _TILE_PX))
        place = (records_at + len(records), 0)
        table += struct.pack("<IfIIIIII", number, 40 / 2**number, w, h, *grid, *place)
        for x, y, stream in of_level:
            where = (_TILE_PX, _TILE_PX, data_at + len(data), len(stream))
            records += struct.pack("<IIIIIIQI4x", number, 0, x, y, *where)
            data += stream
    path.write_bytes(bytes(head) + table.ljust(16 * 32, b"\0") + records + bytes(64) + data)


def write_czi(
    path: Path, scenes: Sequence[tuple[tuple[int, int], Sequence[NDArray[np.uint8]]]]
) -> None:
    """Write a CZI file with pylibCZIrw, 0.25 µm/px.

    Args:
        path: the file.
        scenes: of each the corner, and the pixels of its focal planes.
    """
    czi = CZI.load()
    with czi.create_czi(str(path)) as out:
        for number, ((x, y), planes) in enumerate(scenes):
            for z, pixels in enumerate(planes):
                bgr = np.ascontiguousarray(pixels[..., ::-1])
                plane = {"C": 0, "Z": z} if len(planes) > 1 else {"C": 0}
                out.write(data=bgr, plane=plane, location=(x, y), scene=number)
        out.write_metadata("slide", scale_x=_UM * 1e-6, scale_y=_UM * 1e-6, scale_z=2e-6)


def write_ngff(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    axes: str = "cyx",
    version: int = 3,
    name: str = "slide",
    um: float = _UM,
) -> None:
    """Write an OME-Zarr image of two levels.

    Args:
        path: its folder.
        pixels: (H, W, 3), or (Z, H, W, 3) with "z" among the axes.
        axes: of "tczyx", in that order.
        version: of Zarr: 2 (NGFF 0.4) or 3 (NGFF 0.5).
        name: of the image.
        um: µm/px.
    """
    import zarr

    stack = pixels if pixels.ndim == 4 else pixels[None]
    units = {"t": {"type": "time"}, "c": {"type": "channel"}}
    listed = [
        {"name": axis, **units.get(axis, {"type": "space", "unit": "micrometer"})} for axis in axes
    ]
    datasets = []
    for number, by in enumerate((1, 2)):
        level = np.stack([half(plane, by) for plane in stack])
        array = np.moveaxis(level, 3, 0)[None]  # t c z y x
        kept = tuple(slice(None) if axis in axes else 0 for axis in "tczyx")
        array = array[kept]
        chunks = (1,) * (array.ndim - 2) + (128, 128)
        zarr.create_array(
            path / str(number), data=array, chunks=chunks, zarr_format=version, overwrite=True
        )
        scale = [um * by if axis in "yx" else 2.0 if axis == "z" else 1.0 for axis in axes]
        transform = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(number), "coordinateTransformations": transform})
    scales: dict[str, Any] = {"name": name, "axes": listed, "datasets": datasets}
    write_group(path, {"multiscales": [scales]}, version=version)


def write_group(path: Path, attributes: dict[str, Any], *, version: int = 3) -> None:
    """Write the attributes of an OME-Zarr group: NGFF 0.5 in Zarr 3, 0.4 in Zarr 2."""
    path.mkdir(parents=True, exist_ok=True)
    if version == 3:
        content = {"zarr_format": 3, "node_type": "group"}
        ome = {"version": "0.5", **attributes}
        (path / "zarr.json").write_text(json.dumps({**content, "attributes": {"ome": ome}}))
    else:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(attributes))


def write_dicom_planes(path: Path, planes: Sequence[NDArray[np.uint8]]) -> None:
    """Write a DICOM slide of one level and several focal planes, 2 µm apart, without compression.

    Args:
        path: the file.
        planes: (H, W, 3) each, sides multiples of 64.
    """
    DICOM.load()
    pydicom = importlib.import_module("pydicom")  # comes with wsidicom

    def item(**values: object) -> Any:
        element = pydicom.Dataset()
        for name, value in values.items():
            setattr(element, name, value)
        return element

    def sequence(**values: object) -> Any:
        return pydicom.Sequence([item(**values)])

    h, w = planes[0].shape[:2]
    tiles = np.stack(planes).reshape(len(planes), h // 64, 64, w // 64, 64, 3)
    frames = tiles.transpose(0, 1, 3, 2, 4, 5)
    uid, slide = "1.2.826.0.1.3680043.8.498.77", "1.2.840.10008.5.1.4.1.1.77.1.6"
    ds = item(
        SOPClassUID=slide, SOPInstanceUID=f"{uid}.1", Modality="SM", StudyInstanceUID=f"{uid}.2",
        SeriesInstanceUID=f"{uid}.3", FrameOfReferenceUID=f"{uid}.4", ContainerIdentifier="1",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], SamplesPerPixel=3,
        PhotometricInterpretation="RGB", PlanarConfiguration=0, Rows=64, Columns=64,
        BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0,
        NumberOfFrames=h * w // 64**2 * len(planes), TotalPixelMatrixColumns=w,
        TotalPixelMatrixRows=h, TotalPixelMatrixFocalPlanes=len(planes), NumberOfOpticalPaths=1,
        DimensionOrganizationType="TILED_FULL", VolumetricProperties="VOLUME",
        ImagedVolumeWidth=w * _UM / 1e3, ImagedVolumeHeight=h * _UM / 1e3,
        ImagedVolumeDepth=0.001, LossyImageCompression="00", BurnedInAnnotation="NO",
        OpticalPathSequence=sequence(OpticalPathIdentifier="0", ObjectiveLensPower=40),
        SharedFunctionalGroupsSequence=sequence(
            PixelMeasuresSequence=sequence(
                PixelSpacing=[_UM / 1e3, _UM / 1e3], SliceThickness=0.001,
                SpacingBetweenSlices=0.002,
            )
        ),
    )  # fmt: skip
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = slide
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.PixelData = frames.tobytes()
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)


def _sample(path: Path) -> list[Sample]:
    return [Sample(settings={"path": str(path)})]


def kfb(folder: Path) -> list[Sample]:
    """Write a KFB slide."""
    write_kfb(folder / "a.kfb", draw(_SIZE))
    return _sample(folder / "a.kfb")


def tmap(folder: Path) -> list[Sample]:
    """Write a TMAP slide."""
    write_tmap(folder / "a.tmap", draw(_SIZE))
    return _sample(folder / "a.tmap")


def czi(folder: Path) -> list[Sample]:
    """Write a CZI slide of two scenes and three focal planes."""
    pixels = draw(Size(300, 200))
    planes = [pixels // 2, pixels, 255 - pixels]
    write_czi(folder / "a.czi", [((0, 0), planes), ((400, 100), planes)])
    return _sample(folder / "a.czi")


def ngff(folder: Path) -> list[Sample]:
    """Write OME-Zarr of Zarr 2 and 3, with and without focal planes."""
    pixels = draw(_SIZE)
    write_ngff(folder / "a.ome.zarr", pixels)
    planes = np.stack([pixels // 2, pixels, 255 - pixels])
    write_ngff(folder / "b.zarr", planes, axes="tczyx", version=2)
    return _sample(folder / "a.ome.zarr") + _sample(folder / "b.zarr")


def wsidicom(folder: Path) -> list[Sample]:
    """Write a DICOM slide of three focal planes."""
    pixels = draw(Size(512, 256))
    write_dicom_planes(folder / "a.dcm", [pixels // 2, pixels, 255 - pixels])
    return _sample(folder / "a.dcm")


def fastslide(folder: Path) -> list[Sample]:
    """Write a CZI slide of one scene; no writer of VSI is known."""
    write_czi(folder / "a.czi", [((0, 0), [draw(Size(300, 200))])])
    return _sample(folder / "a.czi")


def isyntax(_folder: Path) -> list[Sample]:
    """Take a real slide: nothing writes iSyntax."""
    return _real("isyntax")


def sdpc(_folder: Path) -> list[Sample]:
    """Take a real slide: nothing writes SDPC."""
    return _real("sdpc")


def _real(reader: str) -> list[Sample]:
    name = f"CYTOFM_SAMPLE_{reader.upper()}"
    if not os.environ.get(name):
        raise MissingPackageError(
            f"a real slide is needed to test reader {reader!r}: none can be made.",
            hint=f"{name}=FILE names one.",
        )
    return _sample(Path(os.environ[name]))
