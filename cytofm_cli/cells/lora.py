"""An encoder's low-rank updates, learnt from labelled crops beside a linear classifier.

The start is the linear classifier of the encoder as it is (Kumar et al., arXiv:2202.10054: what
is tuned from a fitted head forgets less). Head and updates then lower its own objective together,
mean(w loss) + ‖W‖² / (2 C N), by Adam. Inner groups held out say after how many epochs to stop,
0 among them; then all cells are learnt for as many.

Legend: N cells, B of a batch, D features, O outputs, C classes, P pixels of a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.cells import fit
from cytofm_cli.cells.classifier import Answer, NetworkClassifier
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.cells.network import Layout
from cytofm_cli.encoders import lora
from cytofm_cli.encoders.torch_encoder import TorchEncoder, pool
from cytofm_cli.evaluate import probe
from cytofm_cli.stats import metrics

Ints = NDArray[np.int64]
Watch = Callable[[int, nn.Module, NetworkClassifier], None]
Tell = Callable[[], None]

RANK: Final = 8
ALPHA: Final = 16.0
EPOCHS: Final = 6
LR: Final = 3e-3
HEAD_LR: Final = 0.1  # of it: the head is at its optimum already
EPOCH_CELLS: Final = 2000
BATCH: Final = 32


@dataclass(frozen=True, eq=False)
class Cells:
    """What is learnt from.

    Attributes:
        config: settings.
        encoder: as it is.
        crops_N3PP: uint8, what it sees; may lie on the disk.
        x_ND: features by the encoder as it is.
        y_N: classes.
        group_N: what never stands on both sides.
        n_classes: C.
    """

    config: CellsConfig
    encoder: TorchEncoder
    crops_N3PP: NDArray[np.uint8]
    x_ND: NDArray[np.float32]
    y_N: Ints
    group_N: Ints
    n_classes: int

    @property
    def epochs(self) -> int:
        """Return the most epochs there may be."""
        return self.config.epochs or EPOCHS


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was learnt of some cells.

    Attributes:
        classifier: of the features of the adapted encoder.
        adapters: see `encoders.lora.adapters_of`; empty: the encoder as it is was the best.
        epochs: how long it was trained.
    """

    classifier: NetworkClassifier
    adapters: lora.Arrays
    epochs: int


def scale_of(config: CellsConfig) -> float:
    """Return α / r."""
    return ALPHA / (config.lora_rank or RANK)


def tune(cells: Cells, rows: Ints, seed: tuple[int, ...], tell: Tell = lambda: None) -> Tuned:
    """Learn from some of the cells.

    Args:
        cells: all of them.
        rows: those to learn from.
        seed: of updates, order and flips, beside the settings' own.
        tell: called after each step.
    """
    config, x_ND, y_N = cells.config, cells.x_ND[rows], cells.y_N[rows]
    c = fit.penalty_of(config, x_ND, y_N, cells.group_N[rows])
    epochs = cells.epochs
    part = _inner(cells, rows)
    if part is not None:
        epochs = _best_epochs(cells, rows[~part], rows[part], c, (*seed, 0), tell)
    start = fit.fit_penalised(config, x_ND, y_N, cells.n_classes, c)
    if epochs == 0:
        return Tuned(start, {}, 0)
    done: list[Tuned] = []

    def keep(epoch: int, model: nn.Module, head: NetworkClassifier) -> None:
        if epoch == epochs:
            done.append(Tuned(head, lora.adapters_of(model), epochs))

    _train(cells, rows, start, c, epochs, (*seed, 1), keep, tell)
    return done[0]


def _inner(cells: Cells, rows: Ints) -> NDArray[np.bool_] | None:
    """Choose the cells that say when to stop; None where no groups leave two classes on each side.

    Returns:
        bool, by row.
    """
    config, y, group = cells.config, cells.y_N[rows], cells.group_N[rows]
    fold = probe.grouped_folds(y, group, config.inner_folds, config.seed)
    for number in np.unique(fold):
        part = fold == number
        if min(len(np.unique(y[part])), len(np.unique(y[~part]))) > 1:
            return np.asarray(part)
    return None


def _best_epochs(
    cells: Cells, learn: Ints, watch: Ints, c: float, seed: tuple[int, ...], tell: Tell
) -> int:
    """Return the number of epochs of highest AUC on cells held out; of equals the smallest."""
    start = fit.fit_penalised(cells.config, cells.x_ND[learn], cells.y_N[learn], cells.n_classes, c)
    rng = np.random.default_rng([cells.config.seed, *seed, 2])
    watch = np.sort(rng.permutation(watch)[: cells.config.epoch_cells or EPOCH_CELLS])
    aucs: list[float] = []

    def judge(epoch: int, model: nn.Module, head: NetworkClassifier) -> None:
        x_ND = cells.x_ND[watch] if epoch == 0 else _features(cells, model, watch)
        aucs.append(round(present_auc(cells.y_N[watch], head.answer(x_ND)), 6))

    _train(cells, learn, start, c, cells.epochs, seed, judge, tell)
    return int(np.argmax(aucs))


def present_auc(y_N: Ints, answer: Answer) -> float:
    """Return the mean one-vs-rest AUC of the classes that there are."""
    p_NC = answer.probabilities()
    there = np.unique(y_N)
    each = [float(metrics.auc((y_N == c).astype(np.int64), p_NC[:, c])) for c in there]
    return float(np.mean(each))


def _train(
    cells: Cells,
    rows: Ints,
    start: NetworkClassifier,
    c: float,
    epochs: int,
    seed: tuple[int, ...],
    watch: Watch,
    tell: Tell,
) -> None:
    """Train updates and head for some epochs; `watch` sees them after each, and before the first.

    The rate falls as for all epochs that there may be: those of a shorter training are the same.
    """
    config, device = cells.config, cells.encoder.device
    seeds = [config.seed, *seed]
    rng = np.random.default_rng(seeds)
    drawn = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    model = lora.with_updates(cells.encoder, config.lora_rank or RANK, ALPHA, drawn)
    head = _Head(start, device)
    lr, updates = config.lr or LR, [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(
        [{"params": updates, "lr": lr}, {"params": head.parameters(), "lr": lr * HEAD_LR}]
    )
    per_epoch = min(config.epoch_cells or EPOCH_CELLS, len(rows))
    steps = math.ceil(per_epoch / BATCH) * cells.epochs
    fall = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    local_N, weight_C = _local(config, cells.y_N[rows], start)
    watch(0, model, start)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(rows))[:per_epoch]
        for at in range(0, per_epoch, BATCH):
            some = order[at : at + BATCH]
            x_B3PP = flipped(cells.crops_N3PP[rows[some]], rng)
            y_B = torch.from_numpy(local_N[some]).to(device)
            weight_B = torch.from_numpy(weight_C[local_N[some]].astype(np.float32)).to(device)
            x_BD = pool(model, _normal(cells.encoder, x_B3PP), cells.encoder.spec.pooling)
            loss = (weight_B * functional.nll_loss(head(x_BD), y_B, reduction="none")).mean()
            loss = loss + head.output[:-1].square().sum() / (2 * c * len(rows))
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            fall.step()
            tell()
        watch(epoch, model, head.classifier())


def _local(config: CellsConfig, y_N: Ints, start: NetworkClassifier) -> tuple[Ints, Any]:
    """Return the classes among those that are learnt, and the weight of each."""
    local_N = np.searchsorted(start.present, y_N).astype(np.int64)
    balanced = config.class_weights == "balanced"
    return local_N, probe.class_weights(local_N, len(start.present), balanced=balanced)


class _Head(nn.Module):
    """A linear classifier that can be trained further; float32."""

    mean: Tensor
    scale: Tensor
    output: Tensor

    def __init__(self, start: NetworkClassifier, device: torch.device) -> None:
        super().__init__()
        self._start = start
        for name, values in (("mean", start.mean_D), ("scale", start.scale_D)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        for name, values in start.weights.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(values, dtype=torch.float32)))
        self.to(device)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the logarithms of the class probabilities, (B, C)."""
        z_BO = ((x_BD - self.mean) * self.scale) @ self.output[:-1] + self.output[-1]
        return log_probabilities(self._start.layout, z_BO, getattr(self, "log_gaps", None))

    def classifier(self) -> NetworkClassifier:
        """Return what it is now."""
        weights = {name: p.detach().cpu().double().numpy() for name, p in self.named_parameters()}
        return replace(self._start, weights=weights)


def log_probabilities(layout: Layout, z_BO: Tensor, log_gaps: Tensor | None) -> Tensor:
    """Do as `network.log_probabilities` does after the output layer, for torch."""
    if not (layout.ordinal and layout.n_classes > 2):
        if z_BO.shape[1] == 1:
            z_BO = torch.cat([torch.zeros_like(z_BO), z_BO], 1)
        return functional.log_softmax(z_BO, 1)
    abnormal_B1, s_B1 = z_BO[:, :1], z_BO[:, 1:]
    t_T = z_BO.new_zeros(1)
    if log_gaps is not None:
        t_T = torch.cat([t_T, log_gaps.exp().cumsum(0)])
    open_B1, open_1 = torch.zeros_like(s_B1), z_BO.new_zeros(1)
    upper_BT = functional.logsigmoid(t_T - s_B1)
    lower_BT = functional.logsigmoid(s_B1 - t_T)
    between = torch.cat([open_1, torch.log(-torch.expm1(-t_T.diff())), open_1])
    grades = torch.cat([upper_BT, open_B1], 1) + torch.cat([open_B1, lower_BT], 1) + between
    ill_B1 = functional.logsigmoid(abnormal_B1)
    return torch.cat([functional.logsigmoid(-abnormal_B1), ill_B1 + grades], 1)


def flipped(x_B3PP: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn and mirror each image by chance: a cell has no upright."""
    x_B3PP = np.array(x_B3PP)
    for axes in ((-1,), (-2,)):
        some = rng.random(len(x_B3PP)) < 0.5
        x_B3PP[some] = np.flip(x_B3PP[some], axes)
    some = rng.random(len(x_B3PP)) < 0.5
    x_B3PP[some] = np.swapaxes(x_B3PP[some], -1, -2)
    return x_B3PP


def _normal(encoder: TorchEncoder, x_B3PP: NDArray[np.uint8]) -> Tensor:
    mean = torch.tensor(encoder.spec.mean, device=encoder.device).view(1, 3, 1, 1)
    std = torch.tensor(encoder.spec.std, device=encoder.device).view(1, 3, 1, 1)
    return (torch.from_numpy(x_B3PP).to(encoder.device).float() / 255 - mean) / std


def _features(cells: Cells, model: nn.Module, rows: Ints) -> NDArray[np.float32]:
    """Return the features of cells by a network, float32 (len(rows), D)."""
    parts = []
    with torch.inference_mode():
        for at in range(0, len(rows), 2 * BATCH):
            crops = np.array(cells.crops_N3PP[rows[at : at + 2 * BATCH]])
            x_BD = pool(model, _normal(cells.encoder, crops), cells.encoder.spec.pooling)
            parts.append(x_BD.float().cpu().numpy())
    return np.concatenate(parts)
