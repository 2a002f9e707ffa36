"""Labelled points → how good frozen encoders are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import are_stores, find_slides, find_stores, store_id
from cytofm_cli.evaluate.config import ProbeConfig

if TYPE_CHECKING:
    from cytofm_cli.evaluate.features import Source
    from cytofm_cli.runs.folder import RunReport


def probe(
    inputs: Paths,
    points: PathLike | None,
    out: PathLike,
    config: ProbeConfig | None = None,
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
    """Judge frozen encoders on labelled cells: k-NN, linear and few-shot probes.

    Args:
        inputs: slides or stores, or folders of them: one or several.
        points: table slide_id|image,x,y,label[,group]; level-0 pixels. None: the labels that stores
            of images of cells hold, or, with `unit="tile"`, those of regions.
        out: folder of the RUN to make.
        config: settings as a whole; instead, each may be given by its name (`unit="tile"`).
        encoders: NAME, weight FILE, or NAME=FILE; one or several.
        weights: weight file of the one encoder that needs one.
        random_weights: random weights for encoders named without a file: a floor.
        groups: table slide_id|image,group: what is held out together.
        manifest: table slide_id,path[,mpp] of slides.
        overwrite: replace a RUN made with other settings.
        note: told what the caller should know.
        progress: called with (encoder, cells done, of how many).
        **settings: fields of `ProbeConfig`.

    Returns:
        `path` of the RUN, its `metrics`, and whether it was there already (`skipped`).

    Raises:
        UsageError, InputError, LabelError, WeightsError: what is given cannot be used.
        ConfigMismatchError: `out` was made with other settings.
    """
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.evaluate.run import probe_run
    from cytofm_cli.work.device import check_device

    config = config_of(ProbeConfig, config, settings, "probe")
    check_device(config.device)
    choices = choose(
        words_of(encoders),
        weights=path_of(weights),
        random_weights=random_weights,
        seed=config.seed,
    )
    return probe_run(
        config,
        sources_of(words_of(inputs), path_of(manifest), warn=note),
        path_of(points),
        choices,
        Path(out),
        groups=path_of(groups),
        overwrite=overwrite,
        progress=progress,
        note=note,
    )


def sources_of(
    words: Sequence[str], manifest: Path | None, *, warn: Callable[[str], None]
) -> list[Source]:
    """List the slides or stores that hold what is judged.

    Raises:
        InputError: there are none, or the manifest cannot be used.
    """
    from cytofm_cli.evaluate.features import Source

    if words and manifest is None and are_stores(words):
        return [Source(store_id(path), str(path)) for path in find_stores(words)]
    refs = find_slides(words, manifest, warn=warn)
    return [Source(ref.slide_id, ref.path, ref.mpp) for ref in refs]
