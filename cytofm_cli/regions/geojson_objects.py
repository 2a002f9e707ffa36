"""The objects of a GeoJSON file as QuPath has them: their kind, class and probability."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cytofm_cli.errors import InputError
from cytofm_cli.store.tables import NUCLEUS

PROBABILITY: Final = "Detection probability"
# Kinds of objects that are regions, by their plain name, and how a message calls them.
REGIONS: Final = {
    "annotation": "annotation(s)", "tile": "tile(s)", "tmacore": "TMA core(s)", "root": "root(s)",
}  # fmt: skip
_OBJECTS: Final = frozenset((*REGIONS, "detection", "cell"))
# Other programs than QuPath put the class beside `properties.classification`.
_CLASS_KEYS: Final = ("class", "class_name", "label", "type")
_SLACK: Final = 1e-6  # a probability that another program rounded


@dataclass(frozen=True)
class GeoObject:
    """One Feature: its place in messages, its kind ("" if it has none), and itself."""

    where: str
    kind: str
    feature: dict[str, Any]


def objects_of(features: list[Any], where: str, first: int = 0) -> Iterator[GeoObject]:
    """Yield every Feature, and those within it: QuPath nests detections in annotations."""
    top = ": feature" not in where
    for number, feature in enumerate(features, first):
        at = f"{where}: feature {number}" if top else f"{where}.{number}"
        if not isinstance(feature, dict):
            raise InputError(f"{at} has no geometry.")
        yield GeoObject(at, _kind(feature), feature)
        properties = properties_of(feature)
        children = properties.get("childObjects", properties.get("children"))
        if isinstance(children, list):
            yield from objects_of(children, at)


def properties_of(feature: dict[str, Any]) -> dict[str, Any]:
    """Return what a Feature says of itself."""
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _kind(feature: dict[str, Any]) -> str:
    """Return which kind of QuPath object a Feature is, "" if it does not say."""
    properties = properties_of(feature)
    for word in (properties.get("objectType"), properties.get("object_type")):
        if isinstance(word, str):
            return plain_kind(word)
    # QuPath 0.2 kept it in the id; later ones read `type` too, which others use for the class.
    for word in (properties.get("type"), feature.get("id")):
        if isinstance(word, str) and plain_kind(word) in _OBJECTS:
            return plain_kind(word)
    return ""


def plain_kind(word: str) -> str:
    """Return the kind of a QuPath object: `TMA core`, `tmaCore`, `TMACoreObject` → tmacore."""
    plain = word.casefold().replace(" ", "").replace("_", "")
    return plain.removeprefix("path").removesuffix("object")


def is_points(found: GeoObject) -> bool:
    """Tell whether an object is one or more points."""
    geometry = found.feature.get("geometry")
    return isinstance(geometry, dict) and geometry.get("type") in ("Point", "MultiPoint")


def class_name(properties: dict[str, Any], default: str = NUCLEUS) -> str:
    """Return the name of a class: of an object, a string, a list of names, or with a parent.

    Args:
        properties: of the Feature.
        default: the name of what has no class.
    """
    name = _named(properties.get("classification"))
    others = (properties.get(key) for key in _CLASS_KEYS)
    words = (word for word in others if isinstance(word, str) and plain_kind(word) not in _OBJECTS)
    return name or next((word.strip() for word in words if word.strip()), "") or default


def _named(classification: Any) -> str:
    if isinstance(classification, dict):
        own = classification.get("name")
        own = classification.get("names") if own in (None, "") else own
        # QuPath before 0.4: {"name": "Positive", "parentClass": {"name": "Tumor"}}.
        parts = (_named(classification.get("parentClass")), _named(own))
        return ": ".join(part for part in parts if part)
    if isinstance(classification, list):
        return ": ".join(part for part in map(_named, classification) if part)
    if classification is None or isinstance(classification, bool):
        return ""
    return str(classification).strip()


def probability_of(measurements: Any, where: str) -> float:
    """Find a detection probability in QuPath's measurements: a mapping, or a list of pairs.

    NaN and null are what QuPath writes where there is none: 1, as without the measurement.
    """
    if isinstance(measurements, list):
        measurements = {m.get("name"): m.get("value") for m in measurements if isinstance(m, dict)}
    if not isinstance(measurements, dict):
        return 1.0
    value: Any = measurements.get(PROBABILITY)
    if isinstance(value, str) and value.strip().casefold() != "nan":
        raise InputError(f"{where}: {PROBABILITY} {value!r} is not a number.")
    if not is_number(value) or math.isnan(value):
        return 1.0
    if not -_SLACK <= value <= 1 + _SLACK:
        raise InputError(f"{where}: {PROBABILITY} {value:g} is outside 0..1.")
    return min(max(float(value), 0.0), 1.0)


def is_number(value: Any) -> bool:
    """Tell whether a value of JSON is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
