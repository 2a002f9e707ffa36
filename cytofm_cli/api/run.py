"""Slides → tiles → nuclei → bags, then scores and files: all steps, slide by slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.detect import check_detector, detect_jobs, nuclei_of, with_nuclei
from cytofm_cli.api.embed import check_encoder, crew_for, store_jobs
from cytofm_cli.api.export import ExportJob
from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, plugin_settings, words_of
from cytofm_cli.api.inputs import SlideRef, check_reader, find_slides, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.api.pipeline import RunJob, Running, ScoreJob
from cytofm_cli.api.regions import regions_of
from cytofm_cli.config import Layer, Settings
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.errors import UsageError
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.exporters.plan import ExportPlan
from cytofm_cli.mil import run_folder
from cytofm_cli.mil.config import ScoreConfig
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.slides import ngff
from cytofm_cli.store import schema
from cytofm_cli.store.io import store_path
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.urls import is_url
from cytofm_cli.work.files import output_errors, write_text

if TYPE_CHECKING:
    from cytofm_cli.regions.files import RegionFile

C = TypeVar("C", bound=Settings)
Bag = EmbedConfig | Mapping[str, Any]
# The parts of `out`.
STORES, EXPORT, SCORES = "stores", "export", "scores.csv"


def run(
    slides: Paths | None = None,
    out: PathLike = "out",
    *,
    tile: TileConfig | Mapping[str, Any] | None = None,
    detect: DetectConfig | Mapping[str, Any] | None = None,
    embed: Bag | Sequence[Bag] | None = None,
    model: PathLike | None = None,
    score: ScoreConfig | Mapping[str, Any] | None = None,
    export: ExportConfig | Mapping[str, Any] | None = None,
    manifest: PathLike | None = None,
    preview: PathLike | None = None,
    detector_settings: Mapping[str, Any] | None = None,
    exporter_settings: Mapping[str, Any] | None = None,
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
) -> Outcomes:
    """Tile slides, find their nuclei and embed them, slide by slide; what is finished is skipped.

    The stores are those that `tile`, `detect`, `embed` and `score` make one after the other with
    the same settings, and each goes on where another stopped.

    Args:
        slides: slides, folders, globs, URLs: one or several.
        out: folder of everything: `stores`, `failures.jsonl`, with `model` `scores.csv`, with
            `export` the folder `export`.
        tile, detect: settings of these steps, as a whole or by name (`{"tile_px": 256}`).
        embed: of the bag to make, or of several; None: cells, with the encoder for them.
        model: RUN of `train` to score with.
        score: settings of that.
        export: what to write of each store; None: nothing.
        manifest: table slide_id,path[,mpp] of slides, instead of `slides` or besides.
        preview: folder for pictures of the mask and the chosen tiles.
        detector_settings, exporter_settings: settings of these plug-ins, by name.
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, gpus, on,
            listen: see `cytofm_cli.api.cohort.Manner`.

    Returns:
        One outcome a slide; `facts["steps"]` says of each step its status and what it made.
        `facts["step"]` of a failure names the step.

    Raises:
        UsageError: no such detector, encoder, device or kind of file, or impossible settings.
        WeightsError: weights are missing or do not fit.
        InputError: no slides, or a manifest or RUN that cannot be used.
        OutputError: `out` cannot be written.
    """
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
    plan = _plan(tile, detect, embed, model, score, export, manner)
    own = plugin_settings(detector_settings, "detector_settings")
    files = plugin_settings(exporter_settings, "exporter_settings")
    digests = _check(plan, own, files)
    words = words_of(slides)
    _refuse_stores(words)
    refs = find_slides(words, path_of(manifest), warn=manner.warn)
    jobs = _Jobs(plan, manner, Path(out), own, files, path_of(preview))
    made, workers = jobs.of(refs, digests)
    folders = [jobs.stores, *([jobs.folder / EXPORT] if plan.export is not None else [])]
    for folder in () if dry_run else folders:
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    outcomes = run_cohort("run", made, Running(), Path(out), manner, workers=workers)
    if plan.model is not None and not dry_run:
        _write_scores(_of_shard(Path(out) / SCORES, manner.shard), outcomes)
    return outcomes


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The settings of all steps."""

    tile: TileConfig
    detect: DetectConfig
    embed: tuple[EmbedConfig, ...]
    model: Path | None
    score: ScoreConfig
    export: ExportConfig | None


def _plan(
    tile: Any, detect: Any, embed: Any, model: Any, score: Any, export: Any, manner: Manner
) -> _Plan:
    """Return the settings, checked each by itself.

    Raises:
        UsageError: there are some that cannot be.
    """
    several = embed if isinstance(embed, list | tuple) else [embed or {"unit": "cell"}]
    bags = tuple(_config(EmbedConfig, one, "embed") for one in several)
    names = [(bag.unit, bag.encoder, bag.weights) for bag in bags]
    if len(set(names)) < len(names):
        raise UsageError("run(): two bags of the same unit and encoder.", hint="leave one out")
    return _Plan(
        tile=_config(TileConfig, tile, "tile"),
        detect=with_nuclei(_config(DetectConfig, detect, "detect"), manner),
        embed=bags,
        model=path_of(model),
        score=_config(ScoreConfig, score, "score"),
        export=None if export is None else _of_unit(_config(ExportConfig, export, "export"), bags),
    )


def _config(cls: type[C], given: C | Mapping[str, Any] | None, name: str) -> C:
    if isinstance(given, Mapping) or given is None:
        return config_of(cls, None, given or {}, f"run({name}=…)")
    return config_of(cls, given, {}, f"run({name}=…)")


def _of_unit(config: ExportConfig, bags: Sequence[EmbedConfig]) -> ExportConfig:
    """Write bags of the unit that there is, if the settings name none."""
    units = {bag.unit for bag in bags}
    if config.unit is not None or len(units) != 1:
        return config
    chosen = ExportPlan.of(config).chosen.values()
    (unit,) = units
    takes = any("bags" in plugin.what and "unit" in plugin.options for plugin in chosen)
    return replace(config, unit=unit) if takes else config


def _check(plan: _Plan, own: Layer, files: Layer) -> list[str | None]:
    """Refuse, before the first slide, what would fail on all; return the digests of weights."""
    from cytofm_cli.encoders.recorded import digest_of_weights

    check_reader(plan.tile.reader)
    check_detector(plan.detect, own)
    digests = []
    for bag in plan.embed:
        digests.append(digest_of_weights(bag))
        check_encoder(bag)
    if plan.export is not None:
        ExportPlan.of(plan.export, files)
    if plan.model is not None:
        _check_model(plan.model, plan.embed)
    return digests


def _check_model(model: Path, bags: Sequence[EmbedConfig]) -> None:
    """Refuse a RUN that is not finished, or has learnt bags that are not made here.

    Raises:
        InputError: it is no finished RUN.
        UsageError: it has learnt other bags.
    """
    run_folder.read_metrics(model)
    unit = run_folder.read_config(model).get("mil", {}).get("unit")
    units = sorted({bag.unit for bag in bags})
    if unit is not None and unit not in units:
        raise UsageError(
            f"{model}: has learnt bags of {unit}s, and {' and '.join(units)} bags are made here.",
            hint=f"--unit {unit}, or both",
        )


def _refuse_stores(words: Sequence[str]) -> None:
    named = [word for word in words if word.rstrip("/").endswith(schema.STORE_SUFFIX)]
    stores = [word for word in named if not ngff.is_image(Path(word))]
    if stores:
        raise UsageError(
            f"{stores[0]}: is a store; all steps start from slides.",
            hint="`cytofm detect` and `cytofm embed` take stores",
        )


@dataclass(frozen=True)
class _Jobs:
    """Makes what each slide is told."""

    plan: _Plan
    manner: Manner
    folder: Path
    own: Layer
    files: Layer
    preview: Path | None

    @property
    def stores(self) -> Path:
        """Folder of the stores."""
        return self.folder / STORES

    def of(
        self, refs: Sequence[SlideRef], digests: Sequence[str | None]
    ) -> tuple[list[RunJob], int]:
        """Return the jobs of this part of the slides, and how many to do at a time."""
        plan, manner = self.plan, self.manner
        ids = tuple(ref.slide_id for ref in refs)
        nuclei = nuclei_of(plan.detect, ids, manner)
        regions = [
            regions_of(plan.tile, ids, manner.warn),  # one set of files, told of once
            *(regions_of(of, ids, lambda _: None) for of in (plan.detect, *plan.embed)),
        ]
        refs = take_shard(refs, manner.shard, key=lambda ref: ref.slide_id)
        workers, threads = crew_for(plan.embed[-1], manner, len(refs))
        paths = [store_path(self.stores, ref.slide_id) for ref in refs]
        detect = detect_jobs(paths, plan.detect, self.own, nuclei, regions[1], manner, threads)
        bags = [
            store_jobs(paths, bag, digest, regions_of_bag, manner, threads)
            for bag, digest, regions_of_bag in zip(plan.embed, digests, regions[2:], strict=True)
        ]
        jobs = [
            RunJob(
                slide_id=ref.slide_id,
                path=ref.path,
                store=path,
                tile=self._tile(ref, regions[0].get(ref.slide_id), threads),
                detect=_vouched(of_slide, ref),
                embed=tuple(_vouched(bag, ref) for bag in embed),
                score=self._score(path, ids),
                export=self._export(ref.slide_id, path),
                dry_run=manner.dry_run,
            )
            for ref, path, of_slide, *embed in zip(refs, paths, detect, *bags, strict=True)
        ]
        return jobs, workers

    def _tile(self, ref: SlideRef, regions: RegionFile | None, threads: int) -> TileJob:
        return TileJob(
            slide_id=ref.slide_id,
            path=ref.path,
            mpp=ref.mpp,
            stores=self.stores,
            config=self.plan.tile,
            overwrite=self.manner.overwrite,
            dry_run=self.manner.dry_run,
            preview=self.preview,
            threads=threads,
            regions=regions,
        )

    def _score(self, store: Path, ids: tuple[str, ...]) -> ScoreJob | None:
        if self.plan.model is None:
            return None
        asked = ids if self.plan.score.groups is not None else ()
        return ScoreJob(path=store, run=self.plan.model, config=self.plan.score, slide_ids=asked)

    def _export(self, slide_id: str, store: Path) -> ExportJob | None:
        if self.plan.export is None:
            return None
        return ExportJob(
            slide_id=slide_id,
            path=str(store),
            folder=self.folder / EXPORT,
            config=self.plan.export,
            own=self.files,
            overwrite=self.manner.overwrite,
            dry_run=self.manner.dry_run,
        )


def _vouched(job: Any, ref: SlideRef) -> Any:
    """Let a step read a slide at the URL that the user gives now; a store's alone is not opened."""
    if not is_url(ref.path) or job.config.slides is not None:
        return job
    return replace(job, config=replace(job.config, slides=Path(ref.path)))


def _of_shard(table: Path, shard: str | None) -> Path:
    part = f".{shard.replace('/', '-of-')}" if shard else ""
    return table.with_name(f"{table.stem}{part}{table.suffix}")


def _write_scores(table: Path, outcomes: Outcomes) -> None:
    """Write the table of `mil score`, of the slides that have a score."""
    import numpy as np

    from cytofm_cli.mil.score import SlideScore, scores_csv

    told = {outcome.slide_id: outcome.facts.get("steps", {}) for outcome in outcomes}
    rows = {name: steps["score"] for name, steps in told.items() if "score" in steps}
    if not rows:
        return
    scores = [
        SlideScore(
            slide_id=name,
            p_C=np.array(list(row["prob"].values())),
            spread_C=np.array(list(row["sd"].values())),
            predicted=row["predicted"],
            n_models=row["models"],
            basis=row["basis"],
            columns=(),
            instances_NK=np.empty((0, 0), np.float32),
            differs=tuple(row["differs"]),
        )
        for name, row in rows.items()
    ]
    write_text(table, scores_csv(scores, tuple(next(iter(rows.values()))["prob"])))
