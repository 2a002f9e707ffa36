"""Training of a generator: train, resume, write it. See `run_folder` for what it leaves."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cytofm_cli.generate import run_folder
from cytofm_cli.generate.config import GenerateConfig
from cytofm_cli.generate.file import about_of, write_generator
from cytofm_cli.generate.plan import PLAIN, GeneratePlan, make_plan
from cytofm_cli.generate.repa_e import RepaE
from cytofm_cli.pretrain import checkpoint, distributed, optim, parallel
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.loop import Hooks, Trainer
from cytofm_cli.pretrain.monitor import RunLog
from cytofm_cli.pretrain.plan import own_device, share_of
from cytofm_cli.pretrain.session import (
    batches_of,
    heard,
    say_where,
    take_threads,
    underway,
    with_threads,
)
from cytofm_cli.runs import folder
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.work.files import output_errors, real_place, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateReport:
    """A finished run.

    Attributes:
        path: the RUN folder.
        generator: the file of the networks.
        summary: content of summary.json.
        skipped: it was there already, made with the same settings.
        is_main: this process is the one that wrote it.
    """

    path: Path
    generator: Path
    summary: dict[str, Any]
    skipped: bool
    is_main: bool = True


def train(
    config: GenerateConfig,
    stores: Sequence[Path],
    out: Path,
    *,
    slides: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = log.info,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> GenerateReport:
    """Train a generator and write a RUN; called by every process of a job.

    The same command goes on from the last checkpoint, whatever ended the former one, and ends
    with the weights of a run that nothing ended.

    Args:
        config: the run.
        stores: with tiles, and nuclei for cells; or packs.
        out: RUN folder.
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: begin anew instead of resuming.
        note: told what the user should know, a line at a time.
        progress: called with (updates done, of how many, loss).

    Raises:
        ConfigMismatchError: `out` was begun with other settings, which are named.
        UsageError, InputError: impossible settings; unusable stores.
        DivergedError: the loss is not finite.
        StoppedError: a signal; the checkpoint of that step is written.
    """
    world = distributed.find_world()
    device = own_device(config.device, world)
    out = real_place(out)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(catch_signals())
        plan = make_plan(config, stores, slides=slides)
        stack.callback(plan.index.close)
        threads = take_threads(config.threads, out, overwrite=overwrite)
        plan = replace(
            plan,
            config=replace(plan.config, threads=threads),
            record=with_threads(plan.record, threads, device),
        )
        with output_errors(out):
            if run_folder.is_done(out, plan.record, overwrite=overwrite) and _is_whole(out):
                summary = run_folder.RUN.read_json(out, run_folder.SUMMARY)
                return GenerateReport(out, out / run_folder.GENERATOR, summary, skipped=True)
            with underway(out, plan.record, world, device, overwrite=overwrite):
                say = heard(note, world)
                summary = _train(plan, out, world, device, stop, say, progress)
    generator = out / run_folder.GENERATOR
    return GenerateReport(out, generator, summary, skipped=False, is_main=world.is_main)


def _is_whole(out: Path) -> bool:
    """Tell whether a finished RUN has its generator; else it is written from the checkpoint."""
    summary = run_folder.RUN.read_json(out, run_folder.SUMMARY)
    return folder.is_whole(out / run_folder.GENERATOR, summary.get("sha256"))


def _train(
    plan: GeneratePlan,
    out: Path,
    world: World,
    device: torch.device,
    stop: StopFlag,
    note: Callable[[str], None],
    progress: Callable[[int, int, float], None],
) -> dict[str, Any]:
    """Train to the end and write the generator; returns the summary."""
    share_of(_LoopSettings.of(plan.config), world)
    trainer = make_trainer(plan, out, world, device)
    for line in plan.notes:
        note(line)
    say_where(trainer, note)
    with contextlib.ExitStack() as stack:
        write: Callable[[int, dict[str, float]], None] = lambda step, line: None  # noqa: E731
        if world.is_main:
            board = out / "tensorboard"
            lines = RunLog(out / "log.jsonl", step=trainer.step, tensorboard=board)
            stack.callback(lines.close)
            write = lines.write
        total = plan.length.n_steps
        trainer.hooks = Hooks(log=write, progress=lambda step, loss: progress(step, total, loss))
        schedule = plan.index.schedule(plan.config.seed, plan.config.balance)
        batches = batches_of(
            trainer,
            plan.index,
            schedule,
            recipe=plan.recipe,
            ncp=PLAIN,
            threads=plan.config.threads,
        )
        trainer.train(stack.enter_context(batches), stop)
    summary = _finish(plan, trainer) if world.is_main else {}
    distributed.barrier()
    return summary


def make_trainer(
    plan: GeneratePlan, out: Path, world: World, device: torch.device
) -> Trainer[RepaE]:
    """Build the networks, their optimiser and the trainer; go back to the last checkpoint."""
    torch.manual_seed(plan.config.seed)
    classes = None if plan.class_N is None else torch.from_numpy(plan.class_N)
    learner = RepaE(
        plan.vae, plan.sit, plan.weights, plan.rates,
        told=plan.told, aligned=plan.aligned, classes=classes, resting=plan.resting,
    )  # fmt: skip
    learner = parallel.prepare(learner.train(), device, world)
    trainer = Trainer(
        run=out,
        config=_LoopSettings.of(plan.config),
        name=f"generate {plan.config.preset}",
        length=plan.length,
        method=learner,
        wrapped=parallel.wrap(learner, "ddp", world, device),
        optimiser=optim.build_optimizer(learner),
        world=world,
        device=device,
        before=lambda step: None,
    )
    steps = checkpoint.saved_steps(out)
    if steps:
        trainer.resume(steps[-1])
    return trainer


@dataclass(frozen=True)
class _LoopSettings:
    """See `pretrain.loop.LoopSettings`: the batch is settled here."""

    seed: int
    batch: int
    accumulate: int
    amp: str
    log_every: int
    save_every: int
    keep_every: int

    @staticmethod
    def of(config: GenerateConfig) -> _LoopSettings:
        assert config.batch is not None  # see config.settled
        return _LoopSettings(
            config.seed, config.batch, config.accumulate, config.amp,
            config.log_every, config.save_every, config.keep_every,
        )  # fmt: skip


def _finish(plan: GeneratePlan, trainer: Trainer[RepaE]) -> dict[str, Any]:
    """Write the generator and the summary, which marks the RUN as finished."""
    out, learner, config = trainer.run, trainer.method, plan.config
    parts = {
        "ema": learner.ema, "model": learner.sit, "vae": learner.vae, "vae_ema": learner.vae_ema,
    }  # fmt: skip
    about = about_of(
        plan.vae,
        plan.sit,
        encoder=config.encoder if plan.told else None,
        encoder_sha256=plan.told.spec.weights_sha256 if plan.told else None,
        classes=list(plan.classes),
        has_null=plan.has_null,
        unit=plan.index.unit,
        side_um=plan.index.tile_px * plan.index.mpp,
        mpp=plan.image_mpp,
        licence=config.licence,
    )
    monitors = {
        name: value if math.isfinite(value) else None
        for name, value in learner.monitors(trainer.step).items()
    }
    with output_errors(out):
        states = {name: network.state_dict() for name, network in parts.items()}
        write_generator(out / run_folder.GENERATOR, states, about)
        summary = {
            "preset": config.preset,
            "condition": config.condition,
            "autoencoder": None if config.autoencoder is None else str(config.autoencoder),
            "steps": trainer.step,
            "images": trainer.step * plan.length.batch,
            "parameters": {
                name: sum(p.numel() for p in parts[name].parameters()) for name in ("model", "vae")
            },
            "ema": plan.weights.ema,
            "monitors": monitors,
            "sha256": sha256_file(out / run_folder.GENERATOR),
        }
        write_text(out / run_folder.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary
