"""Every configuration of this project: checks itself, and comes back from TOML as it was."""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import cytofm_cli
from cytofm_cli import config
from cytofm_cli.cli.options import RunOptions
from cytofm_cli.config import Settings, kinds_of
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.config import ProbeConfig
from cytofm_cli.kinds import Kind
from cytofm_cli.mil.config import BenchmarkConfig, MilConfig
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.views.config import ViewsConfig


def modules() -> list[str]:
    """Name the modules that declare settings, by their text: nothing is imported, nor torch."""
    root = Path(cytofm_cli.__file__).parent
    files = [path for path in root.rglob("*.py") if " = option(" in path.read_text()]
    return sorted(".".join(path.relative_to(root.parent).with_suffix("").parts) for path in files)


def classes_in(name: str) -> list[type[Settings]]:
    """Return the classes of a module that a command, a step or a plug-in makes."""
    own = [kind for kind in vars(importlib.import_module(name)).values() if _is_of(kind, name)]
    # What holds Any leaves a setting to its subclasses.
    return [kind for kind in own if Any not in config.field_types(kind).values()]


def _is_of(kind: object, module: str) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings) and kind.__module__ == module


def test_every_class__is_looked_at() -> None:
    names = {kind.__name__ for name in modules() for kind in classes_in(name)}
    assert {"TileConfig", "RunOptions", "ClassicalConfig", "Recipe", "NcpConfig"} <= names
    assert {"PretrainViews", "LessConfig", "MaskedConfig", "ScoreConfig"} <= names


def words() -> st.SearchStrategy[str]:
    # TOML is Unicode, which has no lone surrogates.
    return st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


def values(field: dataclasses.Field[Any], kind: Kind) -> st.SearchStrategy[Any]:
    """Return values that a setting may have, as far as it alone can tell."""
    low, high = field.metadata["low"], field.metadata["high"]
    item: st.SearchStrategy[Any]
    if kind.choices:
        item = st.sampled_from(kind.choices)
    elif kind.base is float:
        item = st.floats(low, high, allow_nan=False, allow_infinity=False)
    elif kind.base is int:
        item = st.integers(None if low is None else int(low), None if high is None else int(high))
    elif kind.base is bool:
        item = st.booleans()
    elif kind.base is Path:
        item = words().map(Path)
    else:
        item = words()
    whole = st.lists(item, max_size=3).map(tuple) if kind.many else item
    return st.none() | whole if kind.optional else whole


@pytest.mark.parametrize("module", modules())
@given(data=st.data())
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
def test_toml__every_configuration_comes_back_as_it_was(module: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(classes_in(module)))
    kinds = kinds_of(kind)
    changed = {}
    for field in dataclasses.fields(kind):
        # Few at a time: many settings that are drawn apart do not go together.
        if data.draw(st.integers(0, 4)) == 0:
            changed[field.name] = data.draw(values(field, kinds[field.name]), label=field.name)
    try:
        made = kind(**changed)
    except UsageError:
        assume(False)  # settings that do not go together
    table = tomllib.loads(config.to_toml({"e": made}))["e"]
    assert config.resolve(kind, "e", table) == made


@pytest.mark.parametrize(
    ("kind", "given", "message", "hint"),
    [
        (TileConfig, {"foreground": "autp"}, "TileConfig(foreground='autp'): choose auto, none.",
         "did you mean auto?"),
        (TileConfig, {"tile_px": -5}, "TileConfig(tile_px=-5) must be at least 16.", None),
        (TileConfig, {"tile_px": 1.5}, "TileConfig(tile_px=1.5) is not of type int.", None),
        (TileConfig, {"tile_px": True}, "TileConfig(tile_px=True) is not of type int.", None),
        (TileConfig, {"tile_px": "512"}, "TileConfig(tile_px='512') is not of type int.", None),
        (TileConfig, {"mpp": float("nan")}, "TileConfig(mpp=nan) must be at least 0.05.", None),
        (TileConfig, {"max_tiles": 5}, "TileConfig(max_tiles=5) needs a way to choose.",
         "--select random, or densest."),
        (EmbedConfig, {"batch_size": "x"}, "EmbedConfig(batch_size='x') is not of type int.",
         None),
        (EmbedConfig, {"encoder": None}, "EmbedConfig(encoder=None) is not of type str.", None),
        (EmbedConfig, {"mean": (0.5, 128.0, 0.5)},
         "EmbedConfig(mean=(0.5, 128.0, 0.5)): three numbers from 0 to 1.",
         "--mean 0.485,0.456,0.406; values of 0..255 are divided by 255"),
        (MilConfig, {"lr": float("inf")}, "MilConfig(lr=inf) must be a finite number.", None),
        (BenchmarkConfig, {"unit": ("tile", "cells")},
         "BenchmarkConfig(unit=('tile', 'cells')): choose tile, cell.", "did you mean cell?"),
        (BenchmarkConfig, {"method": "mean"},
         "BenchmarkConfig(method='mean') is not of type tuple[str, ...].", None),
        (ProbeConfig, {"k": (0, 5)}, "ProbeConfig(k=(0, 5)) must be at least 1.", None),
        (ProbeConfig, {"unit": "tile", "tile_label": "any"},
         "ProbeConfig(tile_label='any') needs labels that are positive.",
         "--positive LABEL,LABEL"),
        (ViewsConfig, {"centre_jitter": 2}, "ViewsConfig(centre_jitter=2) must be at most 1.",
         None),
        (DetectConfig, {"nuclei": "n.geojson"},
         "DetectConfig(nuclei='n.geojson') is for the detector import, not for 'classical'.",
         "add --detector import"),
        (RunOptions, {"workers": 0}, "RunOptions(workers=0) must be at least 1.", None),
    ],
)  # fmt: skip
def test_a_configuration__made_in_python_is_refused_like_on_the_command_line(
    kind: type[Settings], given: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        kind(**given)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    with pytest.raises(UsageError):
        dataclasses.replace(kind(), **given)


def test_a_configuration__takes_what_means_the_same() -> None:
    tile = TileConfig(mpp=1, tile_px=np.int64(256), min_foreground=np.float32(0.5))
    assert (tile.mpp, tile.tile_px, tile.min_foreground) == (1.0, 256, 0.5)
    assert [type(v) for v in (tile.mpp, tile.tile_px, tile.min_foreground)] == [float, int, float]
    embed = EmbedConfig(weights="w.pt", mean=[0.5, 0.5, 0.5])  # type: ignore[arg-type]
    assert embed.weights == Path("w.pt")
    assert embed.mean == (0.5, 0.5, 0.5)
    assert config.digest(config.as_record(TileConfig(mpp=1))) == config.digest(
        config.as_record(config.resolve(TileConfig, "tile", {"mpp": "1"}))
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (config.Layer({"max_tiles": "5"}, form="{flag} {value}"), "--max-tiles 5 needs a way"),
        (config.Layer({"max-tiles": 5}, form="{variable}={value}"),
         "CYTOFM_TILE_MAX_TILES=5 needs a way"),
        ({"max_tiles": 5}, r"\[tile\] max_tiles = 5 needs a way"),
    ],
)  # fmt: skip
def test_a_conflict__is_blamed_on_what_was_written(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.resolve(TileConfig, "tile", layer)


def test_resolve__refuses_a_class_that_does_not_check_itself() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Plain:
        side: int = 1

    with pytest.raises(UsageError, match="the settings of toy") as caught:
        config.resolve(Plain, "toy")  # type: ignore[type-var]
    assert caught.value.hint == "derive the class from cytofm_cli.config.Settings"
