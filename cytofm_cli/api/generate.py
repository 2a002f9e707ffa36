"""Tiles and cells → a generator → images, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import find_stores_and_packs
from cytofm_cli.generate.config import GenerateConfig, MeasureConfig, SampleConfig

if TYPE_CHECKING:
    from cytofm_cli.generate.run import GenerateReport
    from cytofm_cli.generate.synthetic import SampleReport
    from cytofm_cli.runs.folder import RunReport


def train_generator(
    stores: Paths,
    out: PathLike,
    config: GenerateConfig | None = None,
    *,
    slides: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
    **settings: Any,
) -> GenerateReport:
    """Train a generator of cells or tiles; resumes by itself.

    Args:
        stores: stores, folders of stores, or packs: one or several.
        out: folder of the RUN.
        config: settings as a whole; instead, each may be given by its name (`steps=2000`).
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: begin anew instead of resuming.
        note: told what the caller should know.
        progress: called with (updates done, of how many, loss).
        **settings: fields of `GenerateConfig`.

    Returns:
        `path` of the RUN, the file `generator`, and the `summary`.

    Raises:
        UsageError, InputError: impossible settings; unusable stores.
        ConfigMismatchError: `out` was begun with other settings.
    """
    from cytofm_cli.generate.run import train

    return train(
        config_of(GenerateConfig, config, settings, "train_generator"),
        find_stores_and_packs(words_of(stores)),
        Path(out),
        slides=path_of(slides),
        overwrite=overwrite,
        note=note,
        progress=progress,
    )


def sample_generator(
    run: PathLike,
    out: PathLike,
    config: SampleConfig | None = None,
    *,
    like: Paths | None = None,
    of_class: str | None = None,
    slides: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> SampleReport:
    """Sample a generator: PNGs, and a store, all marked as synthetic.

    Args:
        run: a RUN of `train_generator`, its file, or a file of REPA-E.
        out: folder of the images.
        config: settings as a whole; instead, each may be given by its name (`n=64`).
        like: "STORE:NUMBER" of cells to be like, one or several, taken in turn.
        of_class: class to be of.
        slides: folder where the slides lie now.
        overwrite: replace what is there.
        note: told what loading did.
        progress: called with (images done, of how many).
        **settings: fields of `SampleConfig`.

    Returns:
        `path` of the folder, the `store`, and how many images there are.

    Raises:
        UsageError, InputError: a condition that the generator does not take; no such cell.
        WeightsError: a file that does not fit, or is unsafe.
        ConfigMismatchError: `out` holds other samples.
    """
    from cytofm_cli.generate.synthetic import sample_run

    return sample_run(
        Path(run),
        Path(out),
        config_of(SampleConfig, config, settings, "sample_generator"),
        like=words_of(like),
        of_class=of_class,
        slides=path_of(slides),
        overwrite=overwrite,
        note=note,
        progress=progress,
    )


def evaluate_generator(
    run: PathLike,
    stores: Paths,
    out: PathLike,
    config: MeasureConfig | None = None,
    *,
    slides: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    **settings: Any,
) -> RunReport:
    """Judge a generator's images beside real ones, and beside what a codec alone does.

    Args:
        run: a RUN of `train_generator`, or its file.
        stores: of real cells or tiles of at least two slides; unseen ones say most.
        out: folder of the RUN to make.
        config: settings as a whole; instead, each may be given by its name (`n=500`).
        slides: folder where the slides lie now.
        overwrite: judge anew.
        note: told what the reader should know.
        progress: called with (what, done, of how many).
        **settings: fields of `MeasureConfig`.

    Returns:
        `path` of the RUN and its `metrics`.

    Raises:
        InputError: fewer than two slides, too few images.
        ConfigMismatchError: `out` was made with other settings.
    """
    from cytofm_cli.generate.evaluate import evaluate_run

    return evaluate_run(
        Path(run),
        find_stores_and_packs(words_of(stores)),
        Path(out),
        config_of(MeasureConfig, config, settings, "evaluate_generator"),
        slides=path_of(slides),
        overwrite=overwrite,
        note=note,
        progress=progress,
    )
