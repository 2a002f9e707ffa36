"""Low-rank updates of all folds: crops read once, a fold a file, so that a stopped run goes on.

Legend: N cells, D features, P pixels of a side.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells import fit, lora
from cytofm_cli.cells.classifier import NetworkClassifier
from cytofm_cli.cells.fit import Crossed
from cytofm_cli.cells.plan import Plan
from cytofm_cli.cells.run_folder import WHOLE, fold_name
from cytofm_cli.config import digest
from cytofm_cli.encoders.base import CELL_UM
from cytofm_cli.encoders.batches import default_batch
from cytofm_cli.encoders.lora import Arrays, adapted, with_updates
from cytofm_cli.encoders.torch_encoder import TorchEncoder
from cytofm_cli.errors import UsageError
from cytofm_cli.evaluate.features import open_crops
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.files import plain, write_bytes

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class TunedFolds:
    """What was learnt.

    Attributes:
        crossed: classifiers, and what they say of cells held out.
        adapters: the updates of each, by the name of the classifier.
        epochs: how long each was trained, that of all cells last.
    """

    crossed: Crossed
    adapters: dict[str, Arrays]
    epochs: tuple[int, ...]


def trainable(plan: Plan) -> TorchEncoder:
    """Open the encoder and see that it can be updated.

    Raises:
        UsageError: it is no Vision Transformer.
        WeightsError: see `Choice.load`.
    """
    import torch

    config = plan.config
    how: dict[str, Any] = {"device": config.device, "seed": config.seed}
    encoder = plan.choice.load(**how, pooling=config.pooling)
    if not isinstance(encoder, TorchEncoder) or encoder.spec.input_px is None:
        raise UsageError(
            f"lora: encoder {plan.choice.label} is no network, so nothing of it can be trained.",
            hint="--encoder cytofm-tiny, or --model linear",
        )
    drawn = torch.Generator(encoder.device)
    with_updates(encoder, config.lora_rank or lora.RANK, lora.ALPHA, drawn)
    return encoder


def tune_folds(
    plan: Plan, encoder: TorchEncoder, values_ND: NDArray[np.float32], folder: Path, tell: Tell
) -> TunedFolds:
    """Train on all folds but one, for every fold, and on all cells.

    Args:
        plan: settings, cells, folds.
        encoder: as it is.
        values_ND: features of the cells by it.
        folder: where crops and finished folds are kept until the RUN is done (`forget`).
        tell: called with (what, done, of how many).
    """
    crops = _crops(plan, encoder, folder, tell)
    of = (plan.task.y_N, plan.group_N, len(plan.task.classes))
    cells = lora.Cells(plan.config, encoder, crops, values_ND, *of)
    names = [*(fold_name(fold) for fold in range(plan.n_folds)), WHOLE]
    count = _Count(len(names) * 2 * _steps(cells), tell)
    one = functools.partial(_part, plan, cells, folder, count)
    on_cpu = encoder.device.type == "cpu"
    # Each thread computes alone: the bytes are the same for any number of them.
    n = min(len(names), plan.config.threads or cpu_count()) if on_cpu else 1
    enter = encoder.enter_thread if on_cpu else None
    with ThreadPoolExecutor(n, initializer=enter) as pool:
        parts = dict(zip(names, pool.map(one, names), strict=True))
    held_ND = np.empty_like(values_ND)
    for fold in range(plan.n_folds):
        held_ND[plan.fold_N == fold] = parts[fold_name(fold)].held_ND
    folds: list[Any] = [parts[name].tuned.classifier for name in names[:-1]]
    crossed = fit.crossed(
        *(plan.config, folds, parts[WHOLE].tuned.classifier, held_ND),
        *(plan.task.y_N, plan.fold_N, len(plan.task.classes)),
    )
    return TunedFolds(
        crossed,
        {name: parts[name].tuned.adapters for name in names},
        tuple(parts[name].tuned.epochs for name in names),
    )


def forget(folder: Path) -> None:
    """Remove what is kept of training: the RUN holds it now."""
    for path in folder.iterdir():
        if path.name.startswith((_CROPS, _FOLD)):
            path.unlink()


_CROPS, _FOLD = "crops-", "lora-"


@dataclass(frozen=True, eq=False)
class _Part:
    tuned: lora.Tuned
    held_ND: NDArray[np.float32]


class _Count:
    """Counts the steps of all threads."""

    def __init__(self, total: int, tell: Tell) -> None:
        self._done, self._total, self._tell = 0, total, tell
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._done += 1
            self._tell("lora", min(self._done, self._total), self._total)


def _steps(cells: lora.Cells) -> int:
    n = min(cells.config.epoch_cells or lora.EPOCH_CELLS, len(cells.y_N))
    return -(-n // lora.BATCH) * cells.epochs


def _part(plan: Plan, cells: lora.Cells, folder: Path, count: _Count, name: str) -> _Part:
    """Train on all cells but a fold's, and encode the fold's; or read that it was done."""
    kept = folder / f"{_FOLD}{digest(plan.record)}-{name}.safetensors"
    part = _read(kept)
    if part is not None:
        return part
    fold = -1 if name == WHOLE else int(name.removeprefix("fold"))
    rows = np.flatnonzero(plan.fold_N != fold)
    held = np.flatnonzero(plan.fold_N == fold)
    tuned = lora.tune(cells, rows, (fold + 1,), count.step)
    held_ND = cells.x_ND[held]
    if tuned.adapters and len(held):
        encoder = adapted(cells.encoder, tuned.adapters, lora.scale_of(plan.config))
        held_ND = _encode(encoder, cells.crops_N3PP, held, plan)
    part = _Part(tuned, held_ND)
    _keep(kept, part)
    return part


def _encode(
    encoder: TorchEncoder, crops: NDArray[np.uint8], rows: NDArray[np.int64], plan: Plan
) -> NDArray[np.float32]:
    import torch

    batch = plan.config.batch_size or default_batch(plan.config.device, encoder)
    parts = [
        encoder.encode(torch.from_numpy(np.array(crops[rows[at : at + batch]])))
        for at in range(0, len(rows), batch)
    ]
    return np.concatenate(parts)


def _crops(plan: Plan, encoder: TorchEncoder, folder: Path, tell: Tell) -> NDArray[np.uint8]:
    """Return what the encoder sees of each cell, uint8 (N, 3, P, P), from the disk."""
    side = encoder.spec.input_px
    assert side is not None
    config, points = plan.config, plan.points
    path = folder / f"{_CROPS}{digest(plan.record)}.npy"
    if path.is_file():
        with contextlib.suppress(ValueError, OSError):
            return cast("NDArray[np.uint8]", np.load(path, mmap_mode="r"))
    partial = path.with_name(f".{path.name}.partial")
    shape = (len(points), 3, side, side)
    crops: NDArray[np.uint8] = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    done, crop_um = 0, config.crop_um or encoder.spec.cell_um or CELL_UM
    how: dict[str, Any] = {"crop_um": crop_um, "mpp": config.slide_mpp, "slides": config.slides}
    for source in plan.crops.sources:
        rows = points.of_slide(source.slide_id)
        if not len(rows):
            continue
        with open_crops(source, points.xy_px0[rows], **how) as images:
            order = images.reading_order(np.arange(len(rows)))
            for at in range(0, len(rows), lora.BATCH):
                some = order[at : at + lora.BATCH]
                crops[rows[some]] = encoder.prepare(images.read_many(some)).numpy()
                done += len(some)
                tell("crops", done, len(points))
    crops.flush()  # type: ignore[attr-defined]
    partial.replace(path)
    return crops


def _keep(path: Path, part: _Part) -> None:
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {
        **{f"classifier/{k}": v for k, v in part.tuned.classifier.arrays().items()},
        **{f"adapters/{k}": v for k, v in part.tuned.adapters.items()},
        "held": part.held_ND,
        "epochs": np.array([part.tuned.epochs]),
    }
    write_bytes(path, save({key: np.ascontiguousarray(v) for key, v in arrays.items()}))


def _read(path: Path) -> _Part | None:
    """Read a finished fold; None without one that is whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    def of(kind: str) -> dict[str, Any]:
        return {k.removeprefix(kind): v for k, v in flat.items() if k.startswith(kind)}

    try:
        flat = load_file(plain(path))
        classifier = NetworkClassifier.of(of("classifier/"))
        return _Part(lora.Tuned(classifier, of("adapters/"), int(flat["epochs"][0])), flat["held"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
