"""Golden values of DTFD-MIL, from its own training and evaluation loops."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from fill import bag, permutation, weights
from official import load
from torch import Tensor, nn

if TYPE_CHECKING:
    from make_golden import Values

WIDTH, GROUPS = 24, 4
CLIP = 0.3  # small enough to act on every part
MODES = (("AFS", 1), ("MaxS", 1), ("MaxS", 2), ("MaxMinS", 1), ("MaxMinS", 2))


def dtfd(values: Values, root: Path, bags: Sequence[int], train_bags: Sequence[int]) -> None:
    """Run the loops of the script; random partitions are those of `fill.permutation`."""
    script = load(root, "Main_DTFD_MIL")
    for classes in (2, 3):
        model = Parts(script, classes)
        values.fill(model.name, model)
        for n in bags:
            x = bag(model.name, n, WIDTH)
            for distill, per_end in MODES:
                for y in range(classes):
                    forward(values, script, model, x, y, distill, per_end)
                evaluate(values, script, model, x, distill, per_end)
        for distill, per_end in MODES:
            train(values, script, model, train_bags, distill, per_end)


class Parts(nn.Module):
    """The four networks, under the names that our conversion knows."""

    def __init__(self, script: ModuleType, classes: int) -> None:
        super().__init__()
        self.name, self.classes = f"dtfd_{classes}", classes
        self.dimReduction = script.DimReduction(WIDTH, 32)
        self.attention = script.Attention(32, 16)
        self.classifier = script.Classifier_1fc(32, classes)
        self.attCls = script.Attention_with_Classifier(32, 16, num_cls=classes)

    def tier1(self) -> list[nn.Parameter]:
        """Return what the first optimiser trains."""
        parts = (self.classifier, self.attention, self.dimReduction)
        return [p for part in parts for p in part.parameters()]


class Spy:
    """In place of an optimiser: keeps the gradients that a step would use, and takes none."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.found = list(parameters), {}

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Keep them."""
        self.found = {p: p.grad.clone() for p in self.parameters if p.grad is not None}


@contextmanager
def watched(
    script: ModuleType, model: Parts, shuffles: Iterator[Tensor]
) -> Iterator[dict[str, Any]]:
    """Give partitions in place of random ones, and collect what passes through the networks."""
    seen: dict[str, Any] = {"tier1": [], "attention": [], "cam": []}

    def shuffle(items: list[int]) -> None:
        items[:] = [items[i] for i in next(shuffles).tolist()]

    def cam(classifier: nn.Module, features: Tensor, plain: Any = script.get_cam_1d) -> Tensor:
        logits = plain(classifier, features)
        seen["cam"].append(logits[0].softmax(0))
        return logits

    def second(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.update(distilled=inputs[0], tier2=output)

    hooks = [
        model.classifier.register_forward_hook(lambda _m, _i, out: seen["tier1"].append(out)),
        model.attention.register_forward_hook(lambda _m, _i, out: seen["attention"].append(out)),
        model.attCls.attention.register_forward_hook(lambda _m, _i, out: seen.update(weight2=out)),
        model.attCls.register_forward_hook(second),
    ]
    random = SimpleNamespace(shuffle=shuffle)
    with patch.multiple(script, random=random, get_cam_1d=cam), redirect_stdout(io.StringIO()):
        yield seen
    for hook in hooks:
        hook.remove()


def run(
    script: ModuleType, model: Parts, steps: Sequence[Any], loop: Mapping[str, Any], clip: float
) -> tuple[float, float]:
    """Call the training loop for one pass; return the mean loss of either tier."""
    logged: dict[str, float] = {}
    params = SimpleNamespace(device="cpu", batch_size=1, train_show_freq=1, grad_clipping=clip)
    # AFS changes weights in place between its two backward passes, which torch 1.4 did not see.
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda kept: kept):
        script.train_attention_preFeature_DTFD(
            classifier=model.classifier,
            dimReduction=model.dimReduction,
            attention=model.attention,
            UClassifier=model.attCls,
            optimizer0=steps[0],
            optimizer1=steps[1],
            epoch=0,
            ce_cri=nn.CrossEntropyLoss(reduction="none"),
            params=params,
            f_log=io.StringIO(),
            writer=SimpleNamespace(add_scalar=lambda key, value, _: logged.update({key: value})),
            numGroup=GROUPS,
            **loop,
        )
    return logged["train_loss_0 "], logged["train_loss_1 "]


def forward(
    values: Values, script: ModuleType, model: Parts, x: Tensor, y: int, distill: str, per_end: int
) -> None:
    """Keep the outputs, losses and gradients of one bag in training."""
    n, name = len(x), model.name
    spies = Spy(model.tier1()), Spy(list(model.attCls.parameters()))
    loop = {
        "mDATA_list": (["slide"], [x], [y]),
        "total_instance": GROUPS * per_end,
        "distill": distill,
    }
    shuffles = iter([torch.tensor([0]), permutation(f"{name} {n}", n)])
    with watched(script, model, shuffles) as seen:
        losses = run(script, model, spies, loop, clip=math.inf)
    key = f"{name}.{{}}.{distill}{per_end}.n{n}"
    values.put(key.format("loss") + f".y{y}", torch.tensor(losses))
    gradients = spies[0].found | spies[1].found
    parameters = dict(model.named_parameters())
    for p in parameters.values():
        p.grad = gradients[p]
    values.grad(key.format("grad") + f".y{y}", name, parameters)
    if y:
        return
    values.put(key.format("out") + ".tier2", seen["tier2"])
    values.put(key.format("out") + ".weight2", seen["weight2"])
    values.put(key.format("out") + ".distilled", seen["distilled"])
    if distill == "AFS":
        values.put(f"{name}.out.n{n}.tier1", torch.cat(seen["tier1"]))
        values.put(f"{name}.out.n{n}.attention", torch.cat(seen["attention"], 1)[0])
        values.put(f"{name}.out.n{n}.cam", torch.cat(seen["cam"], 1))
        raw = model.attention(model.dimReduction(x), isNorm=False)
        values.put(f"{name}.out.n{n}.raw", raw)


def evaluate(
    values: Values, script: ModuleType, model: Parts, x: Tensor, distill: str, per_end: int
) -> None:
    """Keep the probabilities that evaluation averages over three partitions."""
    n, found = len(x), []

    def judged(probability: Tensor, _label: Tensor) -> Tensor:
        found.append(probability)
        return torch.zeros(())

    shuffles = (permutation(f"{model.name} draw {i} {n}", n) for i in range(3))
    ignore = SimpleNamespace(add_scalar=lambda *_: None)
    replaced = {"F": SimpleNamespace(nll_loss=judged), "eval_metric": lambda *_: (0,) * 6}
    with watched(script, model, shuffles), patch.multiple(script, **replaced):
        script.test_attention_DTFD_preFeat_MultipleMean(
            mDATA_list=(["slide"], [x], [0]),
            classifier=model.classifier,
            dimReduction=model.dimReduction,
            attention=model.attention,
            UClassifier=model.attCls,
            epoch=0,
            criterion=nn.CrossEntropyLoss(reduction="none"),
            params=SimpleNamespace(device="cpu", batch_size_v=1, num_MeanInference=3),
            f_log=io.StringIO(),
            writer=ignore,
            numGroup=GROUPS,
            total_instance=GROUPS * per_end,
            distill=distill,
        )
    values.put(f"{model.name}.eval.{distill}{per_end}.n{n}", found[0])


def train(
    values: Values,
    script: ModuleType,
    model: Parts,
    sizes: Sequence[int],
    distill: str,
    per_end: int,
) -> None:
    """Keep two passes of official training, with clipping at work in every part."""
    name, run_name = model.name, f"{distill}{per_end}"
    model.load_state_dict(weights(name, values.shapes[name]))
    features = [bag(f"{name} train {i}", n, WIDTH) for i, n in enumerate(sizes)]
    labels = [i % 2 for i in range(len(sizes) - 1)] + [model.classes - 1]
    steps = [
        torch.optim.Adam(parameters, lr=1e-4, weight_decay=1e-4)
        for parameters in (model.tier1(), list(model.attCls.parameters()))
    ]
    totals = []
    for epoch in range(2):
        order = torch.arange(len(sizes))
        parts = [permutation(f"{name} epoch {epoch} {i}", n) for i, n in enumerate(sizes)]
        loop = {
            "mDATA_list": ([str(i) for i in range(len(sizes))], features, labels),
            "total_instance": GROUPS * per_end,
            "distill": distill,
        }
        with watched(script, model, iter([order, *parts])):
            totals.append(sum(run(script, model, steps, loop, clip=CLIP)))
    values.put(f"{name}.train.{run_name}.losses", torch.tensor(totals))
    values.moved(f"{name}.moved.{run_name}", name, dict(model.named_parameters()))
    model.load_state_dict(weights(name, values.shapes[name]))
