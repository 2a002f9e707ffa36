"""Checkpoints of a run: complete or not there, and nothing in them is ever executed.

    RUN/checkpoints/step-00000120/model.safetensors      what the method's state_dict() holds, but
                                                         for weights that updates of low rank
                                                         leave as `--init` has them
                                  optimizer.safetensors  moments by parameter name: NAME|exp_avg
                                  state.json             step, best step, meters, loss scale

A checkpoint is written beside its place and renamed into it, so a kill at any moment leaves the
former one whole. Only rank 0 writes; sharded weights are gathered by all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cytofm_cli.errors import StoreError
from cytofm_cli.pretrain import parallel
from cytofm_cli.pretrain.backbone import resting
from cytofm_cli.work.files import flush_folder, output_errors, plain, put_in_place, read_plain

FOLDER: Final = "checkpoints"
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_PREFIX: Final = "step-"


def step_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint after `step` updates lies."""
    return run / FOLDER / f"{_PREFIX}{step:08d}"


def saved_steps(run: Path) -> list[int]:
    """Return the steps that have a checkpoint, ascending."""
    names = (path.name for path in (run / FOLDER).glob(f"{_PREFIX}*") if path.is_dir())
    return sorted(int(name.removeprefix(_PREFIX)) for name in names)


def save(
    run: Path,
    step: int,
    method: nn.Module,
    optimiser: Optimizer,
    state: Mapping[str, Any],
    *,
    writes: bool = True,
) -> None:
    """Write a checkpoint; with sharded weights all processes must call.

    Args:
        run: the RUN folder.
        step: updates done.
        method: what is trained.
        optimiser: its optimiser.
        state: plain JSON values that go with it.
        writes: False where another process writes.

    Raises:
        DiskFullError, OutputError: it cannot be written; former checkpoints are untouched.
    """
    at_rest = resting(method)
    model = {k: v for k, v in parallel.whole_state(method).items() if k not in at_rest}
    moments = {key: parallel.whole(value) for key, value in _moments(method, optimiser)}
    if not writes:
        return
    from safetensors.torch import save_file

    target = step_folder(run, step)
    staged = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with output_errors(target):
        try:
            staged.mkdir(parents=True)
            save_file(_clones(model), staged / _MODEL)
            save_file(_clones(moments), staged / _OPTIMIZER)
            (staged / _STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
            flush_folder(staged)
            put_in_place(staged, target, target.with_name(f".{target.name}.{os.getpid()}.old"))
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def load(
    run: Path, step: int, method: nn.Module, optimiser: Optimizer, device: torch.device
) -> dict[str, Any]:
    """Put a checkpoint back into `method` and `optimiser`; return its state.

    Raises:
        StoreError: it is damaged, or was made by another method or trunk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = step_folder(run, step)
    hint = f"remove {folder} to go on from the one before it."
    try:
        state: dict[str, Any] = json.loads(read_plain(folder / _STATE))
        model, moments = (load_file(plain(folder / name)) for name in (_MODEL, _OPTIMIZER))
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"{folder}: damaged checkpoint ({error}).", hint=hint) from error
    at_rest = resting(method)
    own = {name: value for name, value in method.state_dict().items() if name not in at_rest}
    model = {name: value for name, value in model.items() if name not in at_rest}
    wrong = sorted(
        (own.keys() ^ model.keys())
        | {k for k in own if k in model and own[k].shape != model[k].shape}
    )
    if wrong:
        raise StoreError(f"{folder}: does not fit the model ({', '.join(wrong[:3])}).", hint=hint)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(_like(value, model[name], device))
    _restore_moments(method, optimiser, moments, device)
    return state


def read_part(run: Path, step: int, prefix: str) -> dict[str, Tensor]:
    """Read the weights of one module out of a checkpoint; names lose the prefix."""
    from safetensors import safe_open

    with safe_open(plain(step_folder(run, step) / _MODEL), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def prune(run: Path, keep: set[int], every: int) -> None:
    """Remove checkpoints but those of the steps in `keep` and of every `every`-th step."""
    for step in saved_steps(run):
        if step not in keep and not (every and step % every == 0):
            doomed = step_folder(run, step)
            hidden = doomed.with_name(f".{doomed.name}.{os.getpid()}.old")
            doomed.replace(hidden)  # half a checkpoint must never bear its name
            shutil.rmtree(hidden)


def tidy(run: Path) -> None:
    """Remove what killed processes left half-written; the caller holds the RUN's claim."""
    for path in (run / FOLDER).glob(f".{_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _moments(method: nn.Module, optimiser: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in method.named_parameters():
        for key, value in sorted(optimiser.state.get(parameter, {}).items()):
            yield f"{name}|{key}", torch.as_tensor(value)


def _restore_moments(
    method: nn.Module, optimiser: Optimizer, moments: Mapping[str, Tensor], device: torch.device
) -> None:
    optimiser.state.clear()
    parameters = dict(method.named_parameters())
    for joined, value in moments.items():
        name, _, key = joined.partition("|")
        parameter = parameters[name]
        # AdamW's count of updates stays on the host, unless the fused kernel wants it otherwise.
        count = value.to(device) if optimiser.defaults.get("fused") else value
        placed = count if value.ndim == 0 else _like(parameter, value, device)
        optimiser.state[parameter][key] = placed.clone()


def _like(own: Tensor, value: Tensor, device: torch.device) -> Tensor:
    """Move a whole tensor to where `own` is, sharded like it."""
    moved = value.to(device)
    if not parallel.is_sharded(own):
        return moved
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded = cast("DTensor", own)
    return distribute_tensor(moved, sharded.device_mesh, sharded.placements)


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
