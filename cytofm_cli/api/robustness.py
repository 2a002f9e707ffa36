"""Cells or tiles under several conditions → how much encoders mind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.probe import sources_of
from cytofm_cli.evaluate.condition_config import RetentionConfig, RobustnessConfig

if TYPE_CHECKING:
    from cytofm_cli.runs.folder import RunReport


def robustness(
    inputs: Paths,
    out: PathLike,
    config: RobustnessConfig | None = None,
    *,
    points: PathLike | None = None,
    pairs: PathLike | None = None,
    encoders: str | list[str] = "handcrafted",
    weights: PathLike | None = None,
    random_weights: bool = False,
    manifest: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    **settings: Any,
) -> RunReport:
    """Judge how much features of the same places differ between two conditions, as PLISM does.

    Args:
        inputs: slides or stores, or folders of them: one or several.
        out: folder of the RUN to make.
        config: settings as a whole; instead, each may be given by its name (`unit="tile"`).
        points: table of cells as of `probe`. None: the nuclei, or tiles, that stores hold.
        pairs: table slide_a,slide_b[,group] of slides that show the same places. None: places are
            compared with themselves under each of `perturb`.
        encoders: NAME, weight FILE, or NAME=FILE; one or several.
        weights: weight file of the one encoder that needs one.
        random_weights: random weights for encoders named without a file: a floor.
        manifest: table slide_id,path[,mpp] of slides.
        overwrite: replace a RUN made with other settings.
        note: told what the caller should know.
        progress: called with (encoder, images done, of how many).
        **settings: fields of `RobustnessConfig`.

    Returns:
        `path` of the RUN, its `metrics`, and whether it was there already (`skipped`).

    Raises:
        UsageError, InputError, LabelError, WeightsError: what is given cannot be used.
        ConfigMismatchError: `out` was made with other settings.
    """
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.evaluate.robustness import make_plan, robustness_run
    from cytofm_cli.work.device import check_device

    config = config_of(RobustnessConfig, config, settings, "robustness")
    check_device(config.device)
    choices = choose(
        words_of(encoders),
        weights=path_of(weights),
        random_weights=random_weights,
        seed=config.seed,
    )
    sources = sources_of(words_of(inputs), path_of(manifest), warn=note)
    plan = make_plan(config, sources, choices, points=path_of(points), pairs=path_of(pairs))
    return robustness_run(plan, Path(out), overwrite=overwrite, progress=progress, note=note)


def retention(
    inputs: Paths,
    points: PathLike | None,
    out: PathLike,
    config: RetentionConfig | None = None,
    *,
    encoders: str | list[str] = "handcrafted",
    weights: PathLike | None = None,
    random_weights: bool = False,
    groups: PathLike | None = None,
    manifest: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    **settings: Any,
) -> RunReport:
    """Judge how much a probe of cells loses on cells that are changed.

    Args:
        inputs: slides or stores, or folders of them: one or several.
        points: table slide_id|image,x,y,label[,group]; level-0 pixels. None: the labels that stores
            of images of cells hold.
        out: folder of the RUN to make.
        config: settings as a whole; instead, each may be given by its name.
        encoders: NAME, weight FILE, or NAME=FILE; one or several.
        weights: weight file of the one encoder that needs one.
        random_weights: random weights for encoders named without a file: a floor.
        groups: table slide_id|image,group: what is held out together.
        manifest: table slide_id,path[,mpp] of slides.
        overwrite: replace a RUN made with other settings.
        note: told what the caller should know.
        progress: called with (encoder, images done, of how many).
        **settings: fields of `RetentionConfig`.

    Returns:
        `path` of the RUN, its `metrics`, and whether it was there already (`skipped`).

    Raises:
        UsageError, InputError, LabelError, WeightsError: what is given cannot be used.
        ConfigMismatchError: `out` was made with other settings.
    """
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.evaluate.notes import plan_notes
    from cytofm_cli.evaluate.retention import make_plan, retention_run
    from cytofm_cli.work.device import check_device

    config = config_of(RetentionConfig, config, settings, "retention")
    check_device(config.device)
    choices = choose(
        words_of(encoders),
        weights=path_of(weights),
        random_weights=random_weights,
        seed=config.seed,
    )
    sources = sources_of(words_of(inputs), path_of(manifest), warn=note)
    plan = make_plan(config, sources, path_of(points), choices, groups=path_of(groups))
    for line in plan_notes(plan.probes):
        note(line)
    return retention_run(plan, Path(out), overwrite=overwrite, progress=progress, note=note)
