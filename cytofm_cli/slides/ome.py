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
    "Å": 1e-4, "in": 25_400.0, "pt": 25_400.0 / 72, "thou": 25.4, "mil": 25.4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OmeImage:
    """One Image of an OME-TIFF.

    Attributes:
        name: as the microscope or the user called it; may be empty.
        size_z: focal planes.
        size_t: points in time.
        channel_names: one a Channel element; may be empty strings.
        um: µm/px along x and y, or None.
        planes_um: height of each focal plane, µm; None where nothing says it.
        objective: nominal magnification, or None.
        pages: (channel, z, t) → page; the channel counts Channel elements.
        n_files: files that hold the planes.
    """

    name: str
    size_z: int
    size_t: int
    channel_names: tuple[str, ...]
    um: tuple[float | None, float | None]
    planes_um: tuple[float, ...] | None
    objective: float | None
    pages: dict[tuple[int, int, int], int]
    n_files: int


def is_ome(description: str) -> bool:
    """Tell whether an ImageDescription is OME-XML."""
    return "<OME" in description[:2000] and description.rstrip().endswith("OME>")


def parse(xml: str) -> tuple[OmeImage, ...]:
    """Read the Images of an OME-XML text, in its order.

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
    images = tuple(
        _image(image, pixels, _objective(root, image))
        for image in root.findall("Image")
        if (pixels := image.find("Pixels")) is not None
    )
    if not images:
        raise ValueError("the OME-XML has no Pixels")
    return images


def _image(image: ET.Element, pixels: ET.Element, objective: float | None) -> OmeImage:
    sizes = {axis: max(1, int(pixels.get(f"Size{axis}", "1"))) for axis in "CZT"}
    channels = pixels.findall("Channel")
    samples = int(channels[0].get("SamplesPerPixel", "1")) if channels else 1
    n_channels = max(1, sizes["C"] // max(1, samples))
    files = {uuid.get("FileName") for uuid in pixels.findall("TiffData/UUID")}
    return OmeImage(
        name=image.get("Name") or "",
        size_z=sizes["Z"],
        size_t=sizes["T"],
        channel_names=tuple(channel.get("Name", "") for channel in channels),
        um=(_length_um(pixels, "X"), _length_um(pixels, "Y")),
        planes_um=_heights_um(pixels, sizes["Z"]),
        objective=objective,
        pages=_pages(pixels, n_channels, sizes["Z"], sizes["T"]),
        n_files=max(1, len(files)),
    )


def _objective(root: ET.Element, image: ET.Element) -> float | None:
    """Return the magnification of the objective that an Image names, else of the only one."""
    by_id = {each.get("ID"): each for each in root.findall("Instrument/Objective")}
    settings = image.find("ObjectiveSettings")
    if settings is not None and settings.get("ID") in by_id:
        chosen = by_id[settings.get("ID")]
    elif len(by_id) == 1:
        (chosen,) = by_id.values()
    else:
        return None
    return parse_float(chosen.get("NominalMagnification"))


def _length_um(pixels: ET.Element, axis: str) -> float | None:
    return _um(pixels, f"PhysicalSize{axis}")


def _um(element: ET.Element, name: str) -> float | None:
    value = parse_float(element.get(name))
    scale = _UM.get(element.get(f"{name}Unit", "µm"))
    return None if value is None or scale is None else value * scale


def _heights_um(pixels: ET.Element, n_z: int) -> tuple[float, ...] | None:
    """Return the height of each focal plane: its PositionZ, else multiples of PhysicalSizeZ."""
    stated: dict[int, float] = {}
    for plane in pixels.findall("Plane"):
        um = _um(plane, "PositionZ")
        if um is not None:
            stated.setdefault(int(plane.get("TheZ", "0")), um)
    heights = [stated[z] for z in range(n_z) if z in stated]
    if len(set(heights)) == n_z:
        return tuple(heights)
    step = _length_um(pixels, "Z")
    return None if step is None or n_z == 1 else tuple(z * step for z in range(n_z))


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
