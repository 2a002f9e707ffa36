"""Train one model: a head on the training bags, the epoch chosen on the validation bags.

The test bags of a fold are never seen here.
Legend: N instances, D features, C classes, S slides.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import InputError
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.base import MilModel, Recipe, make_head, seeded
from cytofm_cli.mil.optim import learning_rate, make_bag_loss, make_optimizer
from cytofm_cli.mil.vpu import Instances, train_vpu
from cytofm_cli.stats import metrics
from cytofm_cli.work.memory import keep_freed
from cytofm_cli.work.signals import StopFlag

Passing = Callable[[int, int, float], None]  # epochs done, at most how many, loss


@dataclass(frozen=True, eq=False)
class Labelled:
    """Bags and their class indices."""

    bags: Sequence[Bag]
    y_S: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model and how it came about.

    Attributes:
        model: in evaluation mode, with the weights of the chosen epoch.
        best_epoch: the chosen epoch, from 0.
        history: one record an epoch.
    """

    model: MilModel
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    method: str,
    head_settings: dict[str, Any],
    recipe: Recipe,
    train: Labelled,
    validation: Labelled | None,
    n_classes: int,
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    stop: StopFlag | None = None,
    passing: Passing | None = None,
) -> Fitted:
    """Train one model.

    Args:
        method: name of the head.
        head_settings: its settings.
        recipe: how to train.
        train: training bags; scaling and class weights come from these alone.
        validation: decides the epoch; None: the last epoch is taken.
        n_classes: C.
        seeds: numbers that make every random choice of this model.
        device: where to compute.
        stop: looked at before every epoch.
        passing: called after every epoch with (epochs done, at most how many, loss).

    Raises:
        InputError: the loss is no longer a number.
        StoppedError: `stop` was set.
    """
    with one_thread(device), seeded(*seeds):
        width = int(train.bags[0].features_ND.shape[1])
        head, _ = make_head(method, recipe.vpu or width, n_classes, head_settings)
        model = MilModel(head, width, recipe.vpu)
        if recipe.standardise:
            model.fit_scaling([bag.features_ND for bag in train.bags])
        model.to(torch.device(device))
        _train_vpu(model, train, validation, n_classes, device)
        return _Trainer(model, recipe, train, validation, n_classes, device).run(stop, passing)


def _train_vpu(
    model: MilModel, train: Labelled, validation: Labelled | None, n_classes: int, device: str
) -> None:
    """Train the VPU features, if the model has them: the first class against the last."""
    if model.vpu is None:
        return

    def slides(of: Labelled | None, label: int) -> list[Instances]:
        bags = [] if of is None else [of.bags[i] for i in np.flatnonzero(of.y_S == label).tolist()]
        return [partial(_scaled, model, bag, device) for bag in bags]

    ends = (0, n_classes - 1)
    benign, worst = (slides(train, label) for label in ends)
    if not benign or not worst:
        raise InputError(
            "VPU features need training slides of the first and of the last class.",
            hint="leave out `--vpu`, or use fewer `--folds`",
        )
    held = (slides(validation, ends[0]), slides(validation, ends[1]))
    train_vpu(model.vpu, benign, worst, held)


def _scaled(model: MilModel, bag: Bag, device: str) -> Tensor:
    return model.scale(bag_tensor(bag, device))


def predict_logits(
    model: MilModel, bags: Sequence[Bag], device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the logits (S, C) of bags, one bag at a time, in evaluation mode."""
    model.eval()
    with one_thread(device), torch.inference_mode():
        outs = (
            model(bag_tensor(bag, device)[None], seeds=[slide_seed(bag.slide_id)]) for bag in bags
        )
        rows = [out.logits_BC[0].cpu() for out in outs]
    return np.asarray(torch.stack(rows).to(torch.float64).numpy())


def bag_tensor(bag: Bag, device: str) -> Tensor:
    """Return the features (N, D) as float32; a mapped bag is read here, one at a time."""
    return torch.from_numpy(np.asarray(bag.features_ND)).to(torch.device(device), torch.float32)


def slide_seed(slide_id: str) -> int:
    """Return the number that fixes a slide's random draws, whatever the order of slides."""
    return zlib.crc32(slide_id.encode())


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Compute with one thread on a CPU: the same numbers whatever the number of cores.

    Cells of a run are spread over processes instead, which scales better on small bags.
    """
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Trainer:
    def __init__(
        self,
        model: MilModel,
        recipe: Recipe,
        train: Labelled,
        validation: Labelled | None,
        n_classes: int,
        device: str,
    ) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        self.train, self.validation = train, validation
        self.y = [torch.tensor([int(label)], device=device) for label in train.y_S]
        self.bag_loss = make_bag_loss(recipe)
        self.optimizer = make_optimizer(model, recipe)
        counts_C = np.bincount(train.y_S, minlength=n_classes)
        self.even_C = len(train.y_S) / (n_classes * np.maximum(counts_C, 1))
        self.weight_C = self.even_C if recipe.balance == "weights" else np.ones(n_classes)

    def run(self, stop: StopFlag | None = None, passing: Passing | None = None) -> Fitted:
        recipe, history = self.recipe, []
        first = round(recipe.select_from * recipe.epochs)
        best_epoch, best_score, best_state = -1, -np.inf, None
        for epoch in range(recipe.epochs):
            if stop:
                raise stop.error()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch)
            record = {"epoch": epoch, "lr": learning_rate(recipe, epoch), "loss": self._epoch()}
            record |= self._validate()
            history.append(record)
            if passing is not None:
                passing(epoch + 1, recipe.epochs, record["loss"])
            score = self._score(record)
            better = score > best_score or (score == best_score and recipe.ties == "last")
            if epoch >= first and better:
                best_epoch, best_score = epoch, score
                best_state = copy.deepcopy(self.model.state_dict())
            waited = epoch - max(best_epoch, first)
            if recipe.patience and epoch + 1 >= recipe.min_epochs and waited >= recipe.patience:
                break
        if best_state is not None:
            self.model.load_state_dict(best_state)
        return Fitted(self.model.eval(), best_epoch, history)

    def _order(self) -> list[int]:
        n = len(self.y)
        if self.recipe.balance == "sampling":
            weight = torch.from_numpy(self.even_C[self.train.y_S])
            return torch.multinomial(weight, n, replacement=True).tolist()
        return torch.randperm(n).tolist() if self.recipe.shuffle else list(range(n))

    def _epoch(self) -> float:
        self.model.train()
        total, pending = 0.0, 0
        order = self._order()
        self.optimizer.zero_grad()
        for step, index in enumerate(order, start=1):
            y = self.y[index]
            x_ND = self._instances(bag_tensor(self.train.bags[index], self.device))
            out = self.model(x_ND[None])
            loss = self.model.head.loss(out, y, self.bag_loss) * self.weight_C[int(y)]
            (loss / self.recipe.accumulate).backward()
            total, pending = total + float(loss.detach()), pending + 1
            if pending == self.recipe.accumulate or step == len(order):
                self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
                pending = 0
        if not np.isfinite(total):
            raise InputError(
                "training diverged: the loss is not a number any more.",
                hint="lower `--lr`, or use `--preset cytofm`, which scales the features",
            )
        return total / len(order)

    def _instances(self, x_ND: Tensor) -> Tensor:
        n = len(x_ND)
        kept = max(1, round(self.recipe.keep_instances * n))
        if kept < n or self.recipe.shuffle_instances:
            return x_ND[torch.randperm(n)[:kept].to(x_ND.device)]
        return x_ND

    def _clip(self) -> None:
        if self.recipe.clip_norm:
            for part in self.model.head.clip_parts():
                torch.nn.utils.clip_grad_norm_(part, self.recipe.clip_norm)

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        logits_SC = predict_logits(self.model, self.validation.bags, self.device)
        y_S = self.validation.y_S
        with torch.no_grad():
            losses = [
                float(self.bag_loss(torch.from_numpy(row[None]), torch.tensor([int(label)])))
                for row, label in zip(logits_SC, y_S, strict=True)
            ]
        p_SC = metrics.softmax(logits_SC)
        return {
            "validation_loss": float(np.average(losses, weights=self.weight_C[y_S])),
            "validation_auc": float(metrics.macro_auc(y_S, p_SC)),
            "validation_accuracy": float((p_SC.argmax(1) == y_S).mean()),
        }

    def _score(self, record: dict[str, float]) -> float:
        select = self.recipe.select
        if select == "last" or self.validation is None:
            return 0.0
        if select == "loss":
            return -record["validation_loss"]
        auc = record["validation_auc"]
        # A small validation set may hold one class only: then the loss decides.
        if select != "accuracy" and not np.isfinite(auc):
            return -record["validation_loss"]
        right = record["validation_accuracy"]
        return {"auc": auc, "accuracy": right, "auc_accuracy": (auc + right) / 2}[select]
