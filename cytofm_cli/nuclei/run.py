"""The detect step for one slide: tiles → detector → `/nuclei/<detector>` in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from cytofm_cli import registry
from cytofm_cli.config import as_record, field_types, resolve
from cytofm_cli.errors import CytofmError, InputError, UsageError
from cytofm_cli.nuclei.base import (
    BlockDetector,
    NucleusDetector,
    NucleusSource,
    NucleusTable,
)
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.in_regions import regions_of_store, within_regions
from cytofm_cli.nuclei.place import count_off_tiles, place_of
from cytofm_cli.nuclei.stitch import (
    detect_tile_in_parts,
    joined,
    merge_tiles,
    with_halo,
    without_cut,
)
from cytofm_cli.nuclei.survey import doubts, settle
from cytofm_cli.nuclei.weights import check_whole, existing_file
from cytofm_cli.regions.config import acting
from cytofm_cli.regions.files import RegionFile
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.fresh import loss_note, say_risk
from cytofm_cli.store.records import NucleiRecord
from cytofm_cli.tiles.field import Field, open_field
from cytofm_cli.tiles.read import ordered_map
from cytofm_cli.units import Box
from cytofm_cli.work.batch import Status

Report = Callable[[int, int], None]
Note = Callable[[str], None]

LARGE_NUCLEUS_UM: Final = 30.0  # hardly any is wider


@dataclass(frozen=True, kw_only=True)
class DetectJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        config: the settings.
        own: settings of the detector itself.
        weights_sha256: digest of `config.weights`, or of `nuclei`; None without.
        nuclei: the file that the detector `import` reads for this slide.
        regions: the file of its regions, if it has one.
        overwrite: replace finished nuclei of this detector.
        dry_run: write nothing.
        threads: threads for this slide.
    """

    slide_id: str
    path: str
    config: DetectConfig
    own: Mapping[str, str] = field(default_factory=dict)
    weights_sha256: str | None = None
    nuclei: Path | None = None
    regions: RegionFile | None = None
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
        self._settings: tuple[object, tuple[str, dict[str, Any]]] | None = None

    def prepare(self, job: DetectJob) -> None:
        """Load a detector with weights, for a slide that is still to be tiled.

        Raises:
            CytofmError: it cannot be loaded, for any slide.
        """
        if self._detector is None and registry.detectors.load(job.detector).weights:
            self._detector = _make(job)

    def detect(self, job: DetectJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
        """Find the nuclei of one slide.

        Returns:
            ("done" or "skipped", facts). No nuclei is a result, and is said.

        Raises:
            CytofmError: the slide cannot be done; nothing half-written is left.
        """
        if job.nuclei is None and job.config.nuclei is not None:
            raise InputError(
                f"{job.slide_id}: {job.config.nuclei} holds no nuclei of this slide.",
                hint=f"name the file after the slide, e.g. {job.slide_id}.geojson",
            )
        store = io.open_store(Path(job.path))
        mark = store.tile.mark
        detector, settings = self._settings_of(job)
        step = schema.nuclei_step(detector)
        if self._is_done(job, store, step, settings, mark):
            commit.settle(store.path, step)
            return "skipped", _facts(store, detector)
        if job.dry_run:
            say_risk(store.path, store.steps, step, note)
            return "done", {"store": job.path, "n_tiles": store.tile.n_tiles}
        with io.claim_step(store.path.parent, job.slide_id, step):
            if self._is_done(job, store.path, step, settings, mark):
                return "skipped", _facts(io.open_store(store.path), detector)
            wanted = regions_of_store(
                store, job.regions, job.config, note, slides=job.config.slides
            )
            table, facts, notes = self._run(job, store, report, note)
            table, facts["regions"] = within_regions(wanted, table, job.slide_id, note)
            # Of another program's nuclei only their absence is odd.
            odd = doubts(len(table), store) if job.nuclei is None or not len(table) else []
            for line in [*notes, *odd]:
                note(f"warning: {job.slide_id}: {line}")
            record = NucleiRecord(
                **provenance.stamp(settings, input_fingerprint=mark),
                n=len(table),
                **facts,
                detector=job.detector,
                classes=table.classes,
                weights_sha256=job.weights_sha256,
                nuclei_file=job.nuclei.name if job.nuclei else None,
                made_from=lineage.made_from(store.steps, schema.TILE_STEP),
            )
            with io.staging(store.path.parent, job.slide_id, step) as staged:
                write_nuclei(staged, table)
                gone = commit.commit_group(staged, store.path, step, record)
            if gone:
                note(loss_note(store.path, step, gone))
        return "done", _facts(io.open_store(store.path), detector)

    def _settings_of(self, job: DetectJob) -> tuple[str, dict[str, Any]]:
        """Return the detector's name, and `settings_of`: mostly those of the slide before."""
        asked = (job.config, job.own, job.weights_sha256, job.nuclei, job.regions)
        if self._settings is None or self._settings[0] != asked:
            self._settings = asked, (job.detector, settings_of(job))
        return self._settings[1]

    def _is_done(
        self, job: DetectJob, where: Path | io.Store, step: str, settings: dict[str, Any], mark: str
    ) -> bool:
        return not job.overwrite and commit.is_finished(
            where, step, config=settings, input_fingerprint=mark
        )

    def _run(
        self, job: DetectJob, store: io.Store, report: Report, note: Note
    ) -> tuple[NucleusTable, dict[str, Any], list[str]]:
        """Return the nuclei, fields of the record, and what the user should know."""
        # A network is loaded once; a file of nuclei is another one for each slide.
        if self._detector is None or job.nuclei is not None:
            self._detector = _make(job)
        if isinstance(self._detector, NucleusSource):
            return _from_file(self._detector, job, store, note), {"n_quartered": 0}, []
        with open_field(store, slides=job.config.slides) as tiles:
            detector, other, notes = settle(self._detector, tiles, store)
            find = partial(_find, detector, tiles, store.path)
            block_um = detector.block_um if isinstance(detector, BlockDetector) else 0.0
            boxes = joined(tiles.boxes, 0 if tiles.apart else int(block_um / tiles.mpp))
            area = sum(box.w * box.h for box in boxes)
            n_tiles, parts, seen = len(set(tiles.boxes)), [], 0
            with ThreadPoolExecutor(job.threads) as pool:
                for box, part in zip(
                    boxes, ordered_map(pool, find, boxes, window=2 * job.threads), strict=True
                ):
                    parts.append(part)
                    seen += box.w * box.h
                    report(seen * n_tiles // area, n_tiles)
            tables = [part.table for part in parts]
            merged = merge_tiles(tables, mpp=tiles.mpp, classes=detector.classes)
            table = merged.moved(scale=tiles.downsample).validate(str(store.path))
            n_quartered = sum(part.n_quartered for part in parts)
            n_cut = sum(part.n_cut for part in parts)
            facts: dict[str, Any] = {"n_quartered": n_quartered, "n_cut": n_cut}
            facts |= {"beyond_tiles": tuple(tiles.beyond), "other": other}
        n_narrow = sum(part.is_narrow for part in parts)
        if n_narrow:
            notes.append(
                f"{n_narrow} of {len(boxes)} groups of tiles are narrower than a large nucleus "
                f"({LARGE_NUCLEUS_UM:g} µm), and the store does not hold what lies around them: "
                "nuclei there may be missed or in pieces; --slides DIR, where the slide is, "
                "completes them"
            )
        if n_quartered:
            notes.append(f"too little memory; {n_quartered} parts quartered")
        if n_cut:
            notes.append(
                f"{n_cut} nuclei at the ends of tiles left out, cut by pixels that the store does "
                "not hold; --slides DIR, where the slide is, completes them"
            )
        return table, facts, notes


def settings_of(job: DetectJob) -> dict[str, Any]:
    """Return the settings that change a nucleus; weights count by content.

    Raises:
        UsageError: no such detector, or settings that it does not take.
        MissingPackageError: what the detector needs is not installed.
    """
    config = _own_config(job)
    own = {} if config is None else as_record(config, results_only=True)
    for path in ("weights", "nuclei"):
        own.pop(path, None)
    version = registry.detectors.load(job.detector).version
    made_by = {"version": version} if version > 1 else {}
    regions = acting(vars(job.config), None if job.regions is None else job.regions.sha256)
    regions.pop("region_label", None)  # nuclei get no labels of regions
    return {
        "detector": job.detector,
        "weights_sha256": job.weights_sha256,
        **made_by,
        **own,
        **regions,
    }


def check_weights(job: DetectJob) -> None:
    """Refuse a detector without the weight file that it needs, before anything is loaded.

    Raises:
        WeightsError: none was given, there is none, or it is damaged.
    """
    needs = registry.detectors.load(job.detector).weights
    if needs:
        path = getattr(_own_config(job), "weights", None)
        check_whole(existing_file(path, job.detector, needs))


def _own_config(job: DetectJob) -> Any:
    plugin = registry.detectors.load(job.detector)
    known = {} if plugin.config is None else field_types(plugin.config)
    given: dict[str, Any] = {
        key: value
        for key, value in (
            ("weights", job.config.weights),
            ("nuclei", job.nuclei),
            ("device", job.config.device),
        )
        if key in known and value is not None
    }
    if job.config.weights is not None and "weights" not in known and "path" not in known:
        raise UsageError(
            f"--weights: detector {job.config.detector!r} takes none.",
            hint="leave it out, or name its detector with --detector: `cytofm detectors`.",
        )
    if "path" in known and job.config.weights is not None:
        given["path"] = job.config.weights
    if plugin.config is None:
        if job.own:
            raise UsageError(f"--set: detector {job.config.detector!r} has no settings.")
        return None
    return resolve(plugin.config, job.detector, given, job.own)


def _make(job: DetectJob) -> NucleusDetector | NucleusSource:
    """Make the detector; what is wrong with its weights or device is so for every slide."""
    try:
        make, config = registry.detectors.load(job.detector).make, _own_config(job)
        detector: NucleusDetector | NucleusSource = make() if config is None else make(config)
    except CytofmError as error:
        error.of_all_slides = job.nuclei is None
        raise
    return detector


def _from_file(source: NucleusSource, job: DetectJob, store: io.Store, note: Note) -> NucleusTable:
    note(f"{job.slide_id}: nuclei from {job.nuclei}")
    place = place_of(store, note, slides=job.config.slides)
    table = source.read(store.slide.mpp, place, note)
    n_off = count_off_tiles(store, table)
    if n_off:
        note(
            f"warning: {job.slide_id}: {n_off} of {len(table)} nuclei lie in no tile of the store: "
            "their pixels are not at hand"
        )
    return table


@dataclass(frozen=True)
class _Found:
    """The nuclei of a tile, and how many boxes were quartered and nuclei left out.

    `is_narrow`: a large nucleus has no room in it, and what lies around it is not at hand.
    """

    table: NucleusTable
    n_quartered: int
    n_cut: int
    is_narrow: bool


def _find(detector: NucleusDetector, tiles: Field, store: Path, box: Box) -> _Found:
    try:
        table, n_quartered = detect_tile_in_parts(
            detector, tiles.read, box, size_px=tiles.size_px, mpp=tiles.mpp
        )
    except InputError as error:  # a detector does not know of which slide its pixels are
        error.message = f"{store}: {error.message}"
        error.args = (error.message,)
        raise
    outer = with_halo(box, round(detector.halo_um / tiles.mpp), tiles.size_px)
    known = tiles.known(outer)
    whole = without_cut(table, known, outer)
    is_narrow = min(box.w, box.h) * tiles.mpp < LARGE_NUCLEUS_UM and not known.all()
    return _Found(whole, n_quartered, len(table) - len(whole), bool(is_narrow))


def write_nuclei(folder: Path, table: NucleusTable) -> None:
    """Write the arrays of a table under `folder`, the staged group."""
    fixed: list[tuple[schema.ArrayKind, NDArray[Any]]] = [
        (schema.NUCLEI_XY, table.xy_px0),
        (schema.NUCLEI_AREA, table.area_um2),
        (schema.NUCLEI_PROBABILITY, table.probability),
        (schema.NUCLEI_CLASS, table.class_id),
        (schema.NUCLEI_CONTOUR, table.contour_px0),
        (schema.NUCLEI_CONTOUR_START, table.contour_start),
    ]
    measured = [(schema.NUCLEI_COLUMNS[name], column) for name, column in table.columns.items()]
    for kind, values in (*fixed, *measured):
        arrays.write(folder, kind, values)


def _facts(store: io.Store, detector: str) -> dict[str, Any]:
    record = store.nuclei_record(detector)
    facts = {"store": str(store.path), "step": schema.nuclei_step(detector), "n": record.n}
    if record.nuclei_file:
        facts["nuclei_file"] = record.nuclei_file
    return facts | ({"n_quartered": record.n_quartered} if record.n_quartered else {})
