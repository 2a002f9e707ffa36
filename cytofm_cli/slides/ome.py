"""The part of OME-XML that says which directory of an OME-TIFF holds which plane.

OME data model 2016-06: Pixels has sizes in X, Y, C, Z, T and an order of planes; TiffData
elements map planes to directories (IFD).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import product
from typing import Final

from cytofm_cli.slides.base import parse_float

_UM: Final = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6,
    "Å": 1e-4, "in": 25_400.0, "pt": 25_400.0 / 72, "mil": 25.4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OmeImage:
    """One Image of an OME-TIFF.

    Attributes:
        pixel_type: "uint8", "int8", "uint16", ...
        size_c: channels, counting each sample of an RGB channel.
        size_z: focal planes.
        size_t: points in time.
        channel_names: one a Channel element; may be empty strings.
        um: µm/px along x and y, or None.
        objective: nominal magnification, or None.
        pages: (channel, z, t) → page; the channel counts Channel elements.
    """

    pixel_type: str
    size_c: int
    size_z: int
    size_t: int
    channel_names: tuple[str, ...]
    um: tuple[float | None, float | None]
    objective: float | None
    pages: dict[tuple[int, int, int], int]


def is_ome(description: str) -> bool:
    """Tell whether an ImageDescription is OME-XML."""
    return "<OME" in description[:2000] and description.rstrip().endswith("OME>")


def parse(xml: str) -> OmeImage:
    """Read the first Image of an OME-XML text.

    Raises:
        ValueError: not the XML that the standard asks for.
    """
    # Expanding entities is the one way in which XML can hurt; OME-XML never declares any.
    if "<!ENTITY" in xml or "<!DOCTYPE" in xml:
        raise ValueError("the OME-XML declares entities")
    try:
        root = ET.fromstring(xml.strip())  # noqa: S314 - entities were refused above
    except ET.ParseError as error:
        raise ValueError(f"the OME-XML is damaged ({error})") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    pixels = root.find("Image/Pixels")
    if pixels is None:
        raise ValueError("the OME-XML has no Pixels")
    sizes = {axis: max(1, int(pixels.get(f"Size{axis}", "1"))) for axis in "CZT"}
    channels = pixels.findall("Channel")
    samples = int(channels[0].get("SamplesPerPixel", "1")) if channels else 1
    n_channels = max(1, sizes["C"] // max(1, samples))
    objective = root.find("Instrument/Objective")
    magnification = None if objective is None else objective.get("NominalMagnification")
    return OmeImage(
        pixel_type=pixels.get("Type", "uint8"),
        size_c=sizes["C"],
        size_z=sizes["Z"],
        size_t=sizes["T"],
        channel_names=tuple(channel.get("Name", "") for channel in channels),
        um=(_length_um(pixels, "X"), _length_um(pixels, "Y")),
        objective=parse_float(magnification),
        pages=_pages(pixels, n_channels, sizes["Z"], sizes["T"]),
    )


def _length_um(pixels: ET.Element, axis: str) -> float | None:
    value = parse_float(pixels.get(f"PhysicalSize{axis}"))
    scale = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if value is None or scale is None else value * scale


def _pages(pixels: ET.Element, n_c: int, n_z: int, n_t: int) -> dict[tuple[int, int, int], int]:
    sizes = {"C": n_c, "Z": n_z, "T": n_t}
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    if sorted(order) != ["C", "T", "Z"]:
        raise ValueError(f"DimensionOrder {order!r} is not one of OME's")
    planes = []
    for slow, middle, fast in product(*(range(sizes[axis]) for axis in reversed(order))):
        place = dict(zip(reversed(order), (slow, middle, fast), strict=True))
        planes.append((place["C"], place["Z"], place["T"]))
    index = {plane: number for number, plane in enumerate(planes)}
    data = pixels.findall("TiffData")
    files = {uuid.get("FileName") for item in data for uuid in item.findall("UUID")}
    if len(files) > 1:
        raise ValueError(f"its planes are spread over {len(files)} files")
    pages: dict[tuple[int, int, int], int] = {}
    for item in data:
        first = (
            int(item.get("FirstC", "0")),
            int(item.get("FirstZ", "0")),
            int(item.get("FirstT", "0")),
        )
        if first not in index:
            raise ValueError(f"TiffData names a plane {first} that does not exist")
        page = int(item.get("IFD", "0"))
        # Without a PlaneCount: one plane if IFD is given, else all that remain.
        count = int(item.get("PlaneCount", "1" if item.get("IFD") else str(len(planes))))
        for step, plane in enumerate(planes[index[first] : index[first] + count]):
            pages[plane] = page + step
    return pages or index
