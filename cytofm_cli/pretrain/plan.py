"""Everything about a pretraining run that is decided before its first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cytofm_cli import registry
from cytofm_cli.config import as_record, resolve
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.pretrain.base import Length, MethodConfig
from cytofm_cli.pretrain.by_length import by_length
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.data import TileIndex, open_index
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.loop import LoopSettings
from cytofm_cli.views.config import VERSION, ViewsConfig
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.recipes import Recipe, ncp_of, recipe_of
from cytofm_cli.work.device import find_device


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is fixed before the first step."""

    config: PretrainConfig
    views: ViewsConfig
    recipe: Recipe
    ncp: NcpConfig
    method: MethodConfig
    index: TileIndex
    length: Length
    record: dict[str, dict[str, Any]]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before the first step, one line each."""
        return (*self.index.notes, *_kept_whole(self.ncp, self.index))


def make_plan(
    config: PretrainConfig,
    views: ViewsConfig,
    stores: Sequence[Path],
    settings: Mapping[str, Any],
    *,
    slides: Path | None = None,
) -> Plan:
    """Check and decide everything before training; writes nothing."""
    plugin = registry.pretrain_methods.load(config.method)
    wanted = dict(settings) if config.lr is None else {"lr": config.lr, **settings}
    method_config: MethodConfig = resolve(plugin.config or MethodConfig, config.method, wanted)
    views = replace(views, preset=views.preset if config.ncp else "none")
    recipe = recipe_of(views)
    ncp = ncp_of(views)
    if ncp.without_nuclei == "drop":
        raise UsageError("--without-nuclei drop leaves gaps in batches.", hint="plain")
    index = open_index(
        stores,
        config.detector,
        need_nuclei=ncp.fill != "none" or ncp.centred or config.unit == "cell",
        cell_um=config.cell_um if config.unit == "cell" else None,
        slides=slides,
    )
    if config.probe is not None and any(s.packed_px is not None for s in index.slides):
        raise UsageError("--probe reads the cells around its points: a pack has no slides.")
    length = make_length(config.batch, index.n_tiles, steps=config.steps, epochs=config.epochs)
    if config.by_length:
        given = {name.replace("-", "_") for name in wanted}
        method_config = by_length(method_config, length, given)
    record = {
        "pretrain": as_record(config, results_only=True),
        "views": as_record(views),
        config.method: as_record(method_config),
        "data": index.facts() | {"n_steps": length.n_steps},
    }
    if index.unit == "tile":  # cells are centred as they are, in every version
        record["data"]["views_version"] = VERSION
    return Plan(config, views, recipe, ncp, method_config, index, length, record)


def _kept_whole(ncp: NcpConfig, index: TileIndex) -> Iterator[str]:
    """Say so where the radius reaches the corners of a tile from its middle: nothing lies outside.

    Such are tiles of single cells: what is kept, 25 µm across, is made for fields.
    """
    side_um = index.tile_px * index.mpp
    if ncp.fill != "none" and ncp.keep != "piece" and ncp.radius_um >= side_um / math.sqrt(2):
        yield (
            f"warning: {index.unit}s of {side_um:.3g} µm lie within the radius of "
            f"{ncp.radius_um:g} µm that is kept around a nucleus in their middle: nothing is "
            f"perturbed there (--radius-um {side_um / 4:.2g})"
        )


def make_length(batch: int, n_tiles: int, *, steps: int | None, epochs: float) -> Length:
    """Return how long a run is.

    Args:
        batch: tiles an update.
        n_tiles: that there are.
        steps: updates; None: from `epochs`.
        epochs: passes over the tiles.

    Raises:
        InputError: fewer tiles than a batch takes.
    """
    if n_tiles < batch:
        raise InputError(
            f"{n_tiles} tiles are too few for batches of {batch}.",
            hint=f"--batch {max(2, n_tiles)}, or more slides",
        )
    steps_per_epoch = max(1, n_tiles // batch)
    steps = steps or max(1, round(epochs * n_tiles / batch))
    return Length(n_steps=steps, steps_per_epoch=steps_per_epoch, batch=batch)


def share_of(config: LoopSettings, world: World) -> int:
    """Return the tiles of one part of a process's batch.

    Raises:
        UsageError: the batch does not divide by processes and parts.
    """
    parts = world.size * config.accumulate
    if config.batch % parts:
        raise UsageError(
            f"--batch {config.batch} does not divide by {world.size} processes × "
            f"{config.accumulate} parts.",
            hint=f"--batch {max(parts, config.batch // parts * parts)}",
        )
    return config.batch // parts


def own_device(name: str, world: World) -> torch.device:
    """Return the device of this process, which is the current one from now on.

    Raises:
        UsageError: there is no such device.
    """
    device = find_device(name, rank=world.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
