"""A RUN + stores → heat maps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, words_of
from cytofm_cli.api.inputs import find_stores, refuse_namesakes, store_id, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.errors import CytofmError, InputError
from cytofm_cli.maps.config import HeatmapConfig
from cytofm_cli.mil.run_folder import read_metrics
from cytofm_cli.work.batch import Reporter, Status, Task

if TYPE_CHECKING:
    from cytofm_cli.maps.heatmap import HeatRequest


def heatmap(
    run: PathLike,
    stores: Paths,
    out: PathLike,
    config: HeatmapConfig | None = None,
    *,
    of_class: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Draw the attention or the instance scores of a RUN on slides; what is up to date stays.

    Values that `score` has stored are taken if they are of this RUN and of what the store holds
    now; else the slide is scored. Stores are not changed.

    Args:
        run: folder of the RUN.
        stores: stores, or folders of stores: one or several.
        out: folder for the files, `<slide>.ome.tiff`, `<slide>.png` and `<slide>.geojson`.
        config: settings as a whole; instead, each may be given by its name (`what="score"`).
        of_class: the class that the map speaks for; None: the slide's answer as a whole where the
            head has such a map, else the positive class.
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, listen: see
            `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `HeatmapConfig`.

    Returns:
        One outcome a store; `facts["files"]` lists {"file", "status": "written" or "skipped"}.

    Raises:
        InputError: no RUN, no stores, or a head that weighs all instances alike.
        UsageError: no such class; the head gives no such values.
    """
    config = config_of(HeatmapConfig, config, settings, "heatmap")
    manner = Manner(
        overwrite=overwrite, dry_run=dry_run, shard=shard, workers=workers, threads=threads,
        timeout_s=timeout_s, fail_fast=fail_fast, fork=fork, listen=listen,
    )  # fmt: skip
    read_metrics(Path(run))  # before a folder is made: it is a finished RUN
    found = find_stores(words_of(stores))
    refuse_namesakes(found, hint="draw them into a folder each")
    paths = take_shard(found, shard, key=store_id)
    names = tuple(store_id(path) for path in paths)
    jobs = [
        HeatJob(name, str(path), Path(run), Path(out), config, of_class, names, overwrite, dry_run)
        for name, path in zip(names, paths, strict=True)
    ]
    n_workers, _ = manner.crew(len(paths))
    return run_cohort("heatmap", jobs, Heating(), Path(out), manner, workers=n_workers)


@dataclass(frozen=True)
class HeatJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        run: folder of the RUN.
        folder: for the files.
        config: the settings.
        of_class: the class that the map speaks for.
        slides: all slides of the call, whose patients the table of groups names.
        overwrite: make finished files anew.
        dry_run: write nothing.
    """

    slide_id: str
    path: str
    run: Path
    folder: Path
    config: HeatmapConfig
    of_class: str | None
    slides: tuple[str, ...]
    overwrite: bool
    dry_run: bool


class Heating:
    """Draws slide after slide with models that are loaded once. Each process gets its own."""

    def __init__(self) -> None:
        self._request: HeatRequest | None = None

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Write the files of one store that are not there or are out of date."""
        from cytofm_cli.exporters.product import files_of, make, status_of
        from cytofm_cli.maps.heatmap import products
        from cytofm_cli.store.io import claim_step, tidy

        job: HeatJob = task.payload
        if self._request is None:
            self._request = _request_of(job)
        wanted, heat = products(Path(job.path), self._request, report.note)
        made = [status_of(product, job.folder, overwrite=job.overwrite) for product in wanted]
        if "written" in made and not job.dry_run:
            heat()  # what cannot be drawn fails before anything is written
            with claim_step(job.folder, job.slide_id, "heatmap"):
                made = [make(product, job.folder, overwrite=job.overwrite) for product in wanted]
        elif not job.dry_run:
            tidy(job.folder, job.slide_id, "heatmap")
        told = {"store": job.path, "files": files_of(wanted, made)}
        return "done" if "written" in made else "skipped", told


def _request_of(job: HeatJob) -> HeatRequest:
    """Load the RUN, and refuse what no slide could be drawn with."""
    from cytofm_cli.maps.heat import choose_column
    from cytofm_cli.maps.heatmap import HeatRequest
    from cytofm_cli.mil.score import load_run, model_columns

    try:
        ensemble = load_run(job.run)
        card = ensemble.card
        choose_column(
            model_columns(ensemble), card.classes, job.config.what, job.of_class, card.method
        )
        if card.method == "mean" and job.config.what == "attention":
            raise InputError(
                f"{job.run}: its head, mean pooling, weighs all instances alike: no map.",
                hint="--what score, or a RUN of another head",
            )
        if job.config.groups is not None:
            known = ensemble.known.with_table(job.config.groups, job.slides)
            ensemble = dataclasses.replace(ensemble, known=known)
    except CytofmError as error:
        error.of_all_slides = True
        raise
    return HeatRequest(job.run.absolute(), ensemble, job.config, job.of_class, job.folder)
