"""Bags + labels → a RUN: trained heads, judged on slides that they never saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, config_of, plugin_settings
from cytofm_cli.mil.config import MilConfig

if TYPE_CHECKING:
    from cytofm_cli.mil.bag import Bag
    from cytofm_cli.mil.plan import Plan
    from cytofm_cli.mil.train import Passing
    from cytofm_cli.runs.folder import RunReport


def train(
    bags: PathLike | Sequence[Bag],
    labels: PathLike,
    out: PathLike,
    config: MilConfig | None = None,
    *,
    head_settings: Mapping[str, Any] | None = None,
    tune: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    passing: Passing | None = None,
    started: Callable[[Plan], None] | None = None,
    spawn: bool = False,
    **settings: Any,
) -> RunReport:
    """Train a MIL head by grouped cross-validation and judge it on slides it never saw.

    Args:
        bags: folder of stores, or of h5 or pt files; or `Bag` objects.
        labels: table slide_id,label[,group][,split].
        out: folder of the RUN to make.
        config: settings as a whole; instead, each may be given by its name (`method="dsmil"`).
            Models are trained in this process; `workers=N` starts processes, which run the
            caller's script anew: it then needs `if __name__ == "__main__":`.
        head_settings: settings of the head, by name.
        tune: values to try for settings of recipe or head, within each training part.
        overwrite: replace a RUN made with other settings.
        progress: called with (models done, of how many, what the last one was).
        passing: called after each epoch of a model that is trained in this process.
        started: called with the plan before anything is trained or found done.
        spawn: the caller's script may be run anew by worker processes: `workers=0` then starts
            as many as fit, as the command line does.
        **settings: fields of `MilConfig`.

    Returns:
        `path` of the RUN, its `metrics`, and whether it was there already (`skipped`).

    Raises:
        UsageError: impossible settings.
        InputError, LabelError: bags or labels that cannot be used.
        ConfigMismatchError: `out` was made with other settings.
    """
    from cytofm_cli.mil.config import check_used
    from cytofm_cli.mil.labels import read_labels
    from cytofm_cli.mil.run import train_run

    config = config_of(MilConfig, config, settings, "train")
    if not config.workers and not spawn:
        config = dataclasses.replace(config, workers=1)
    table = read_labels(Path(labels), label_column=config.label, group_column=config.group)
    check_used(config, has_splits=table.splits is not None)
    several = isinstance(bags, Sequence) and not isinstance(bags, str)
    return train_run(
        config,
        list(bags) if several else Path(bags),  # type: ignore[arg-type]
        Path(labels),
        Path(out),
        head=plugin_settings(head_settings, "head_settings"),
        tune=tune,
        overwrite=overwrite,
        progress=progress,
        passing=passing,
        started=started,
    )
