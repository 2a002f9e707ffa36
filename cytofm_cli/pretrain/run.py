"""A pretraining run: decide everything, train, resume, export.

RUN/config.toml           settings of the run, the views and the method, and what they met
    log.jsonl             a line every few steps; tensorboard/ if that package is there
    checkpoints/          see `checkpoint`
    attention/            pictures, if asked for
    encoder.safetensors   the trunk, as `--encoder FILE` takes it; there when it is finished
    encoder-best.safetensors   the one with the best probe, if there was a probe
    summary.json
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from cytofm_cli import __version__, registry
from cytofm_cli.config import as_record, differences, resolve, to_toml
from cytofm_cli.errors import ConfigMismatchError, InputError, OutputError, UsageError
from cytofm_cli.pretrain import checkpoint, distributed, optim, parallel
from cytofm_cli.pretrain.backbone import TrunkInfo, VitTrunk, export, h_at, make_backbones
from cytofm_cli.pretrain.base import Length, Method, MethodConfig
from cytofm_cli.pretrain.beside import Beside
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.data import Batches, TileIndex, open_index
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.loop import Trainer
from cytofm_cli.signals import StopFlag, catch_signals
from cytofm_cli.store.claim import claim
from cytofm_cli.store.io import output_errors
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.perturb import NcpConfig
from cytofm_cli.views.recipes import Recipe, ncp_of, recipe_of

log = logging.getLogger(__name__)
CONFIG: Final = "config.toml"
SUMMARY: Final = "summary.json"
ENCODER: Final = "encoder.safetensors"
BEST: Final = "encoder-best.safetensors"
LOG: Final = "log.jsonl"


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


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is fixed before the first step."""

    config: PretrainConfig
    views: ViewsConfig
    recipe: Recipe
    ncp: NcpConfig
    method: MethodConfig
    index: TileIndex
    length: Length
    record: dict[str, dict[str, Any]]


def pretrain(
    config: PretrainConfig,
    views: ViewsConfig,
    stores: Sequence[Path],
    out: Path,
    *,
    settings: Mapping[str, str] | None = None,
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
    device = find_device(config.device, world)
    out = out.absolute()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(catch_signals())
        plan = make_plan(config, views, stores, settings or {}, slides=slides)
        stack.callback(plan.index.close)
        _threads(config, world)
        with output_errors(out):
            if _is_done(out, plan.record, overwrite=overwrite):
                return PretrainReport(out, out / ENCODER, read_summary(out), skipped=True)
            if world.is_main:
                out.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(claim(out.parent / f".{out.name}.claim"))
            stack.enter_context(distributed.process_group(world, device))
            if world.is_main:
                _prepare(out, plan.record, overwrite=overwrite)
            distributed.barrier()
            say = note if world.is_main else _silent
            summary = _train(plan, out, world, device, stop, say, progress, slides)
    return PretrainReport(out, out / ENCODER, summary, skipped=False, is_main=world.is_main)


def make_plan(
    config: PretrainConfig,
    views: ViewsConfig,
    stores: Sequence[Path],
    settings: Mapping[str, str],
    *,
    slides: Path | None = None,
) -> Plan:
    """Check and decide everything before training; writes nothing."""
    plugin = registry.pretrain_methods.load(config.method)
    wanted = dict(settings) if config.lr is None else {"lr": config.lr, **settings}
    method_config: MethodConfig = resolve(plugin.config or MethodConfig, config.method, wanted)
    views = replace(views, preset=views.preset if config.ncp else "none")
    recipe = recipe_of(views)
    ncp = ncp_of(views)
    if ncp.without_nuclei == "drop":
        raise UsageError("--without-nuclei drop leaves gaps in batches.", hint="plain")
    guided = ncp.fill != "none" or ncp.centred
    index = open_index(stores, config.detector, need_nuclei=guided, slides=slides)
    length = make_length(config, index.n_tiles)
    record = {
        "pretrain": as_record(config, results_only=True),
        "views": as_record(views),
        config.method: as_record(method_config),
        "data": index.facts() | {"n_steps": length.n_steps},
    }
    return Plan(config, views, recipe, ncp, method_config, index, length, record)


def make_length(config: PretrainConfig, n_tiles: int) -> Length:
    """Return how long a run is.

    Raises:
        InputError: fewer tiles than a batch takes.
        UsageError: the batch cannot be shared out.
    """
    if n_tiles < config.batch:
        raise InputError(
            f"{n_tiles} tiles are too few for batches of {config.batch}.",
            hint=f"--batch {max(2, n_tiles)}, or more slides",
        )
    steps_per_epoch = max(1, n_tiles // config.batch)
    steps = config.steps or max(1, round(config.epochs * n_tiles / config.batch))
    return Length(n_steps=steps, steps_per_epoch=steps_per_epoch, batch=config.batch)


def share_of(config: PretrainConfig, world: World) -> int:
    """Return the tiles of one part of a process's batch.

    Raises:
        UsageError: the batch does not divide by processes and parts.
    """
    parts = world.size * config.accumulate
    if config.batch % parts:
        raise UsageError(
            f"--batch {config.batch} does not divide by {world.size} processes × "
            f"{config.accumulate} parts.",
            hint=f"--batch {max(parts, config.batch // parts * parts)}",
        )
    return config.batch // parts


def find_device(name: str, world: World) -> torch.device:
    """Return the device of this process.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is called {name!r}.", hint="cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {name}: there is no GPU here.", hint="--device cpu")
        number = world.local_rank if device.index is None else device.index
        if number >= torch.cuda.device_count():
            raise UsageError(f"--device cuda:{number}: there are {torch.cuda.device_count()} GPUs.")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    return device


def read_summary(run: Path) -> dict[str, Any]:
    """Read summary.json of a finished RUN.

    Raises:
        InputError: `run` is not one.
    """
    try:
        found: dict[str, Any] = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: not a finished RUN of `cytofm pretrain`.") from error
    return found


def _to_toml(record: Mapping[str, Mapping[str, Any]]) -> str:
    return to_toml(
        {
            name: make_dataclass(name, list(section), frozen=True)(*section.values())
            for name, section in record.items()
        }
    )


def _changes(out: Path, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the settings in which a RUN differs from what is asked for."""
    found = tomllib.loads((out / CONFIG).read_text(encoding="utf-8"))
    found.pop("made", None)
    wanted = tomllib.loads(_to_toml(record))
    flat = [
        {f"{name}.{key}": v for name, section in of.items() for key, v in section.items()}
        for of in (found, wanted)
    ]
    return differences(*flat)


def _is_done(out: Path, record: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> bool:
    """Tell whether a RUN is finished; refuse what may not be written over."""
    if not out.exists() or overwrite:
        return False
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, no folder.", hint="choose another -o")
    if not (out / CONFIG).is_file():
        if any(out.iterdir()):
            raise ConfigMismatchError(
                f"{out}: exists and is no RUN of `cytofm pretrain`.", hint="choose another -o"
            )
        return False
    changed = _changes(out, record)
    if changed:
        raise ConfigMismatchError(
            f"{out}: was begun with other settings ({'; '.join(changed)}).",
            hint="`--overwrite` begins anew; or choose another -o",
        )
    return (out / SUMMARY).is_file()


def _prepare(out: Path, record: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> None:
    if overwrite and out.exists():
        if any(out.iterdir()) and not (out / CONFIG).is_file():
            raise ConfigMismatchError(
                f"{out}: exists and is no RUN of `cytofm pretrain`.", hint="choose another -o"
            )
        shutil.rmtree(out)
    (out / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoint.tidy(out)
    if not (out / CONFIG).is_file():
        made = {"cytofm": __version__, "torch": torch.__version__, "utc": _now()}
        _write(out / CONFIG, _to_toml({**record, "made": made}))


def _threads(config: PretrainConfig, world: World) -> None:
    """Share the processors of a node out among its processes."""
    from cytofm_cli.resources import cpu_count

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(config.threads or max(1, cpu_count() // local))


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
    for line in (*plan.index.notes, *trunk.notes):
        note(line)
    if trainer.step:
        note(f"{out}: goes on at step {trainer.step} of {length.n_steps}")
    with Beside(plan, trainer, writes=world.is_main, slides=slides, note=note) as beside:
        trainer.hooks = beside.hooks(lambda step, loss: progress(step, length.n_steps, loss))
        with _batches(plan, trainer) as batches:
            trainer.train(batches, stop)
        state = parallel.whole_state(trainer.method.encoder())
        summary = _finish(plan, trainer, trunk, state) if world.is_main else {}
    distributed.barrier()
    return summary


def _trainer(
    plan: Plan, out: Path, world: World, device: torch.device
) -> tuple[Trainer, TrunkInfo]:
    """Build the method, its optimiser and the trainer; go back to the last checkpoint."""
    config = plan.config
    backbones, trunk = make_backbones(
        config,
        drop_path=plan.method.drop_path,
        patch_px=plan.views.patch_px,
        img_px=plan.recipe.views[0].size_px,
    )
    torch.manual_seed(config.seed)
    make = registry.pretrain_methods.load(config.method).make
    method: Method = make(backbones, plan.method, plan.length)
    method = parallel.prepare(method.train(), device, world, compiled=config.compile)
    wrapped = parallel.wrap(method, config.parallel, world, device)
    sharded = config.parallel == "fsdp" and world.size > 1
    trainer = Trainer(
        run=out,
        config=config,
        length=plan.length,
        method=method,
        wrapped=wrapped,
        optimiser=optim.build_optimizer(method, fused=not sharded),
        world=world,
        device=device,
        before=_annealing(plan, method),
    )
    steps = checkpoint.saved_steps(out)
    if steps:
        trainer.resume(steps[-1])
    return trainer, trunk


def _batches(plan: Plan, trainer: Trainer) -> Batches:
    """Return the batches from the trainer's step on."""
    from cytofm_cli.resources import cpu_count

    config, world = plan.config, trainer.world
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Batches(
        plan.index,
        plan.index.schedule(config.seed, config.balance),
        recipe=plan.recipe,
        ncp=plan.ncp,
        batch=config.batch,
        parts=config.accumulate,
        rank=world.rank,
        world=world.size,
        start=trainer.step,
        stop=plan.length.n_steps,
        device=trainer.device,
        threads=config.threads or max(1, cpu_count() // local),
    )


def _finish(
    plan: Plan, trainer: Trainer, trunk: TrunkInfo, state: Mapping[str, torch.Tensor]
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
    }
    with output_errors(out):
        export(out / ENCODER, encoder, state=state, **how)
        if best.best_step >= 0:
            saved = checkpoint.read_part(out, best.best_step, _prefix(trainer.method))
            export(out / BEST, encoder, state=saved, **how)
        summary = {
            "method": config.method,
            "encoder": config.encoder,
            "steps": trainer.step,
            "tiles": trainer.step * config.batch,
            "parameters": trunk.n_parameters,
            "trained": trunk.n_trained,
            "init_sha256": trunk.init_sha256,
            "best_step": None if best.best_step < 0 else best.best_step,
            "best_score": None if best.best_step < 0 else best.best_score,
        }
        _write(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


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


def _silent(text: str) -> None:
    """Say nothing: another process does."""


def _write(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.partial")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")
