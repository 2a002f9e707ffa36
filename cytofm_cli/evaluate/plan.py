"""What an evaluation is fixed to before the first crop is read.

Legend: N instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.config import as_record, digest
from cytofm_cli.encoders.base import CELL_UM
from cytofm_cli.errors import LabelError, without_secrets
from cytofm_cli.evaluate import features, judge
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.config import ProbeConfig
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.points import Points, Task, make_tasks, read_points
from cytofm_cli.evaluate.stored_points import stored_points, stored_tiles
from cytofm_cli.runs import provenance


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is fixed before the first crop is read.

    Attributes:
        config: the settings.
        sources: slides or stores.
        points: labelled cells or tiles.
        tasks: what to tell apart.
        choices: encoders.
        record: sections of config.toml.
        unread: points whose pixels the stores do not keep.
        unknown: slides of the table that are not given.
        marks: digests of points and pixels.
        defaults: what settings come to that are not set, as far as no encoder need be loaded.
    """

    config: ProbeConfig
    sources: list[Source]
    points: Points
    tasks: list[Task]
    choices: list[Choice]
    record: dict[str, dict[str, Any]]
    unread: int
    unknown: list[str]
    marks: dict[str, str]
    defaults: dict[str, Any]


def make_plan(
    config: ProbeConfig,
    sources: Sequence[Source],
    points: Path | None,
    choices: Sequence[Choice],
    *,
    groups: Path | None = None,
) -> Plan:
    """Read and check everything but pixels.

    Args:
        config: settings.
        sources: slides or stores.
        points: table of labelled points; None: those that stores of cells hold.
        choices: encoders.
        groups: table of groups.

    Raises:
        LabelError: see `read_points`, `locate`, `label_tiles`, `make_tasks`, `is_judged`.
    """
    located = locate_points(config, sources, points, groups)
    cells, used = located.points, located.sources
    if config.unit == "tile" and cells.tile_N is None:
        cells = features.label_tiles(cells, used, rule=config.tile_label, positive=config.positive)
    tasks = make_tasks(cells, config.task, config.positive)
    for task in tasks:
        is_judged(cells, task, config.judged)
    marks = marks_of(cells, used)
    record = {
        "evaluate": as_record(config, results_only=True),
        "data": {
            "encoders": [f"{choice.label} {digest(choice.identity())}" for choice in choices],
            "instances": len(cells),
            "slides": len(set(cells.slides)),
            "groups": len(set(cells.groups)),
            "labels_digest": digest({"labels": cells.labels, "groups": cells.groups}),
            **marks,
            "cytofm": __version__,
        },
    }
    return Plan(
        config,
        used,
        cells,
        tasks,
        list(choices),
        record,
        located.unread,
        located.unknown,
        marks,
        _defaults(config, cells, choices),
    )


@dataclass(frozen=True, eq=False)
class Located:
    """Labelled points whose pixels are at hand.

    Attributes:
        points: these.
        sources: of their slides.
        unread: how many others lie in no stored tile.
        unknown: slides of the table that are not given.
    """

    points: Points
    sources: list[Source]
    unread: int
    unknown: list[str]


def locate_points(
    config: ProbeConfig, sources: Sequence[Source], points: Path | None, groups: Path | None
) -> Located:
    """Read points and find them on slides or in stores; see `read_points`, `locate`.

    Without a table the labels are those that the stores hold: of images of cells
    (`stored_points`), or of tiles in regions (`stored_tiles`).
    """
    unknown: list[str] = []
    if points is None and config.unit == "tile" and not _of_cells(sources):
        cells = stored_tiles(sources, groups)
    elif points is None:
        cells = stored_points(sources, groups)
    else:
        cells, unknown = read_points(points, {source.slide_id for source in sources}, groups)
    used = [source for source in sources if source.slide_id in set(cells.slides)]
    cells, unread = features.locate(cells, used, mpp=config.slide_mpp, slides=config.slides)
    return Located(cells, used, unread, unknown)


def _of_cells(sources: Sequence[Source]) -> bool:
    """Tell whether all are stores of images of cells."""
    stores = [source.store for source in sources]
    return all(store is not None and store.tile.apart is not None for store in stores)


def marks_of(points: Points, sources: Sequence[Source]) -> dict[str, str]:
    """Return digests of points and pixels, which kept features go by."""
    return {
        "points": digest({"slides": points.slides, "xy": points.xy_px0.tolist()}),
        "sources": digest({source.slide_id: _mark(source) for source in sources}),
    }


def _defaults(config: ProbeConfig, points: Points, choices: Sequence[Choice]) -> dict[str, Any]:
    """Return what settings come to that are not set; those that encoders set only if they agree."""
    own = [choice.expects() for choice in choices]
    crops = {of.get("cell_um") or CELL_UM for of in own}
    poolings = {of.get("pooling") for of in own}
    names = [task.name for task in make_tasks(points, None, config.positive)]
    return {
        "folds": judge.default_folds(points.groups),
        "task": [name for name in names if name != "positive"] or None,
        "judged": sorted(set(points.groups)),
        "crop_um": crops.pop() if len(crops) == 1 and config.unit == "cell" else None,
        "pooling": poolings.pop() if len(poolings) == 1 else None,
    }


def is_judged(points: Points, task: Task, wanted: Sequence[str] | None) -> NDArray[np.bool_]:
    """Tell which instances of a task are judged, bool (N,); None wants all groups.

    Raises:
        LabelError: a judged group is not there, or together they lack a class.
    """
    if wanted is None:
        return np.ones(len(task.rows_N), dtype=bool)
    groups = sorted({points.groups[i] for i in task.rows_N})
    if absent := sorted(set(wanted) - set(groups)):
        raise LabelError(
            f"task {task.name}: no instance is of group {', '.join(absent)}.",
            hint=f"groups: {', '.join(groups)}",
        )
    tested_N = np.array([points.groups[i] in wanted for i in task.rows_N])
    there = set(task.y_N[tested_N].tolist())
    if lacking := [name for c, name in enumerate(task.classes) if c not in there]:
        raise LabelError(
            f"task {task.name}: the judged groups have no {', '.join(lacking)}.",
            hint="judge more groups",
        )
    return tested_N


def _mark(source: Source) -> str:
    store = source.store
    if store is not None:
        return store.tile.identity
    path = source.path
    return (
        without_secrets(path)
        if "://" in path
        else f"{provenance.fingerprint(Path(path))}-{source.mpp}"
    )
