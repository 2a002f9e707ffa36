"""Encoders + stores → what their heads look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import find_stores, refuse_namesakes, store_id
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.config import as_record
from cytofm_cli.errors import CytofmError
from cytofm_cli.maps.config import AttentionConfig
from cytofm_cli.work.batch import Outcome, Reporter, Status, Task

if TYPE_CHECKING:
    from cytofm_cli.evaluate.choice import Choice
    from cytofm_cli.maps.enrichment import Row, SlideShares
    from cytofm_cli.maps.networks import Looker

FILES: Final = ("attention.csv", "slides.csv", "attention.json", "heads.png", "heads.svg")


@dataclass(frozen=True)
class Attention:
    """What the heads of encoders look at.

    Attributes:
        rows: of each network (`label`), a `Row` a head and compartment.
        outcomes: one a store.
        files: what was written.
    """

    rows: Mapping[str, Sequence[Row]]
    outcomes: Outcomes
    files: tuple[Path, ...] = ()


def attention(
    stores: Paths,
    out: PathLike,
    config: AttentionConfig | None = None,
    *,
    encoders: str | Sequence[str] = "cytofm-tiny",
    weights: PathLike | None = None,
    random_weights: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    listen: Listen | None = None,
    **settings: Any,
) -> Attention:
    """Measure and draw what the heads of the last layer look at: nucleus, cytoplasm, other.

    Args:
        stores: stores with tiles and nuclei, or folders of stores: one or several.
        out: folder for attention.csv, slides.csv, attention.json, heads.png and heads.svg; they
            are replaced.
        config: settings as a whole; instead, each may be given by its name (`unit="tile"`).
        encoders: NAME, weight FILE, or NAME=FILE; one or several.
        weights: weight file of the one encoder that needs one.
        random_weights: random weights for encoders that need weights and name no file.
        dry_run: check encoders and stores, measure nothing.
        workers, threads, timeout_s, fail_fast, fork, listen: see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `AttentionConfig`.

    Returns:
        the table, and what became of each store; a store that fails leaves the others.

    Raises:
        UsageError: an encoder without attention, or impossible settings.
        WeightsError: weights are missing or do not fit.
        InputError: no stores.
    """
    from cytofm_cli.evaluate.choice import choose
    from cytofm_cli.work.device import check_device

    config = config_of(AttentionConfig, config, settings, "attention")
    check_device(config.device)
    manner = Manner(
        dry_run=dry_run, workers=workers, threads=threads, timeout_s=timeout_s,
        fail_fast=fail_fast, fork=fork, listen=listen,
    )  # fmt: skip
    choices = choose(
        words_of(encoders), weights=path_of(weights), random_weights=random_weights,
        seed=config.seed,
    )  # fmt: skip
    paths = find_stores(words_of(stores))
    refuse_namesakes(paths, hint="look at them apart: -o")
    n_workers, n_threads = manner.crew(len(paths))
    jobs = [
        LookJob(store_id(path), str(path), tuple(choices), config, n_threads, dry_run)
        for path in paths
    ]
    outcomes = run_cohort("attention", jobs, Looking(), Path(out), manner, workers=n_workers)
    done = {o.slide_id: o for o in outcomes if o.status == "done"}
    if dry_run or not done:
        return Attention({}, outcomes)
    return _summed_up(done, outcomes, choices, config, Path(out), manner)


@dataclass(frozen=True)
class LookJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        choices: the encoders.
        config: the settings.
        threads: for this slide.
        dry_run: measure nothing.
    """

    slide_id: str
    path: str
    choices: tuple[Choice, ...]
    config: AttentionConfig
    threads: int
    dry_run: bool


class Looking:
    """Measures slide after slide with networks that are loaded once. Each process gets its own."""

    def __init__(self) -> None:
        self._lookers: list[Looker] | None = None

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Measure one slide."""
        from cytofm_cli.maps.look import measure_slide

        job: LookJob = task.payload
        first = self._lookers is None
        if self._lookers is None:
            self._lookers = _open(job.choices, job.config)
        for looker in self._lookers if first else ():
            for line in looker.inner.notes:
                report.note(line)
        if job.dry_run:
            return "done", {"store": job.path, "files": []}
        found = measure_slide(
            Path(job.path), self._lookers, job.config, threads=job.threads, report=report.progress
        )
        return "done", {"store": job.path, "files": [], "attention": found}


def _open(choices: Sequence[Choice], config: AttentionConfig) -> list[Looker]:
    from cytofm_cli.maps.networks import open_lookers

    try:
        return open_lookers(choices, config, config.device)
    except CytofmError as error:
        error.of_all_slides = True
        raise


def _summed_up(
    done: Mapping[str, Outcome],
    outcomes: Outcomes,
    choices: Sequence[Choice],
    config: AttentionConfig,
    out: Path,
    manner: Manner,
) -> Attention:
    """Put slides together, draw the picture, and write all files at the end."""
    from cytofm_cli import __version__
    from cytofm_cli.maps import enrichment, examples, figure, results
    from cytofm_cli.pictures.files import png_bytes
    from cytofm_cli.work.files import output_errors, write_bytes, write_json, write_text

    lookers = _open(choices, config)
    of_slides: dict[str, dict[str, SlideShares]] = {
        slide: {
            label: enrichment.SlideShares.from_record(record)
            for label, record in outcome.facts["attention"].items()
        }
        for slide, outcome in done.items()
    }
    tables = {
        looker.label: enrichment.over_slides(
            [found[looker.label] for found in of_slides.values()],
            list(of_slides),
            replicates=config.replicates,
            seed=config.seed,
        )
        for looker in lookers
    }
    shown = examples.examples_of([Path(outcome.path) for outcome in done.values()], lookers, config)
    page = examples.page_of(shown, lookers, tables)
    n_images = sum(next(iter(found.values())).n_images for found in of_slides.values())
    record = {
        "cytofm": __version__,
        "settings": as_record(config, results_only=True),
        "slides": list(of_slides),
        "images": n_images,
        "failed": [outcome.slide_id for outcome in outcomes.failed],
        "networks": results.record_of(lookers, tables),
    }
    files = [out / name for name in FILES]
    with output_errors(out):
        write_text(files[0], results.table_csv(lookers, tables, (len(of_slides), n_images)))
        write_text(files[1], results.slides_csv(lookers, of_slides))
        write_json(files[2], record, indent=1)
        write_bytes(files[3], png_bytes(figure.draw(page)))
        write_text(files[4], figure.svg(page))
    if len(of_slides) < 8:
        manner.say(f"{len(of_slides)} slides: intervals hold their level from 8 on")
    return Attention(tables, outcomes, tuple(files))
