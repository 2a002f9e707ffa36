"""Stores → pages and sheets of their cells, in several orders."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.failures import refuse_passing
from cytofm_cli.api.given import PathLike, Paths, config_of, words_of
from cytofm_cli.api.inputs import find_stores, refuse_namesakes, store_id
from cytofm_cli.errors import InputError, OutputError, StoreError
from cytofm_cli.report import chosen, orders
from cytofm_cli.report.chosen import Gallery, StoreJob
from cytofm_cli.report.config import GalleryConfig
from cytofm_cli.report.crops import CellPicture
from cytofm_cli.report.gallery import PAGE, TABLE, gallery_files
from cytofm_cli.report.tables import grouped
from cytofm_cli.runs.folder import holding, publish, restore
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.files import flush_folder, output_errors, real_place, write_bytes


@dataclass(frozen=True)
class MadeGallery:
    """A gallery that was written.

    Attributes:
        page: `index.html` of its folder.
        files: all it holds, by name.
        galleries: what is shown: orders and their cells.
        warnings: what is missing.
    """

    page: Path
    files: tuple[str, ...]
    galleries: tuple[Gallery, ...]
    warnings: tuple[str, ...]


def make_gallery(
    stores: Paths,
    out: PathLike,
    config: GalleryConfig | None = None,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fork: bool = False,
    listen: Listen | None = None,
    **settings: Any,
) -> MadeGallery:
    """Show the cells of stores in several orders, as a page, PNG sheets and a table; needs no RUN.

    Args:
        stores: stores, or folders of stores, with nuclei.
        out: folder for `index.html`, sheets and `cells.csv`.
        config: settings as a whole; instead, each may be given by its name (`by=("area_um2",)`).
        overwrite: replace a gallery that is there.
        workers, threads, timeout_s, fork, listen: see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `GalleryConfig`.

    Raises:
        UsageError: no such order.
        InputError: no stores, or no store has any nuclei or any of the orders.
        OutputError: `out` exists, or cannot be written.
        TryAgainError: see `refuse_passing`.
    """
    config = config_of(GalleryConfig, config, settings, "make_gallery")
    orders.check_names(config.by)
    folder = Path(out)
    restore(real_place(folder))
    refuse_existing(folder, overwrite=overwrite)
    paths = find_stores(words_of(stores))
    refuse_namesakes(paths, hint="make a gallery of each folder")
    manner = Manner(
        workers=workers, threads=threads, timeout_s=timeout_s, fork=fork, listen=listen,
        only_reads=True,
    )  # fmt: skip
    galleries, warnings = _choose(paths, config, folder, manner)
    pictures, missing = _draw(paths, galleries, config, folder, manner)
    warnings += missing
    files = gallery_files(galleries, pictures, config, n_stores=len(paths), warnings=warnings)
    _write(folder, files)
    return MadeGallery(folder / PAGE, tuple(files), tuple(galleries), tuple(warnings))


def rank_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Rank the nuclei of one store."""
    ranked, lacking = chosen.rank(task.payload)
    return "done", {"ranked": ranked, "lacking": lacking}


def draw_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Draw the chosen nuclei of one store."""
    return "done", {"pictures": chosen.draw(task.payload)}


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace a folder that is no gallery, or that may stay.

    Raises:
        OutputError: it is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / PAGE).is_file() or not (folder / TABLE).is_file():
        raise OutputError(f"{folder}: exists and is no gallery.", hint="choose another -o")
    if not overwrite:
        raise OutputError(
            f"{folder}: exists.", hint="`--overwrite` replaces it; or choose another -o"
        )


def _choose(
    paths: Sequence[Path], config: GalleryConfig, folder: Path, manner: Manner
) -> tuple[list[Gallery], list[str]]:
    """Rank all stores; return the galleries, and what is missing.

    Raises:
        InputError: nothing can be shown.
    """
    jobs = [StoreJob(store_id(path), str(path), config) for path in paths]
    outcomes = run_cohort(
        "gallery", jobs, rank_one, folder.parent, manner, workers=manner.crew(len(jobs))[0]
    )
    refuse_passing(outcomes)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) == len(paths):
        raise InputError(f"none of {len(paths)} store(s): {errors[0].message}", hint=errors[0].hint)
    told = {o.slide_id: [o.error.one_line()] for o in outcomes if o.error is not None}
    done = [outcome for outcome in outcomes if outcome.error is None]
    lacking = {outcome.slide_id: outcome.facts["lacking"] for outcome in done}
    ranked = {outcome.slide_id: outcome.facts["ranked"] for outcome in done}
    galleries = [one for one in chosen.together(ranked, config) if one.cells]
    if not galleries:
        none = StoreError("they have no nuclei.", hint="`cytofm detect` finds nuclei")
        why = next((why for of in lacking.values() for why in of.values()), none)
        raise InputError(f"nothing to show of {len(paths)} store(s): {why.message}", hint=why.hint)
    for name in dict.fromkeys(name for of in lacking.values() for name in of):
        if name in config.by or any(gallery.name == name for gallery in galleries):
            for slide, of in lacking.items():
                told.setdefault(slide, []).extend([of[name].one_line()] if name in of else [])
    return galleries, grouped(told)


def _draw(
    paths: Sequence[Path],
    galleries: Sequence[Gallery],
    config: GalleryConfig,
    folder: Path,
    manner: Manner,
) -> tuple[dict[tuple[str, int], CellPicture], list[str]]:
    """Draw each chosen cell once; return the pictures, and where there are no pixels."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for gallery in galleries:
        for cell in gallery.cells:
            wanted[cell.slide_id].add(cell.row)
    jobs = [
        StoreJob(name, str(path), config, tuple(sorted(wanted[name])))
        for path in paths
        if (name := store_id(path)) in wanted
    ]
    outcomes = run_cohort(
        "gallery", jobs, draw_one, folder.parent, manner, workers=manner.crew(len(jobs))[0]
    )
    refuse_passing(outcomes)
    pictures: dict[tuple[str, int], CellPicture] = {}
    told: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            told[outcome.slide_id] = [outcome.error.one_line()]
            continue
        for row, picture in outcome.facts["pictures"].items():
            pictures[outcome.slide_id, row] = picture
    return pictures, grouped(told)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder that is visible only when it is whole."""
    folder = real_place(folder)
    staging = folder.parent / f".{folder.name}.partial"
    with output_errors(folder), holding(folder):
        shutil.rmtree(staging, ignore_errors=True)
        for name, data in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(staging / name, data, flush=False)
        flush_folder(staging)
        publish(staging, folder)
