"""The detect step for one slide: tiles → detector → `/nuclei/<detector>` in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cytofm_cli import provenance, registry
from cytofm_cli.batch import Status
from cytofm_cli.config import as_record, field_types, resolve
from cytofm_cli.errors import StoreError, UsageError
from cytofm_cli.nuclei.base import NucleusDetector, NucleusSource, NucleusTable
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.stitch import detect_tile_in_parts, merge_tiles
from cytofm_cli.store import io, lineage, schema
from cytofm_cli.store.fresh import loss_note, say_risk
from cytofm_cli.store.zarr3 import write_array
from cytofm_cli.tiles.field import open_field
from cytofm_cli.tiles.read import ordered_map

Report = Callable[[int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DetectJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        config: the settings.
        own: settings of the detector itself.
        weights_sha256: digest of `config.weights`, None without.
        overwrite: replace finished nuclei of this detector.
        dry_run: write nothing.
        threads: threads for this slide.
    """

    slide_id: str
    path: str
    config: DetectConfig
    own: Mapping[str, str] = field(default_factory=dict)
    weights_sha256: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    threads: int = 1

    @property
    def detector(self) -> str:
        """Name of the plug-in, and of the group in the store."""
        return registry.detectors.key(self.config.detector)


class Detection:
    """Runs one detector over store after store; it is loaded once."""

    def __init__(self) -> None:
        self._detector: NucleusDetector | NucleusSource | None = None

    def detect(self, job: DetectJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
        """Find the nuclei of one slide.

        Returns:
            ("done" or "skipped", facts). No nuclei is a result, and is said.

        Raises:
            CytofmError: the slide cannot be done; nothing half-written is left.
        """
        store = io.open_store(Path(job.path))
        if schema.TILE_STEP not in store.steps:
            raise StoreError(f"{job.path}: has no tiles.", hint="make them with `cytofm tile`.")
        step = schema.nuclei_step(job.detector)
        settings = self._settings(job)
        tile = store.steps[schema.TILE_STEP]
        mark = f"{tile['config_hash']}-{tile['input_fingerprint']}"
        if self._is_done(job, step, settings, mark):
            io.tidy(store.path.parent, job.slide_id, step)
            return "skipped", _facts(store, step)
        if job.dry_run:
            say_risk(store, step, note)
            return "done", {"store": job.path, "n_tiles": tile["n_tiles"]}
        with io.claim_step(store.path.parent, job.slide_id, step):
            if self._is_done(job, step, settings, mark):
                return "skipped", _facts(io.open_store(store.path), step)
            table, n_quartered = self._run(job, store, report)
            if not len(table):
                note(f"warning: {job.slide_id}: no nuclei found")
            if n_quartered:
                note(f"warning: {job.slide_id}: too little memory; {n_quartered} tiles quartered")
            record = provenance.record(
                settings,
                input_fingerprint=mark,
                n=len(table),
                n_quartered=n_quartered,
                detector=job.detector,
                classes=list(table.classes),
                weights_sha256=job.weights_sha256,
                made_from=lineage.made_from(store.steps, schema.TILE_STEP),
            )
            with io.staging(store.path.parent, job.slide_id, step) as staged:
                write_nuclei(staged, table)
                gone = io.commit_group(staged, store.path, step, record)
            if gone:
                note(loss_note(store.path, step, gone))
        return "done", _facts(io.open_store(store.path), step)

    def _is_done(self, job: DetectJob, step: str, settings: dict[str, Any], mark: str) -> bool:
        return not job.overwrite and io.is_finished(
            Path(job.path), step, config=settings, input_fingerprint=mark
        )

    def _settings(self, job: DetectJob) -> dict[str, Any]:
        """Return the settings that change a nucleus; weights count by content."""
        own = as_record(self._own_config(job), results_only=True)
        own.pop("weights", None)
        return {"detector": job.detector, "weights_sha256": job.weights_sha256, **own}

    def _own_config(self, job: DetectJob) -> Any:
        plugin = registry.detectors.load(job.detector)
        assert plugin.config is not None
        known = field_types(plugin.config)
        given: dict[str, Any] = {
            key: value
            for key, value in (("weights", job.config.weights), ("device", job.config.device))
            if key in known and value is not None
        }
        if job.config.weights is not None and "weights" not in known and "path" not in known:
            raise UsageError(f"detector {job.detector!r} takes no --weights.")
        if "path" in known and job.config.weights is not None:
            given["path"] = job.config.weights
        return resolve(plugin.config, job.detector, given, job.own)

    def _run(self, job: DetectJob, store: io.Store, report: Report) -> tuple[NucleusTable, int]:
        """Return the nuclei, and how many tiles memory could not hold at once."""
        if self._detector is None:
            made = registry.detectors.load(job.detector).make(self._own_config(job))
            self._detector = made
        detector = self._detector
        if isinstance(detector, NucleusSource):
            return detector.read(store.slide["mpp"]), 0
        with open_field(store, slides=job.config.slides) as tiles:
            find = partial(_find, detector, tiles.read, size_px=tiles.size_px, mpp=tiles.mpp)
            boxes = sorted(set(tiles.boxes))
            parts: list[NucleusTable] = []
            n_quartered = 0
            with ThreadPoolExecutor(job.threads) as pool:
                for part, count in ordered_map(pool, find, boxes, window=2 * job.threads):
                    parts.append(part)
                    n_quartered += count
                    report(len(parts), len(boxes))
            merged = merge_tiles(parts, mpp=tiles.mpp, classes=detector.classes)
            table = merged.moved(scale=tiles.downsample).validate(str(store.path))
            return table, n_quartered


def _find(detector: NucleusDetector, read: Any, box: Any, **where: Any) -> tuple[NucleusTable, int]:
    return detect_tile_in_parts(detector, read, box, **where)


def write_nuclei(folder: Path, table: NucleusTable) -> None:
    """Write the arrays of a table under `folder`, the staged group."""
    for kind, values in (
        (schema.NUCLEI_XY, table.xy_px0),
        (schema.NUCLEI_AREA, table.area_um2),
        (schema.NUCLEI_PROBABILITY, table.probability),
        (schema.NUCLEI_CLASS, table.class_id),
        (schema.NUCLEI_CONTOUR, table.contour_px0),
        (schema.NUCLEI_CONTOUR_START, table.contour_start),
    ):
        name = kind.path.rpartition("/")[2]
        write_array(folder / name, values, axes=kind.axes, attributes=kind.attributes)


def read_nuclei(store: io.Store, detector: str | None) -> tuple[str, NucleusTable]:
    """Read the nuclei of a store.

    Args:
        store: the store.
        detector: whose nuclei; None takes the only ones there are.

    Returns:
        (name of the detector, its table).

    Raises:
        StoreError: none, several and none named, or they were found on other tiles.
    """
    detector = name_of_nuclei(store, detector)
    step = schema.nuclei_step(detector)
    io.require_fresh(store, step)
    names = ("xy_px0", "area_um2", "probability", "class", "contour_px0", "contour_start")
    columns = [np.asarray(store.read(f"{step}/{name}")) for name in names]
    xy, area, probability, class_id, contour, start = columns
    table = NucleusTable(
        xy_px0=xy,
        area_um2=area,
        probability=probability,
        class_id=class_id,
        contour_px0=contour,
        contour_start=start,
        classes=tuple(store.steps[step]["classes"]),
    )
    return detector, table


def name_of_nuclei(store: io.Store, detector: str | None) -> str:
    """Return whose nuclei are meant; None means the only ones there are.

    Raises:
        StoreError: not there, or several and none named.
    """
    there = sorted(s.partition("/")[2] for s in store.steps if s.startswith("nuclei/"))
    if detector is None and len(there) == 1:
        return there[0]
    if detector is None or detector not in there:
        what = f"no nuclei of {detector!r}" if detector else "no nuclei"
        if there and detector is None:
            what = f"nuclei of {len(there)} detectors"
        hint = f"--detector {there[0]}" if there else "find them with `cytofm detect`."
        raise StoreError(f"{store.path}: holds {what}.", hint=hint)
    return detector


def _facts(store: io.Store, step: str) -> dict[str, Any]:
    record = store.steps[step]
    facts = {"store": str(store.path), "step": step, "n": record["n"]}
    # Stores of earlier versions do not say.
    return facts | ({"n_quartered": record["n_quartered"]} if record.get("n_quartered") else {})
