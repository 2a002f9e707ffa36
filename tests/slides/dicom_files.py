"""DICOM whole slides made for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
LEVELS = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
REDUCED = ("DERIVED", "PRIMARY", "VOLUME", "RESAMPLED")


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    um: float = 0.25,
    series: str = "1.2.3",
    image_type: tuple[str, ...] = LEVELS,
    tile: int = 64,
    implicit: bool = False,
    sop_class: str = WHOLE_SLIDE,
    frames: list[int] | None = None,
) -> None:
    """Write (H, W, 3) uint8 pixels as one instance of a DICOM slide.

    Args:
        frames: the tiles to write, row by row, in this order, each with its place (TILED_SPARSE);
            None: all of them (TILED_FULL).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    h, w = pixels.shape[:2]
    across, down = -(-w // tile), -(-h // tile)
    padded = np.full((down * tile, across * tile, 3), 255, np.uint8)
    padded[:h, :w] = pixels
    tiles = padded.reshape(down, tile, across, tile, 3).transpose(0, 2, 1, 3, 4)
    tiles = tiles.reshape(down * across, -1)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.ImageType = "SM", list(image_type)
    ds.ReferencedSeriesSequence = Sequence([_item(SeriesInstanceUID="9.9.9")])  # another's uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", series
    ds.FrameOfReferenceUID = f"{series}.1"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows = ds.Columns = tile
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.NumberOfFrames = across * down if frames is None else len(frames)
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = w, h
    ds.TotalPixelMatrixFocalPlanes = 1
    ds.DimensionOrganizationType = "TILED_FULL" if frames is None else "TILED_SPARSE"
    ds.NumberOfOpticalPaths = 1
    ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = w * um / 1e3, h * um / 1e3
    ds.OpticalPathSequence = Sequence([_item(OpticalPathIdentifier="0", ObjectiveLensPower=40)])
    measures = _item(PixelSpacing=[um / 1e3, um / 1e3], SliceThickness=0.001)
    ds.SharedFunctionalGroupsSequence = Sequence(
        [_item(PixelMeasuresSequence=Sequence([measures]))]
    )
    if frames is not None:
        ds.PerFrameFunctionalGroupsSequence = Sequence(
            [_place(number % across * tile, number // across * tile) for number in frames]
        )
    ds.PixelData = tiles[slice(None) if frames is None else frames].tobytes()
    ds["PixelData"].VR = "OW" if implicit else "OB"
    ds.save_as(path, enforce_file_format=True)


def write_slide(folder: Path, names: tuple[str, str, str, str], *, series: str, seed: int) -> None:
    """Write two levels of 256 and 128 px, a label and an overview under these names."""
    folder.mkdir(parents=True, exist_ok=True)
    base = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = base.repeat(8, 0).repeat(8, 1)
    label = np.full((64, 64, 3), 90, np.uint8)
    write_dicom(folder / names[0], pixels, series=series)
    write_dicom(folder / names[1], pixels[::2, ::2], um=0.5, series=series, image_type=REDUCED)
    for name, kind in zip(names[2:], ("LABEL", "OVERVIEW"), strict=True):
        kinds = ("ORIGINAL", "PRIMARY", kind, "NONE")
        write_dicom(folder / name, label, um=10, series=series, image_type=kinds)


def _place(x: int, y: int) -> Dataset:
    """Say where a frame lies: pixels are counted from 1."""
    position = _item(
        ColumnPositionInTotalImagePixelMatrix=x + 1, RowPositionInTotalImagePixelMatrix=y + 1,
        XOffsetInSlideCoordinateSystem=0.0, YOffsetInSlideCoordinateSystem=0.0,
        ZOffsetInSlideCoordinateSystem=0.0,
    )  # fmt: skip
    return _item(PlanePositionSlideSequence=Sequence([position]))


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
