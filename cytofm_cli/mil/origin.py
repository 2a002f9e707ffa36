"""What the features of a bag are made from, so that what does not belong together is refused.

A head learns features of one encoder at one scale: tiles of another size or resolution, or other
weights of the same name and width, give answers that look right and mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cytofm_cli.errors import InputError
from cytofm_cli.store import lineage, schema

if TYPE_CHECKING:
    from cytofm_cli.store.io import Store

SECTION = "origin"  # of a RUN's config.toml
# What an encoder is called whose rows are probabilities of classes: `cells:RUN`; alone, the only
# RUN there is.
CLASSES = "cells"
# `cytofm tile` reads a level within 5 % of --mpp as it is: two slides of one setting may lie
# 1.05 / 0.95 apart.
SCALE_TOLERANCE = 0.11
HINT = "use separate folders, or `--allow-mixed` if you know that it does not matter"


@dataclass(frozen=True)
class Origin:
    """What a row of a bag is; None (or "") where nothing says.

    Attributes:
        encoder: key of the encoder.
        weights_sha256: digest of its weights.
        pooling: how it makes one vector of its tokens.
        unit: "tile" or "cell".
        tile_px: side of a tile, pixels.
        mpp: µm/px of the tiles.
        detector: who found the cells.
        cell_um: side of a cell's crop, µm.
        seen_mpp: µm/px at which the encoder sees them, after resizing to its input.
    """

    encoder: str = ""
    weights_sha256: str | None = None
    pooling: str | None = None
    unit: str | None = None
    tile_px: int | None = None
    mpp: float | None = None
    detector: str | None = None
    cell_um: float | None = None
    seen_mpp: float | None = None

    def record(self) -> dict[str, Any]:
        """Return plain values, without those that nothing says."""
        return {key: value for key, value in self.__dict__.items() if value not in (None, "")}


UNKNOWN = Origin()
_WORDS = {
    "encoder": ("encoder", ""),
    "weights_sha256": ("SHA-256 of the encoder's weights", ""),
    "pooling": ("pooling", ""),
    "unit": ("unit", ""),
    "tile_px": ("tile size", " px"),
    "mpp": ("resolution", " µm/px"),
    "detector": ("detector of the cells", ""),
    "cell_um": ("cell crop", " µm"),
    "seen_mpp": ("resolution at the encoder", " µm/px"),
}
GEOMETRY = ("tile_px", "mpp")


def from_record(record: Mapping[str, Any]) -> Origin:
    """Build an origin from `Origin.record` or a file's own; keys of newer versions are left out."""
    kinds = {"tile_px": int, "mpp": float, "cell_um": float, "seen_mpp": float}
    known = {field.name for field in dataclasses.fields(Origin)}
    return Origin(
        **{
            key: kinds.get(key, str)(value)
            for key, value in record.items()
            if key in known and value not in (None, "")
        }
    )


def of_store(store: Store, encoder: str, unit: str) -> Origin:
    """Read the origin of a bag off the records of its store."""
    step = schema.embedding_step(encoder, unit)
    record = store.embedding_record(encoder, unit)
    tile = store.tile if schema.TILE_STEP in store.steps else None
    parents = lineage.parents_of(store.steps, step)
    nuclei = [name for name in parents if name.startswith("nuclei/")]
    return from_record(
        {
            "encoder": encoder,
            "weights_sha256": record.weights_sha256,
            "pooling": record.pooling,
            "unit": unit,
            "tile_px": tile and tile.tile_px,
            "mpp": tile and tile.mpp,
            "cell_um": record.cell_um,
            "seen_mpp": record.seen_mpp,
            "detector": nuclei[0].partition("/")[2] if len(nuclei) == 1 else None,
        }
    )


def of_classes(store: Store, run: str) -> Origin:
    """Read the origin of a bag of class probabilities off the records of its store."""
    record = store.classes_record(run)
    tile = store.tile if schema.TILE_STEP in store.steps else None
    return from_record(
        {
            "encoder": f"{CLASSES}:{run}",
            "weights_sha256": record.run_sha256,
            "unit": "cell",
            "tile_px": tile and tile.tile_px,
            "mpp": tile and tile.mpp,
            "cell_um": record.cell_um,
            "detector": record.detector,
        }
    )


def is_classes(encoder: str | None) -> bool:
    """Tell whether an encoder's name means probabilities of classes of cells."""
    return (encoder or "").partition(":")[0] == CLASSES


def bag_step(encoder: str, unit: str) -> str:
    """Return the step of a store that holds a bag."""
    if is_classes(encoder):
        return schema.classes_step(encoder.partition(":")[2])
    return schema.embedding_step(encoder, unit)


def differences(first: Origin, second: Origin) -> list[tuple[str, str, str]]:
    """List what is stated by both and differs: name, value of the one, value of the other."""
    rows: list[tuple[str, str, str]] = []
    for key, (name, unit) in _WORDS.items():
        a, b = getattr(first, key), getattr(second, key)
        if a in (None, "") or b in (None, "") or _alike(key, a, b):
            continue
        if key == "seen_mpp" and rows:
            continue  # it follows from the others
        rows.append((name, _show(a) + unit, _show(b) + unit))
    return rows


def unstated(origin: Origin) -> list[str]:
    """Name what decides the scale of a bag and is not stated."""
    keys = ("encoder", *GEOMETRY, *(("cell_um",) if origin.unit == "cell" else ()))
    return [_WORDS[key][0] for key in keys if getattr(origin, key) in (None, "")]


def with_stated(where: object, origin: Origin, *, encoder: str | None, unit: str) -> Origin:
    """Fill in what the user states about a file of another tool.

    Raises:
        InputError: the file says otherwise.
    """
    said = Origin(encoder=(encoder or "").replace("/", "."), unit=unit)
    for name, file, user in differences(origin, said):
        raise InputError(
            f"{where}: its {name} is {file}, not {user}.", hint=f"`--{name} {file}`, or other files"
        )
    return dataclasses.replace(origin, encoder=origin.encoder or said.encoder, unit=unit)


def common(
    of_slides: Mapping[str, Origin], *, allow_mixed: bool = False
) -> tuple[Origin, list[str]]:
    """Find the one origin of all bags.

    Args:
        of_slides: origin of each bag by slide id; at least one.
        allow_mixed: go on with bags of several origins; what differs is left unstated.

    Returns:
        the origin, and a sentence for each thing in which bags differ.

    Raises:
        InputError: they differ; names both values and both slides.
    """
    values: dict[str, Any] = {}
    mixed: list[str] = []
    for key, (name, unit) in _WORDS.items():
        stated = [(getattr(origin, key), slide) for slide, origin in of_slides.items()]
        if key != "encoder":  # features that do not say whose they are fit to no others
            stated = [(value, slide) for value, slide in stated if value is not None]
        if not stated:
            continue
        stated.sort(key=lambda pair: pair[0])
        (low, first), (high, last) = stated[0], stated[-1]
        if _alike(key, low, high):
            values[key] = stated[len(stated) // 2][0]
        elif key != "seen_mpp" or not mixed:
            mixed.append(f"{name} is {_show(low)}{unit} in {first}, {_show(high)}{unit} in {last}")
    if mixed and not allow_mixed:
        raise InputError(f"bags do not fit together: {'; '.join(mixed)}.", hint=HINT)
    return Origin(**values), mixed


def notes(origins: Iterable[Origin], mixed: Sequence[str]) -> list[str]:
    """Say what is not known, or not the same, of the bags that a RUN learns from."""
    silent: dict[str, int] = {}
    for origin in origins:
        for name in unstated(origin):
            silent[name] = silent.get(name, 0) + 1
    lines = [f"mixed bags (--allow-mixed): {what}" for what in mixed]
    if silent:
        what = ", ".join(f"{name} ({count})" for name, count in silent.items())
        lines.append(f"not stated by the bags (slides), so not checked when scoring: {what}")
    return lines


def _alike(key: str, a: Any, b: Any) -> bool:
    if key in ("mpp", "seen_mpp"):
        return bool(max(a, b) <= min(a, b) * (1 + SCALE_TOLERANCE))
    if key == "cell_um":
        return bool(abs(a - b) <= 1e-3 * max(a, b))
    return bool(a == b)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (str(value) if len(str(value)) < 40 else f"{str(value)[:12]}…") or "not stated"
