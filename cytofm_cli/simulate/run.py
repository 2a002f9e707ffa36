"""One slide of a cohort, written whole.

The folder of a cohort is a RUN. Beside what its command promises it holds, for each slide that is
done, `truth/<slide_id>.json`: the last of its files to appear, with what the tables need.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from cytofm_cli.errors import CytofmError
from cytofm_cli.pictures.pyramid import level_sizes
from cytofm_cli.simulate.cohort import Slide
from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.dicom import COLOUR, level_name, write_dicom
from cytofm_cli.simulate.layout import Placement
from cytofm_cli.simulate.parts import LABELS, Part, PartMaker, PartTask, tasks_of
from cytofm_cli.simulate.preset import Preset
from cytofm_cli.simulate.render import Scene
from cytofm_cli.simulate.space import forecast_bytes
from cytofm_cli.simulate.truth import FOOT, HEAD
from cytofm_cli.simulate.write import (
    Film,
    Waiting,
    rows_of,
    tiles_in_order,
    write_jpeg,
    write_labels,
    write_ome,
    write_png,
    write_svs,
)
from cytofm_cli.work.batch import Status
from cytofm_cli.work.claim import claim
from cytofm_cli.work.files import output_errors, remove_partials, replacing, write_json
from cytofm_cli.work.pool import in_processes
from cytofm_cli.work.signals import catch_signals

SLIDES, TRUTH = "slides", "truth"
_MANY_PARTS: Final = 9  # from here on a slide is worth processes of its own
_WRITERS: Final = {
    "ome-tiff": write_ome,
    "svs-like": write_svs,
    "jpeg": write_jpeg,
    "png": write_png,
    "dicom": write_dicom,
}

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SimulateJob:
    """What to do with one slide.

    Attributes:
        slide: which.
        folder: of the cohort.
        config: its settings.
        preset: as read, so that all slides are of the same.
        threads: processes that share out a large slide.
        dry_run: only say how much it takes.
    """

    slide: Slide
    folder: Path
    config: SimulateConfig
    preset: Preset
    threads: int = 1
    dry_run: bool = False

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.slide.slide_id

    @property
    def path(self) -> str:
        """Its file."""
        return str(self.config.slide_path(self.folder, self.slide_id))

    @property
    def files(self) -> list[Path]:
        """Files that hold the pixels: of DICOM one a level."""
        path = Path(self.path)
        if self.config.format != "dicom":
            return [path]
        levels = range(len(level_sizes(self.slide.size_px)))
        return [path / level_name(level) for level in levels]

    def truth(self, end: str) -> Path:
        """Return a file of its truth."""
        return self.folder / TRUTH / f"{self.slide_id}{end}"


def simulate_slide(job: SimulateJob, report: Report) -> tuple[Status, dict[str, Any]]:
    """Write one slide with its truth.

    Returns:
        ("done" or "skipped", facts).

    Raises:
        CytofmError: it cannot be written; none of its files is there then.
    """
    held = job.truth(".claim").with_name(f".{job.slide_id}.claim")
    if (facts := done(job)) is not None:
        if held.exists() and not job.dry_run:  # of a process that was killed once it was done
            with contextlib.suppress(CytofmError), claim(held):
                pass
        return "skipped", facts
    if job.dry_run:
        return "done", {"bytes": forecast_bytes(job.config, job.preset)}
    with output_errors(job.folder):
        for name in (SLIDES, TRUTH):
            (job.folder / name).mkdir(parents=True, exist_ok=True)
        with claim(held):
            if (facts := done(job)) is not None:  # another process did it meanwhile
                return "skipped", facts
            facts = _write(job, report)
            write_json(job.truth(".json"), facts)
    return "done", facts


def done(job: SimulateJob) -> dict[str, Any] | None:
    """Return the facts of a slide that is done; None: it is not."""
    try:
        facts = json.loads(job.truth(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ends = (".geojson", ".csv", *(f".{of}.tif" for of in LABELS))
    files = [*job.files, *(job.truth(end) for end in ends)]
    return facts if isinstance(facts, dict) and all(file.exists() for file in files) else None


def _write(job: SimulateJob, report: Report) -> dict[str, Any]:
    """Write all files of a slide but the last; they appear when all of them are whole."""
    slide, preset, config = job.slide, job.preset, job.config
    if config.format == "dicom":
        preset = replace(preset, optics=replace(preset.optics, jpeg_colour=COLOUR))
    scene = Scene(slide, preset)
    film = Film(mpp=preset.mpp, blank=scene.blank, optics=preset.optics)
    tasks = tasks_of(slide)
    with contextlib.ExitStack() as stack:
        pixels = stack.enter_context(_place(Path(job.path), config))
        truth = stack.enter_context(_Truth.open(job))
        parts = stack.enter_context(
            contextlib.closing(
                _parts(tasks, scene, job.threads, tiled=not config.is_picture, report=report)
            )
        )
        rows = truth.passing(rows_of(parts, slide.size_px))
        _WRITERS[config.format](pixels, rows, slide, film)
        truth.finish(film.mpp)
    return {
        **_facts(job, scene.placement, truth),
        "bytes": sum(file.stat().st_size for file in job.files),
    }


@contextlib.contextmanager
def _place(path: Path, config: SimulateConfig) -> Generator[Path, None, None]:
    """Give where the pixels are written: a file that appears when it is whole, or a folder."""
    if config.format != "dicom":
        with replacing(path) as partial:
            yield partial
        return
    path.mkdir(exist_ok=True)
    remove_partials(path)
    yield path  # its files appear one by one


def _facts(job: SimulateJob, placement: Placement, truth: _Truth) -> dict[str, Any]:
    slide = job.slide
    return {
        "slide_id": slide.slide_id,
        "group": slide.patient,
        "label": slide.label,
        "diagnosis": slide.diagnosis,
        "abnormal_share": slide.share,
        "size_px": slide.size_px,
        "mpp": job.preset.mpp,
        "n_cells": truth.n_cells,
        "expected_marked": placement.expected,
        "sheets": dict(sorted(Counter(truth.sheets.values()).items())),
    }


class _Truth:
    """The files of truth of a slide, filled as its parts pass."""

    def __init__(self, job: SimulateJob, geojson: IO[bytes], rows: IO[str]) -> None:
        self._job, self._geojson, self._rows = job, geojson, rows
        self._waiting = {of: Waiting(job.folder / TRUTH) for of in LABELS}
        self._paths: dict[str, Path] = {}
        self._is_first = True
        self.n_cells = 0
        self.sheets: dict[int, str] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, job: SimulateJob) -> Generator[_Truth, None, None]:
        """Open the files; they appear at the end, or not at all."""
        with contextlib.ExitStack() as stack:
            names = (".geojson", ".csv", *(f".{of}.tif" for of in LABELS))
            partial = {end: stack.enter_context(replacing(job.truth(end))) for end in names}
            geojson = stack.enter_context(partial[".geojson"].open("wb"))
            rows = stack.enter_context(partial[".csv"].open("w", encoding="utf-8", newline=""))
            truth = cls(job, geojson, rows)
            truth._paths = {of: partial[f".{of}.tif"] for of in LABELS}
            for waiting in truth._waiting.values():
                stack.callback(waiting.close)
            geojson.write(HEAD)
            yield truth

    def passing(self, rows: Iterator[list[Part]]) -> Iterator[list[Part]]:
        """Hand rows of parts on, and write down what they tell."""
        for row in rows:
            for part in row:
                self._take(part)
            for of, waiting in self._waiting.items():
                labels = [part.labels[of] for part in row if of in part.labels]
                if labels:  # only the first plane has them
                    for tile in tiles_in_order(labels, self._job.slide.size_px):
                        waiting.add(tile)
            yield row

    def finish(self, mpp: float) -> None:
        """Write the label images, and the end of the GeoJSON."""
        self._geojson.write(FOOT)
        for of, waiting in self._waiting.items():
            write_labels(self._paths[of], waiting.tiles(), self._job.slide, mpp)

    def _take(self, part: Part) -> None:
        self.n_cells += part.n_cells
        self.sheets |= part.sheets
        self._rows.write(part.rows)
        features = part.features[1:] if self._is_first else part.features
        self._is_first = self._is_first and not part.features
        self._geojson.write(features)


def _parts(
    tasks: list[PartTask], scene: Scene, threads: int, *, tiled: bool, report: Report
) -> Generator[Part, None, None]:
    """Make the parts of a slide in their order, here or in processes of their own."""
    if threads <= 1 or len(tasks) < _MANY_PARTS:
        make = PartMaker(scene, tiled=tiled)
        for task in tasks:
            yield make(task)
            report(task.number + 1, len(tasks))
        return
    early: dict[int, Part] = {}
    wanted = 0
    workers = min(threads, len(tasks))
    with catch_signals() as stop:
        start = (scene.slide, scene.preset, tiled)
        with contextlib.closing(
            in_processes(_make_part, tasks, workers, stop, _start_making, *start)
        ) as made:
            for task, part in made:
                early[task.number] = part
                report(task.number + 1, len(tasks))
                while wanted in early:
                    yield early.pop(wanted)
                    wanted += 1


_maker: list[PartMaker] = []  # of this process


def _start_making(slide: Slide, preset: Preset, tiled: bool) -> None:
    _maker[:] = [PartMaker(Scene(slide, preset), tiled=tiled)]


def _make_part(task: PartTask) -> Part:
    return _maker[0](task)
