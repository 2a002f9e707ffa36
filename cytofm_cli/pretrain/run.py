"""A pretraining run: train, resume, export. See `run_folder` for what it leaves."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from cytofm_cli import registry
from cytofm_cli.encoders.base import PIXELS
from cytofm_cli.encoders.pixel_statistics import require_side
from cytofm_cli.encoders.weights import Updates
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.pretrain import checkpoint, distributed, optim, parallel, run_folder
from cytofm_cli.pretrain.backbone import Trunk, TrunkInfo, VitTrunk, h_at, make_backbones
from cytofm_cli.pretrain.base import Method
from cytofm_cli.pretrain.beside import Beside
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.data import Batches
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.export import export, export_updates, pooling_of
from cytofm_cli.pretrain.loop import Trainer
from cytofm_cli.pretrain.middle import middle_crops
from cytofm_cli.pretrain.monitor import collapsed, read_log
from cytofm_cli.pretrain.plan import Plan, make_plan, own_device, share_of
from cytofm_cli.pretrain.session import (
    batches_of,
    heard,
    say_where,
    take_threads,
    underway,
    with_threads,
)
from cytofm_cli.pretrain.teacher import LEAST_MOVED, MOST_START
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.work.files import output_errors, real_place, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainReport:
    """A finished run.

    Attributes:
        path: the RUN folder.
        encoder: the exported trunk.
        summary: content of summary.json.
        skipped: it was there already, made with the same settings.
        is_main: this process is the one that wrote it.
    """

    path: Path
    encoder: Path
    summary: dict[str, Any]
    skipped: bool
    is_main: bool = True


def pretrain(
    config: PretrainConfig,
    views: ViewsConfig,
    stores: Sequence[Path],
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    slides: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = log.info,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> PretrainReport:
    """Train a trunk without labels and write a RUN; called by every process of a job.

    The same command goes on from the last checkpoint, whatever ended the former one, and ends
    with the weights of a run that nothing ended.

    Args:
        config: the run.
        views: the views; their recipe is the method's.
        stores: Zarr stores with tiles, and nuclei unless `--no-ncp`.
        out: RUN folder.
        settings: of the method, where they differ from its defaults.
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: begin anew instead of resuming.
        note: told what the user should know, a line at a time.
        progress: called with (updates done, of how many, loss).

    Raises:
        ConfigMismatchError: `out` was begun with other settings, which are named.
        UsageError, InputError: impossible settings; unusable stores; see `data.open_index`.
        DivergedError: the loss is not finite.
        StoppedError: a signal; the checkpoint of that step is written.
    """
    world = distributed.find_world()
    device = own_device(config.device, world)
    out = real_place(out)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(catch_signals())
        plan = make_plan(config, views, stores, settings or {}, slides=slides)
        stack.callback(plan.index.close)
        threads = take_threads(config.threads, out, overwrite=overwrite)
        plan = replace(
            plan,
            config=replace(plan.config, threads=threads),
            record=with_threads(plan.record, threads, device),
        )
        with output_errors(out):
            done = run_folder.is_done(out, plan.record, overwrite=overwrite)
            if done and not _lost(out, config, note):
                summary = run_folder.read_summary(out)
                return PretrainReport(out, out / run_folder.ENCODER, summary, skipped=True)
            say = heard(note, world)
            with underway(out, plan.record, world, device, overwrite=overwrite):
                summary = _train(plan, out, world, device, stop, say, progress, slides)
    encoder = out / run_folder.ENCODER
    return PretrainReport(out, encoder, summary, skipped=False, is_main=world.is_main)


def _lost(out: Path, config: PretrainConfig, note: Callable[[str], None]) -> bool:
    """Tell whether encoders of a finished RUN must be written again, from its checkpoint.

    Raises:
        InputError: there is no checkpoint to write them from.
    """
    lost = run_folder.lost_encoders(out, _exported(config))
    if not lost:
        return False
    names = " and ".join(lost)
    if not checkpoint.saved_steps(out):
        raise InputError(
            f"{out}: is finished, but {names} is gone, was changed or is to state something else, "
            "and its checkpoints are gone too.",
            hint="--overwrite trains anew",
        )
    note(f"{out}: {names} is gone, was changed or is to state something else: written anew")
    return True


def _exported(config: PretrainConfig) -> dict[str, str]:
    """Return what the encoder states that is no part of the training."""
    return {"pooling": config.pooling, "licence": config.licence}


def _train(
    plan: Plan,
    out: Path,
    world: World,
    device: torch.device,
    stop: StopFlag,
    note: Callable[[str], None],
    progress: Callable[[int, int, float], None],
    slides: Path | None,
) -> dict[str, Any]:
    """Train to the end and export; returns the summary."""
    config, length = plan.config, plan.length
    share_of(config, world)
    trainer, trunk = _trainer(plan, out, world, device)
    for line in (*plan.notes, *trunk.notes, *trainer.method.notes()):
        note(line)
    say_where(trainer, note)
    with Beside(plan, trainer, writes=world.is_main, slides=slides, note=note) as beside:
        trainer.hooks = beside.hooks(lambda step, loss: progress(step, length.n_steps, loss))
        with _batches(plan, trainer) as batches:
            trainer.train(batches, stop)
        state = parallel.whole_state(trainer.method.encoder())
        summary = _finish(plan, trainer, trunk, state) if world.is_main else {}
        for line in _warnings(summary, trainer):
            note(line)
    distributed.barrier()
    return summary


def _trainer(
    plan: Plan, out: Path, world: World, device: torch.device
) -> tuple[Trainer[Method], TrunkInfo]:
    """Build the method, its optimiser and the trainer; go back to the last checkpoint."""
    config = plan.config
    backbones, trunk = make_backbones(
        config,
        drop_path=plan.method.drop_path,
        patch_px=plan.views.patch_px,
        img_px=plan.recipe.views[0].size_px,
    )
    pooling_of(backbones(role="student"), config.pooling)  # type: ignore[arg-type]
    if config.pooling == PIXELS:
        require_side(plan.recipe.views[0].size_px)
        if config.lora_rank:
            raise UsageError(
                f"--pooling {PIXELS}: updates of low rank do not hold the scales that it needs.",
                hint="--pooling cls+mean",
            )
    torch.manual_seed(config.seed)
    make = registry.pretrain_methods.load(config.method).make
    method: Method = make(backbones, plan.method, plan.length)
    method = parallel.prepare(method.train(), device, world)
    if config.compile:
        method.student().compile()
    wrapped = parallel.wrap(method, config.parallel, world, device)
    sharded = config.parallel == "fsdp" and world.size > 1
    trainer = Trainer(
        run=out,
        config=config,
        name=config.method,
        length=plan.length,
        method=method,
        wrapped=wrapped,
        optimiser=optim.build_optimizer(method, fused=not sharded),
        world=world,
        device=device,
        before=_annealing(plan, method),
        saves_memory=" or --checkpoint-activations",
        init_sha256=trunk.init_sha256 if config.lora_rank else None,
    )
    steps = checkpoint.saved_steps(out)
    if steps:
        trainer.resume(steps[-1])
    return trainer, trunk


def _batches(plan: Plan, trainer: Trainer[Method]) -> Batches:
    """Return the batches from the trainer's step on."""
    config = plan.config
    schedule = plan.index.schedule(config.seed, config.balance, config.per_slide)
    return batches_of(
        trainer, plan.index, schedule, recipe=plan.recipe, ncp=plan.ncp, threads=config.threads
    )


def _finish(
    plan: Plan, trainer: Trainer[Method], trunk: TrunkInfo, state: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Export the encoder and write the summary, which marks the RUN as finished."""
    out, config, best = trainer.run, plan.config, trainer.meters
    encoder = trainer.method.encoder()
    how: dict[str, Any] = {
        "name": config.name or f"{config.encoder.replace('/', '.')}-{config.method}",
        "mean": plan.recipe.mean,
        "std": plan.recipe.std,
        "input_px": plan.recipe.views[0].size_px,
        "mpp": None,  # views are crops of many scales
        "cell_um": _seen_um(plan),
        "pooling": config.pooling,
        "licence": config.licence,
        "crops_BCHW": middle_crops(plan) if config.pooling == PIXELS else None,
    }
    moved = trainer.method.monitors(trainer.step)
    monitors = {name: value if math.isfinite(value) else None for name, value in moved.items()}
    with output_errors(out):
        spec = export(out / run_folder.ENCODER, encoder, state=state, **how)
        if updates := _updates(config, trunk):
            export_updates(out / run_folder.ADAPTERS, cast("Trunk", encoder), state, spec, updates)
        if best.best_step >= 0:
            if best.best_step not in checkpoint.saved_steps(out):
                raise InputError(
                    f"{out}: the checkpoint of step {best.best_step}, the best one, is gone.",
                    hint="--overwrite trains anew",
                )
            saved = checkpoint.read_part(out, best.best_step, _prefix(trainer.method))
            export(out / run_folder.BEST, encoder, state={**state, **saved}, **how)
        summary = {
            "method": config.method,
            "encoder": config.encoder,
            "steps": trainer.step,
            "tiles": trainer.step * config.batch,
            "parameters": trunk.n_parameters,
            "trained": trunk.n_trained,
            "init_sha256": trunk.init_sha256,
            "updates": None if updates is None else asdict(updates),
            "monitors": monitors,
            "best_step": None if best.best_step < 0 else best.best_step,
            "best_score": None if best.best_step < 0 else best.best_score,
            "exported": _exported(config),
            "sha256": run_folder.digests(out),
        }
        write_text(out / run_folder.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _updates(config: PretrainConfig, trunk: TrunkInfo) -> Updates | None:
    """Return what the RUN's updates of low rank are; None: all weights were trained."""
    if not config.lora_rank or config.init is None or trunk.init_sha256 is None:
        return None
    return Updates(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=config.lora_targets,
        base=config.init.name,
        base_sha256=trunk.init_sha256,
    )


def _warnings(summary: Mapping[str, Any], trainer: Trainer[Method]) -> Iterator[str]:
    """Say so where the exported teacher is mostly what it started from, or features are all one."""
    monitors = summary.get("monitors", {})
    share, moved = monitors.get("teacher_start"), monitors.get("teacher_moved")
    if (share is not None and share > MOST_START) or (moved is not None and moved < LEAST_MOVED):
        distance = "unknown" if moved is None else f"{moved:.2g} of its length"
        yield (
            f"warning: the exported teacher has hardly moved: {share:.0%} of its weights are its "
            f"start's, its distance from there is {distance}"
        )
    lines = read_log(trainer.run / run_folder.LOG) if summary else []  # the main process's
    images = trainer.config.batch // trainer.config.accumulate
    if lines and (told := collapsed(lines[-1], images)):
        yield told


def _seen_um(plan: Plan) -> float | None:
    """Return the side of the middling global view of a cell, µm; None: views are of tiles."""
    if plan.index.unit != "cell":
        return None
    share = sum(plan.recipe.views[0].scale) / 2
    return round(plan.config.cell_um * math.sqrt(share), 1)


def _prefix(method: Method) -> str:
    """Return the prefix of the exported trunk in the method's state dict."""
    encoder = method.encoder()
    return next(f"{name}." for name, module in method.named_modules() if module is encoder)


def _annealing(plan: Plan, method: Method) -> Callable[[int], None]:
    """Return what lets h fall to its value in the first updates."""
    trunks = [t for t in (method.student(), method.encoder()) if isinstance(t, VitTrunk)]
    if not plan.config.h_anneal or not trunks:
        return lambda step: None
    n_tokens = trunks[0].n_patches(plan.recipe.views[0].size_px) + trunks[0].trunk.num_prefix_tokens

    def before(step: int) -> None:
        n_steps = plan.length.n_steps
        h = h_at(plan.config, step, n_steps=n_steps, n_tokens=n_tokens)
        for trunk in trunks:
            trunk.set_h(h)

    return before
