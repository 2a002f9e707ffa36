"""The training loop: everything of a step but the method's inside.

Exact resume rests on three things. Data and views are functions of the step (`data`, counters),
torch's generator is seeded anew at every step, and the rest is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cytofm_cli.errors import InputError
from cytofm_cli.pretrain import checkpoint, distributed, optim
from cytofm_cli.pretrain.base import Batch, Learner, Length, StepOutput
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.monitor import collapse, utilisation
from cytofm_cli.views import draws
from cytofm_cli.work.memory import out_of_memory
from cytofm_cli.work.signals import StopFlag

log = logging.getLogger(__name__)
_SEED_STREAM = 700  # what the run's seed is folded with for torch's generator


class DivergedError(InputError):
    """The loss or the gradient is not finite any more."""


class LoopSettings(Protocol):
    """The settings that the loop looks at: see `config.PretrainConfig`."""

    @property
    def seed(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def amp(self) -> str: ...
    @property
    def log_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def keep_every(self) -> int: ...


class Batches(Protocol):
    """What the loop takes views from: see `data.Batches`."""

    waited_s: float

    def __next__(self) -> Batch: ...


@dataclass
class Hooks:
    """What happens beside the steps; each is called by all processes with the updates done.

    Attributes:
        log: a line of the log.
        probe: judges the encoder; the first number is the score, the higher the better.
        picture: draws the attention.
        progress: called after every update.
        probe_every: steps between probes, by whichever process; 0: there are none.
        picture_every: steps between pictures.
    """

    log: Callable[[int, dict[str, float]], None]
    probe: Callable[[int], dict[str, float]] | None = None
    picture: Callable[[int], None] | None = None
    progress: Callable[[int, float], None] = lambda step, loss: None
    probe_every: int = 0
    picture_every: int = 1


@dataclass
class Meters:
    """Sums since the last line of the log; part of a checkpoint, so that lines stay the same.

    Attributes:
        sums: by name.
        n: updates in them.
        best_step: the step with the best probe so far, -1 without.
        best_score: its score.
    """

    sums: dict[str, float] = field(default_factory=dict)
    n: int = 0
    best_step: int = -1
    best_score: float = -math.inf

    def add(self, values: Mapping[str, float]) -> None:
        """Count an update."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.n += 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: total / self.n for name, total in self.sums.items()}
        self.sums, self.n = {}, 0
        return means

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        best = None if self.best_step < 0 else [self.best_step, self.best_score]
        return {"sums": self.sums, "n": self.n, "best": best}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Meters:
        """Rebuild from what `to_record` gave."""
        step, score = record["best"] or (-1, -math.inf)
        return Meters(dict(record["sums"]), record["n"], step, score)


L = TypeVar("L", bound=Learner)


@dataclass
class Trainer(Generic[L]):
    """A method in training.

    Attributes:
        config: the settings of the loop.
        name: of what is trained, for messages.
        method: the method itself.
        wrapped: what is called: the method, or DDP around it.
        before: called before every update with the updates done, e.g. to anneal h.
        saves_memory: what else a hint may advise where the device is too small.
        init_sha256: digest of the weights that updates of low rank are for; None: there are none.
        begun_processes: processes that wrote the checkpoint it goes on from; None: it begins.
    """

    run: Path
    config: LoopSettings
    name: str
    length: Length
    method: L
    wrapped: nn.Module
    optimiser: Optimizer
    world: World
    device: torch.device
    before: Callable[[int], None]
    saves_memory: str = ""
    init_sha256: str | None = None
    hooks: Hooks = field(default_factory=lambda: Hooks(log=lambda step, line: None))
    meters: Meters = field(default_factory=Meters)
    step: int = 0
    begun_processes: int | None = None
    features_BD: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def __post_init__(self) -> None:
        self.dtype = amp_dtype(self.config.amp, self.device)
        scales = self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales)
        self._trained = [p for p in self.method.parameters() if p.requires_grad]

    def train(self, batches: Batches, stop: StopFlag) -> None:
        """Train to the end, or until a signal; saves on the way.

        Raises:
            DivergedError: the loss is not finite; the last checkpoint is kept.
            OutOfMemoryError: the device is too small for the batch.
            StoppedError: a signal; a checkpoint of this very step was written.
        """
        clock = _Clock(batches)
        while self.step < self.length.n_steps:
            self.update(batches)
            clock.count(self.length.batch)
            self.step += 1
            if self.step % self.config.log_every == 0 or self.step == self.length.n_steps:
                spread = collapse(distributed.gather(self.features_BD))
                line = self.meters.take() | spread | self.method.monitors(self.step)
                self.hooks.log(self.step, line | clock.read(self.device))
            self._beside()
            if distributed.any_process(bool(stop), self.device):
                self.save()
                raise stop.error()

    def update(self, batches: Batches) -> None:
        """Do one update."""
        step, parts = self.step, self.config.accumulate
        torch.manual_seed(_step_seed(self.config.seed, step, self.world.rank))
        self.before(step)
        rate = optim.learning_rate(self.method.config, self.length, step)
        decay = optim.weight_decay(self.method.config, self.length, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
            group["weight_decay"] = decay * group["wd_scale"]
        self.optimiser.zero_grad(set_to_none=True)
        seen: dict[str, float] = {}
        for part in range(parts):
            with self._out_of_memory(), self._sync(last=part == parts - 1):
                out = self._forward(next(batches), step)
                self._require_finite("loss", out.loss)
                torch.autograd.backward(self.scaler.scale(out.loss / parts))
            self.features_BD = out.features_BD.float()
            for name, value in _values(out).items():
                seen[name] = seen.get(name, 0.0) + value / parts
        self.scaler.unscale_(self.optimiser)
        self.method.before_update(step)
        norm = optim.clip_gradients(self._trained, self.method.config.clip)
        if self.dtype is not torch.float16:  # there the scaler skips such an update
            self._require_finite("gradient", norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.method.after_update(step)
        self.meters.add(seen | {"gradient_norm": float(norm), "lr": rate, "weight_decay": decay})
        self.hooks.progress(step + 1, seen["loss"])

    def save(self) -> None:
        """Write a checkpoint of the updates done so far, and drop those not to keep."""
        state: dict[str, Any] = {"meters": self.meters.to_record(), "world": self.world.size}
        if self.init_sha256 is not None:
            state["init_sha256"] = self.init_sha256
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        writes = self.world.is_main
        checkpoint.save(self.run, self.step, self.method, self.optimiser, state, writes=writes)
        if writes:
            self._prune()
        distributed.barrier()

    def resume(self, step: int) -> None:
        """Go back to a checkpoint, the newest one, and drop those not to keep."""
        state = checkpoint.load(self.run, step, self.method, self.optimiser, self.device)
        if state.get("init_sha256", self.init_sha256) != self.init_sha256:
            raise InputError(
                f"{self.run}: was begun with other weights than the file of --init holds now.",
                hint="put that file back, or --overwrite",
            )
        self.step, self.meters = step, Meters.from_record(state["meters"])
        self.begun_processes = state.get("world", self.world.size)
        if self.scaler.is_enabled() and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        if self.world.is_main:
            self._prune()  # what a process killed after saving had no time to

    def _prune(self) -> None:
        keep = {self.step, self.meters.best_step}
        checkpoint.prune(self.run, keep, self.config.keep_every)

    def _beside(self) -> None:
        """Probe, draw and save where it is time to."""
        step, last = self.step, self.step == self.length.n_steps
        due = last or step % self.config.save_every == 0
        if self.hooks.probe and (last or step % self.hooks.probe_every == 0):
            scores = self.hooks.probe(step)
            self.hooks.log(step, {f"probe_{name}": value for name, value in scores.items()})
            score = next(iter(scores.values()))
            if score > self.meters.best_score:
                self.meters.best_step, self.meters.best_score, due = step, score, True
        if self.hooks.probe_every and (last or step % self.hooks.probe_every == 0):
            due = distributed.any_process(due, self.device)  # rank 0 alone knows the score
        if self.hooks.picture and (last or step % self.hooks.picture_every == 0):
            self.hooks.picture(step)
        if due:
            self.save()

    def _forward(self, batch: Batch, step: int) -> StepOutput:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            out: StepOutput = self.wrapped(batch, step)
        return out

    def _require_finite(self, what: str, value: Tensor) -> None:
        wrong = not math.isfinite(float(value.detach()))
        if distributed.any_process(wrong, self.device):
            saved = checkpoint.saved_steps(self.run)
            kept = f"checkpoint of step {saved[-1]} is kept" if saved else "no checkpoint yet"
            raise DivergedError(
                f"{self.run}: the {what} is not finite at step {self.step} "
                f"({self.name}, lr {self.optimiser.param_groups[0]['lr']:.2g}); {kept}.",
                hint="a lower --lr or clip, or --amp off; with --overwrite",
            )

    def _out_of_memory(self) -> contextlib.AbstractContextManager[None]:
        config = self.config
        return out_of_memory(
            f"the device has too little memory for batch {config.batch} "
            f"in {config.accumulate} part(s).",
            hint=f"--accumulate {config.accumulate * 2}{self.saves_memory}",
        )

    def _sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Leave the exchange of gradients to the last part of a batch."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        held: contextlib.AbstractContextManager[Any] = self.wrapped.no_sync()
        return held


def amp_dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision, None for plain float32."""
    if wanted == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def _step_seed(seed: int, step: int, rank: int) -> int:
    key = draws.fold(draws.fold(draws.sample_keys(seed, _SEED_STREAM), step), rank)
    return int(key) >> 1  # torch takes 63 bits


def _values(out: StepOutput) -> dict[str, float]:
    """Return the loss and its parts, averaged over the processes."""
    numbers = torch.stack([out.loss.detach().float(), *(v.float() for v in out.parts.values())])
    means = distributed.mean_(numbers).tolist()
    return dict(zip(["loss", *out.parts], means, strict=True))


class _Clock:
    """Rates since the last reading; unlike the rest of a line they differ from run to run."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._restart()

    def count(self, images: int) -> None:
        self._images += images

    def read(self, device: torch.device) -> dict[str, float]:
        spent = time.monotonic() - self._start
        meters = {
            "tiles_per_s": self._images / spent,
            "wait_share": (self._batches.waited_s - self._waited) / spent,
            "utilisation": utilisation(device, time.process_time() - self._cpu, spent),
        }
        self._restart()
        return meters

    def _restart(self) -> None:
        self._start, self._cpu = time.monotonic(), time.process_time()
        self._images, self._waited = 0, self._batches.waited_s
