"""Labelled points → a cell classifier → classes of all nuclei → counts by slide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import find_stores, store_id, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.api.probe import sources_of
from cytofm_cli.cells.config import ApplyConfig, CellsConfig, CountConfig
from cytofm_cli.errors import CytofmError, SomeSlidesFailedError, UsageError, WeightsError
from cytofm_cli.named_files import absent
from cytofm_cli.words import is_missing
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.device import check_device

if TYPE_CHECKING:
    from cytofm_cli.cells.apply import Applying, ApplyJob
    from cytofm_cli.cells.count import SlideCount
    from cytofm_cli.runs.folder import RunReport


def train_cells(
    inputs: Paths,
    labels: PathLike | None,
    out: PathLike,
    config: CellsConfig | None = None,
    *,
    encoder: str = "cytofm-tiny",
    weights: PathLike | None = None,
    random_weights: bool = False,
    groups: PathLike | None = None,
    manifest: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    **settings: Any,
) -> RunReport:
    """Learn classes of cells from labelled points, and judge them on groups held out.

    Args:
        inputs: slides or stores, or folders of them: one or several.
        labels: table slide_id|image,x,y,label[,group]; level-0 pixels. Points need not be
            nuclei that were detected. None: the labels that stores of images of cells hold.
        out: folder of the RUN to make.
        config: settings as a whole; instead, each may be given by its name (`model="mlp"`).
        encoder: NAME, weight FILE, or NAME=FILE.
        weights: weight file of an encoder that needs one.
        random_weights: random weights for it: a floor.
        groups: table slide_id|image,group: what is held out together.
        manifest: table slide_id,path[,mpp] of slides.
        overwrite: replace a RUN made with other settings.
        note: told what the caller should know.
        progress: called with (what, done, of how many).
        **settings: fields of `CellsConfig`.

    Returns:
        `path` of the RUN, its `metrics`, and whether it was there already (`skipped`).

    Raises:
        UsageError, InputError, LabelError, WeightsError: what is given cannot be used.
        ConfigMismatchError: `out` was made with other settings.
    """
    from cytofm_cli.cells.run import train_run
    from cytofm_cli.evaluate.choice import choose

    config = config_of(CellsConfig, config, settings, "train_cells")
    check_device(config.device)
    (choice,) = choose(
        [encoder], weights=path_of(weights), random_weights=random_weights, seed=config.seed
    )
    return train_run(
        config,
        sources_of(words_of(inputs), path_of(manifest), warn=note),
        path_of(labels),
        choice,
        Path(out),
        groups=path_of(groups),
        overwrite=overwrite,
        progress=progress,
        note=note,
    )


def apply_cells(
    run: PathLike,
    stores: Paths,
    config: ApplyConfig | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    gpus: int | None = None,
    on: str | None = None,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Give every nucleus of stores a class and its probabilities, in the stores.

    A slide whose cells the RUN has learnt from is judged by the classifier that had held its
    group out.

    Args:
        run: folder that `train_cells` made.
        stores: stores, or folders of stores: one or several.
        config: settings as a whole; instead, each may be given by its name (`abstain=0.7`).
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, gpus, on,
            listen: see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `ApplyConfig`.

    Returns:
        One outcome a store.

    Raises:
        UsageError: no such device, or `abstain` of a one-class RUN.
        InputError: no RUN, or no stores.
        WeightsError: the RUN is damaged, or the encoder's weights are not there.
    """
    config = config_of(ApplyConfig, config, settings, "apply_cells")
    manner = Manner(
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        workers=workers,
        threads=threads,
        timeout_s=timeout_s,
        fail_fast=fail_fast,
        fork=fork,
        gpus=gpus,
        on=on,
        listen=listen,
    )
    check_device(config.device)
    jobs, folder, n_workers = _apply_jobs(Path(run), words_of(stores), config, manner)
    return run_cohort("cells apply", jobs, Classifying(), folder, manner, workers=n_workers)


def _apply_jobs(
    run: Path, words: Sequence[str], config: ApplyConfig, manner: Manner
) -> tuple[list[ApplyJob], Path, int]:
    """Return what to do with each store, where they lie, and how many at a time."""
    from cytofm_cli.cells.apply import ApplyJob
    from cytofm_cli.cells.run_folder import load_run
    from cytofm_cli.evaluate.points import read_groups
    from cytofm_cli.stats.classes import spelling_key

    run = run.absolute()
    card = load_run(run).card
    learnt = card.groups_of_slide
    if card.model == "one-class" and config.abstain:
        raise UsageError(
            f"--abstain {config.abstain:g} has no meaning for one-class.", hint="leave it out"
        )
    if config.weights is not None and not config.weights.is_file():
        what = absent(config.weights)
        raise WeightsError(f"{config.weights}: {what}.", hint="check --weights.")
    found = find_stores(words)
    group_of: Mapping[str, str] = {}
    if config.groups is not None:
        group_of, notes = read_groups(config.groups, {*map(store_id, found), *learnt})
        for line in notes:
            manner.warn(line)
    group_of = {slide: group for slide, group in group_of.items() if not is_missing(group)}
    slides_of: dict[str, list[str]] = {}
    for slide in filter(group_of.__contains__, learnt):
        slides_of.setdefault(spelling_key(group_of[slide]), []).append(slide)
    paths = take_shard(found, manner.shard, key=store_id)
    n_workers, n_threads = manner.crew(len(paths))
    jobs = [
        ApplyJob(
            slide_id=store_id(path),
            path=str(path),
            run=run,
            config=config,
            group=(group := group_of.get(store_id(path))),
            kin=() if group is None else tuple(slides_of.get(spelling_key(group), ())),
            overwrite=manner.overwrite,
            dry_run=manner.dry_run,
            threads=n_threads,
        )
        for path in paths
    ]
    return jobs, found[0].parent, n_workers


class Classifying:
    """Classifies slide after slide; RUN and encoder stay loaded. Each process gets its own."""

    def __init__(self) -> None:
        self._applying: Applying | None = None

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Classify the nuclei of one slide."""
        from cytofm_cli.cells.apply import Applying

        if self._applying is None:
            self._applying = Applying()
        return self._applying.apply(task.payload, report.progress, report.note)


@dataclass(frozen=True)
class Counts(Sequence["SlideCount"]):
    """Classes of cells by slide, and the slides that could not be counted.

    Attributes:
        counts: `slide_id`, `classes`, `n`, `n_abstained`, `n_below`, `count_C`, `share_C`, …
        top_k: of the columns `top<k>_…`.
        failures: errors of slides, by slide id.
    """

    counts: tuple[SlideCount, ...]
    top_k: int
    failures: Mapping[str, CytofmError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Any) -> Any:
        return self.counts[index]

    def __iter__(self) -> Iterator[SlideCount]:
        return iter(self.counts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What tells slides apart beside their cells: other models, thresholds, detectors."""
        from cytofm_cli.cells.count import mixture_notes

        return tuple(mixture_notes(self.counts))

    def csv(self) -> str:
        """Return the table as `cytofm cells count` writes it."""
        from cytofm_cli.cells.count import counts_csv

        return counts_csv(self.counts, self.top_k)

    def raise_failures(self) -> None:
        """Raise if a slide could not be counted; the others are.

        Raises:
            CytofmError: the error of the only slide; or that none of several could be counted.
            SomeSlidesFailedError: some failed.
        """
        errors, n = list(self.failures.values()), len(self) + len(self.failures)
        if errors and n == 1:
            raise errors[0]
        if errors and not self.counts:
            raise type(errors[0])(f"none of {n} slides could be counted: {errors[0].message}")
        if errors:
            raise SomeSlidesFailedError(
                f"{len(errors)} of {n} slides failed, the others are counted.",
                hint="see above; `cytofm cells apply` classifies their nuclei.",
            )


def count_cells(
    stores: Paths,
    out: PathLike | None = None,
    config: CountConfig | None = None,
    **settings: Any,
) -> Counts:
    """Count the classes of the nuclei of stores.

    Args:
        stores: stores, or folders of stores: one or several.
        out: table to write; None: none.
        config: settings as a whole; instead, each may be given by its name
            (`min_probability=0.9`).
        **settings: fields of `CountConfig`.

    Returns:
        One count a store; stores that cannot be counted are in `.failures`.

    Raises:
        InputError: no stores.
        OutputError: `out` cannot be written.
    """
    from cytofm_cli.cells.count import count_store
    from cytofm_cli.store.io import open_store
    from cytofm_cli.work.files import output_errors, write_text

    config = config_of(CountConfig, config, settings, "count_cells")
    counts: list[SlideCount] = []
    failures: dict[str, CytofmError] = {}
    for path in find_stores(words_of(stores)):
        try:
            counts.append(count_store(open_store(path), config))
        except CytofmError as error:
            failures[store_id(path)] = error
    of = Counts(tuple(counts), config.top_k, failures)
    if out is not None and counts:
        with output_errors(Path(out)):
            write_text(Path(out), of.csv())
    return of
