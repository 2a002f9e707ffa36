"""Small slides in the layouts of scanners, as far as tifffile can write what OpenSlide opens.

Each writer takes a path and (512, 768, 3) uint8 pixels, and writes a JPEG pyramid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

JPEG: dict[str, Any] = {
    "compression": "jpeg",
    "compressionargs": {"level": 95},
    "photometric": "rgb",
    "metadata": None,
}
XMP = 700
NDPI_FORMAT, NDPI_LENS, NDPI_FOCUS = 65420, 65421, 65424


def smaller(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of `factor` pixels a side."""
    h, w = (side // factor for side in pixels.shape[:2])
    return pixels.reshape(h, factor, w, factor, 3).mean((1, 3)).round().astype(np.uint8)


def write_svs(path: Path, pixels: np.ndarray) -> None:
    """Aperio: tiled levels, a thumbnail in strips between them."""
    head = "Aperio Image Library v12.0.15 \r\n768x512 "
    tail = "|AppMag = 40|MPP = 0.2520"
    with tifffile.TiffWriter(path) as out:
        text = f"{head}[0,0 768x512] (256x256) JPEG/RGB Q=95{tail}"
        out.write(pixels, tile=(256, 256), description=text, **JPEG)
        thumbnail = {"photometric": "rgb", "metadata": None}
        out.write(smaller(pixels, 8), description=f"{head}-> 96x64 - {tail}", **thumbnail)
        text = f"{head}[0,0 768x512] (256x256) -> 192x128 JPEG/RGB Q=95{tail}"
        out.write(smaller(pixels, 4), tile=(128, 128), description=text, **JPEG)


def write_ndpi(path: Path, pixels: np.ndarray) -> None:
    """Hamamatsu: each level one JPEG stream, private tags for lens and focal plane."""
    with tifffile.TiffWriter(path) as out:
        for factor, lens in ((1, 40.0), (4, 10.0)):
            level = smaller(pixels, factor)
            tags = [(NDPI_FORMAT, "I", 1, 1, True), (NDPI_LENS, "f", 1, lens, True)]
            tags += [(NDPI_FOCUS, "i", 1, 0, True)]
            per_cm = 1e4 / (0.23 * factor)
            out.write(
                level, rowsperstrip=len(level), software=None, extratags=tags,
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **JPEG,
            )  # fmt: skip


def write_scn(path: Path, pixels: np.ndarray) -> None:
    """Leica: one scanned area in the middle of a larger collection, placed in nanometres."""
    nm = 250
    size = f'sizeX="{768 * nm}" sizeY="{512 * nm}"'
    text = f"""<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
<collection name="c" uuid="1" sizeX="{1024 * nm}" sizeY="{768 * nm}"><barcode>MQ==</barcode>
<image name="image_0" uuid="2"><creationDate>2012-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400" version="1"/><pixels sizeX="768" sizeY="512">
<dimension sizeX="768" sizeY="512" r="0" ifd="0"/>
<dimension sizeX="192" sizeY="128" r="1" ifd="1"/></pixels>
<view {size} offsetX="{128 * nm}" offsetY="{64 * nm}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.65</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
</image></collection></scn>"""
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for factor, description in ((1, text), (4, None)):
            per_cm = 1e7 / (nm * factor)
            out.write(
                smaller(pixels, factor), tile=(128, 128), description=description,
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **JPEG,
            )  # fmt: skip


def _attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
    return (
        f'<Attribute Name="{name}" Group="0x{group}" Element="0x{element}" PMSVR="{kind}">'
        f"{value}</Attribute>"
    )


def write_philips(path: Path, pixels: np.ndarray) -> None:
    """Philips TIFF: one XML description of all levels, millimetres a pixel."""

    def spacing(mm: float) -> str:
        value = f"&quot;{mm:g}&quot; &quot;{mm:g}&quot;"
        return _attribute("DICOM_PIXEL_SPACING", "0028", "0030", "IDoubleArray", value)

    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(0.00025 * factor)}'
        + _attribute(
            "PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "1001", "8B02", "IUInt16", str(number)
        )
        + "</DataObject>"
        for number, factor in enumerate((1, 2))
    )
    sequence = ("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "1001", "8B01", "IDataObjectArray")
    image = (
        '<DataObject ObjectType="DPScannedImage">'
        + _attribute("PIM_DP_IMAGE_TYPE", "301D", "1004", "IString", "WSI")
        + spacing(0.00025)
        + _attribute(*sequence, f"<Array>{levels}</Array>")
        + "</DataObject>"
    )
    images = ("PIM_DP_SCANNED_IMAGES", "301D", "1003", "IDataObjectArray")
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + _attribute("DICOM_MANUFACTURER", "0008", "0070", "IString", "PHILIPS")
        + _attribute(*images, f"<Array>{image}</Array>")
        + "</DataObject>"
    )
    with tifffile.TiffWriter(path) as out:
        for factor, description in ((1, text), (2, "level=1")):
            out.write(
                smaller(pixels, factor), tile=(256, 256), description=description,
                software="Philips DP v1.0", subfiletype=int(factor > 1), **JPEG,
            )  # fmt: skip


def write_bif(path: Path, pixels: np.ndarray) -> None:
    """Ventana: a label, then levels; XML in the XMP tags says how its camera tiles join."""
    scan = b"""<?xml version="1.0"?><Metadata><iScan Magnification="40" ScanRes="0.25"
UnitNumber="1" BuildVersion="3.3.1.1"><AOI0 Left="0" Top="0" Right="0" Bottom="0"/></iScan>
</Metadata>"""
    # Numbered from the bottom row up, every other row backwards.
    pairs = [("RIGHT", a, b) for a, b in ((1, 2), (2, 3), (5, 4), (6, 5))]
    pairs += [("UP", a, b) for a, b in ((1, 6), (2, 5), (3, 4))]
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{direction}" '
        f'Tile1="{a}" Tile2="{b}" OverlapX="0" OverlapY="0"/>'
        for direction, a, b in pairs
    )
    joined = f"""<?xml version="1.0"?><EncodeInfo Ver="2"><SlideInfo ScanWhitePoint="255"/>
<SlideStitchInfo><ImageInfo AOIScanned="1" Width="256" Height="256" NumRows="2" NumCols="3"
Pos-X="0" Pos-Y="0" AOIIndex="0">{joints}</ImageInfo></SlideStitchInfo>
<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>""".encode()
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        label = {"photometric": "rgb", "metadata": None, "description": "Label_Image"}
        out.write(smaller(pixels, 8), extratags=[(XMP, "B", len(scan), scan, True)], **label)
        tags = [(XMP, "B", len(joined), joined, True)]
        for level, factor in enumerate((1, 2)):
            out.write(
                smaller(pixels, factor), tile=(256, 256), extratags=[] if level else tags,
                description=f"level={level} mag={40 / factor:g} quality=95", **JPEG,
            )  # fmt: skip


def write_trestle(path: Path, pixels: np.ndarray) -> None:
    """Trestle: micrometres a pixel where TIFF has pixels a unit."""
    text = "Background Color=E6E6E6;Objective Power=40;OverlapsXY= 0 0 0 0;"
    with tifffile.TiffWriter(path) as out:
        for factor in (1, 2):
            out.write(
                smaller(pixels, factor), tile=(128, 128), software="MedScan 1", description=text,
                resolution=(0.25 * factor, 0.25 * factor), subfiletype=int(factor > 1), **JPEG,
            )  # fmt: skip
