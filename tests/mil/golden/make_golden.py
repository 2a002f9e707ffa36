"""Make the golden values of the MIL heads by running the official implementations.

    python tests/mil/golden/make_golden.py --abmil DIR --clam DIR --topk DIR --dsmil DIR \\
        --transmil DIR --nystrom009 DIR --dtfd DIR --less DIR -o tests/mil/golden/mil.safetensors

DIR are clones of the repositories in README.md, and the folder of `pip install --target DIR
--no-deps nystrom-attention==0.0.9`. Besides torch it needs `pip install nystrom-attention==0.0.14
timm==0.6.13 einops scikit-learn tensorboard`.

Keys: `MODEL.KIND.…` with n<N> the size of the bag and y<K> its label. `grad` and `moved` are
digests (`fill.digest`), a row a parameter in the order of the metadata's `shapes`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from fill import bag, digest, numbers, weights
from golden_dtfd import dtfd
from golden_less import less
from official import in_float64, load, transmil_optimizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

BAGS = (1, 7, 100)
TRAIN_BAGS = (20, 33, 16, 57, 40, 24)  # sizes of the bags of a pass


class Values(dict[str, Tensor]):
    """What is written, and the shapes of the parameters of every model."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, dict[str, list[int]]] = {}

    def put(self, key: str, value: Tensor) -> None:
        """Keep a value; floats in float64."""
        value = value.detach().clone()
        self[key] = value.double() if value.is_floating_point() else value.long()

    def fill(self, name: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """Give a model the weights of its name; dropout, which draws at random, is off."""
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.double().train()
        parameters = dict(model.named_parameters())
        self.shapes[name] = {key: list(p.shape) for key, p in parameters.items()}
        model.load_state_dict(weights(name, self.shapes[name]), strict=False)
        return parameters

    def grad(self, key: str, name: str, parameters: Mapping[str, Tensor]) -> None:
        """Keep the digest of the gradients, and drop them; no gradient counts as zero."""
        found = {
            k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in parameters.items()
        }
        self[key] = digest(name, found)
        for p in parameters.values():
            p.grad = None

    def moved(self, key: str, name: str, parameters: Mapping[str, Tensor]) -> None:
        """Keep the digest of how far training moved the weights."""
        start = weights(name, self.shapes[name])
        self[key] = digest(name, {k: p - start[k] for k, p in parameters.items()})


def passes(name: str, width: int, classes: int, times: int = 2) -> Iterator[tuple[Tensor, int]]:
    """Yield the bags and labels that training sees; the last class only in the last bag."""
    for _ in range(times):
        for i, n in enumerate(TRAIN_BAGS):
            label = classes - 1 if i == len(TRAIN_BAGS) - 1 else i % 2
            yield bag(f"{name} train {i}", n, width), label


def abmil(values: Values, root: Path) -> None:
    """AttentionDeepMIL: the convolutions for digits give way to bags of 800-vectors."""
    module = load(root, "model")
    for kind, make in (("plain", module.Attention), ("gated", module.GatedAttention)):
        name, model = f"abmil_{kind}", make()
        model.feature_extractor_part1 = nn.Identity()
        parameters = values.fill(name, model)
        seen: dict[str, Tensor] = {}
        scores = model.attention[-1] if kind == "plain" else model.attention_w
        scores.register_forward_hook(lambda _m, _i, out, s=seen: s.update(raw=out.T))
        model.classifier.register_forward_hook(lambda _m, i, _o, s=seen: s.update(bag=i[0]))
        for n in BAGS:
            x = bag(name, n, 800)[None]
            prob, _, attention = model(x)
            values.put(f"{name}.out.n{n}.prob", prob)
            values.put(f"{name}.out.n{n}.attention", attention)
            values.put(f"{name}.out.n{n}.raw", seen["raw"])
            values.put(f"{name}.out.n{n}.bag", seen["bag"])
            for y in (0, 1):
                loss, _ = model.calculate_objective(x, torch.tensor(y))
                values.put(f"{name}.loss.n{n}.y{y}", loss)
                loss.backward()
                values.grad(f"{name}.grad.n{n}.y{y}", name, parameters)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=5e-4, betas=(0.9, 0.999), weight_decay=10e-5
        )

        def loss_of(x: Tensor, y: int, model: nn.Module = model) -> Tensor:
            return model.calculate_objective(x[None], torch.tensor(y))[0].sum()

        train(values, name, parameters, optimizer, passes(name, 800, 2), loss_of)


def train(
    values: Values,
    name: str,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    bags: Iterator[tuple[Tensor, int]],
    loss_of: Callable[[Tensor, int], Tensor],
    every: int = 1,
    run: str = "",
) -> None:
    """Take official steps, a bag at a time; `every`: bags whose mean gradient makes a step."""
    losses = []
    for step, (x, y) in enumerate(bags, start=1):
        loss = loss_of(x, y)
        (loss / every).backward()
        losses.append(loss.detach())
        if step % every == 0:
            optimizer.step()
            for p in parameters.values():
                p.grad = None
    values.put(f"{name}.train{run}.losses", torch.stack(losses))
    values.moved(f"{name}.moved{run}", name, parameters)


CLAM_MODELS = {
    "clam_sb_2": ("CLAM_SB", 2),
    "clam_sb_3": ("CLAM_SB", 3),
    "clam_mb_2": ("CLAM_MB", 2),
    "clam_mb_3": ("CLAM_MB", 3),
}


def clam(values: Values, root: Path, topk: Path) -> None:
    """CLAM at its own widths; bags under k make it raise, so these have no instance loss."""
    module = load(root, "models.model_clam")
    svm = load(topk, "topk.svm").SmoothTop1SVM(2)
    for name, (kind, classes) in CLAM_MODELS.items():
        model = getattr(module, kind)(n_classes=classes, embed_dim=24, dropout=0.25)
        parameters = values.fill(name, model)
        for n in BAGS:
            logits, prob, _, raw, found = model(bag(name, n, 24), return_features=True)
            values.put(f"{name}.out.n{n}.logits", logits)
            values.put(f"{name}.out.n{n}.prob", prob)
            values.put(f"{name}.out.n{n}.raw", raw)
            values.put(f"{name}.out.n{n}.bag", found["features"])
        for loss, function in (("ce", nn.CrossEntropyLoss()), ("svm", svm)):
            for mode in ("plain", "subtyping"):
                model.instance_loss_fn, model.subtyping = function, mode == "subtyping"
                key = f"{loss}.{mode}"
                clam_losses(values, name, key, model, parameters)
                model.load_state_dict(weights(name, values.shapes[name]), strict=False)
                optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, weight_decay=1e-5)

                def loss_of(x: Tensor, y: int, model: nn.Module = model) -> Tensor:
                    return clam_loss(model, x, y)[0]

                bags = passes(name, 24, classes)
                train(values, name, parameters, optimizer, bags, loss_of, run=f".{key}")
                model.load_state_dict(weights(name, values.shapes[name]), strict=False)
    logits = numbers("svm logits", 12, 2, scale=9.0).requires_grad_()
    loss = svm(logits, (numbers("svm targets", 12) > 0).long())
    values.put("svm.loss", loss)
    values.put("svm.grad", torch.autograd.grad(loss, logits)[0])


def clam_loss(model: nn.Module, x: Tensor, y: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Weigh the two losses as the training loop does."""
    label = torch.tensor([y])
    logits, _, _, _, found = model(x, label=label, instance_eval=True)
    return 0.7 * F.cross_entropy(logits, label) + 0.3 * found["instance_loss"], found


def clam_losses(
    values: Values, name: str, key: str, model: nn.Module, parameters: Mapping[str, Tensor]
) -> None:
    for n in (8, 16, 100):
        for y in range(CLAM_MODELS[name][1]):
            loss, found = clam_loss(model, bag(name, n, 24), y)
            case = f"{key}.n{n}.y{y}"
            values.put(f"{name}.loss.{case}", loss)
            values.put(f"{name}.instance.{case}", found["instance_loss"])
            chosen = torch.tensor(found["inst_preds"]), torch.tensor(found["inst_labels"])
            values.put(f"{name}.chosen.{case}", torch.stack(chosen))
            loss.backward()
            values.grad(f"{name}.grad.{case}", name, parameters)


def dsmil(values: Values, root: Path) -> None:
    """DSMIL with one and two outputs; no output on is the class 0."""
    module = load(root, "dsmil")
    for outputs in (1, 2):
        name, width = f"dsmil_{outputs + 1}", 24
        streams = module.FCLayer(width, outputs), module.BClassifier(width, outputs)
        model = module.MILNet(*streams)
        parameters = values.fill(name, model)

        def loss_of(x: Tensor, y: int, model: nn.Module = model, outputs: int = outputs) -> Tensor:
            instances, prediction, _, _ = model(x)
            target = F.one_hot(torch.tensor([y]), outputs + 1)[:, 1:].double()
            best, _ = torch.max(instances, 0)
            criterion = nn.BCEWithLogitsLoss()
            bag_loss = criterion(prediction.view(1, -1), target)
            return 0.5 * bag_loss + 0.5 * criterion(best.view(1, -1), target)

        for n in BAGS:
            x = bag(name, n, width)
            keys = ("instances", "logits", "attention", "bag")
            for key, value in zip(keys, model(x), strict=True):
                values.put(f"{name}.out.n{n}.{key}", value)
            for y in range(outputs + 1):
                loss = loss_of(x, y)
                values.put(f"{name}.loss.n{n}.y{y}", loss)
                loss.backward()
                values.grad(f"{name}.grad.n{n}.y{y}", name, parameters)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=1e-4, betas=(0.5, 0.9), weight_decay=1e-3
        )
        train(values, name, parameters, optimizer, passes(name, width, outputs + 1), loss_of)


def make_transmil(module: ModuleType, classes: int, width: int = 64) -> nn.Module:
    """Make it with its parts at another width; its class has 1024 and 512 written in."""
    model = module.TransMIL(n_classes=classes)
    model._fc1 = nn.Sequential(nn.Linear(24, width), nn.ReLU())
    model.pos_layer = module.PPEG(dim=width)
    model.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    model.layer1, model.layer2 = (module.TransLayer(dim=width) for _ in range(2))
    model.norm, model._fc2 = nn.LayerNorm(width), nn.Linear(width, classes)
    return model


def transmil(values: Values, root: Path, nystrom009: Path) -> None:
    """TransMIL; `logits009` with the attention package that it pins, which cannot be trained."""
    module = load(root, "models.TransMIL")
    old = load(nystrom009, "nystrom_attention.nystrom_attention").NystromAttention
    lookahead, radam = transmil_optimizer(root)
    for classes in (2, 3):
        name = f"transmil_{classes}"
        with patch.object(module, "NystromAttention", old):
            pinned = make_transmil(module, classes)
        values.fill(name, pinned)
        for n in BAGS:
            with torch.no_grad():
                found = pinned(data=bag(name, n, 24)[None])
            values.put(f"{name}.out.n{n}.logits009", found["logits"])
        model = make_transmil(module, classes)
        parameters = values.fill(name, model)
        transmil_outputs(values, name, model, parameters)

        # Ten updates of two bags each: Lookahead moves its slow weights after the sixth.
        flat = {k for k, p in parameters.items() if p.ndim == 1 or k.endswith(".bias")}
        groups = [
            {"params": [p for k, p in parameters.items() if k in flat], "weight_decay": 0.0},
            {"params": [p for k, p in parameters.items() if k not in flat], "weight_decay": 1e-5},
        ]
        optimizer = lookahead(radam(groups, lr=2e-4))

        def loss_of(x: Tensor, y: int, model: nn.Module = model) -> Tensor:
            return F.cross_entropy(model(data=x[None])["logits"], torch.tensor([y]))

        bags = list(passes(name, 24, classes, times=4))[:20]
        train(values, name, parameters, optimizer, iter(bags), loss_of, every=2)


def transmil_outputs(
    values: Values, name: str, model: nn.Module, parameters: Mapping[str, Tensor]
) -> None:
    seen: dict[str, Tensor] = {}
    for layer in ("layer1", "layer2"):
        attention = getattr(model, layer).attn
        attention.register_forward_pre_hook(lambda _m, i, k=layer: seen.update({k: i[0]}))
    model.norm.register_forward_hook(lambda _m, _i, out: seen.update(bag=out[:, 0]))
    for n in BAGS:
        x = bag(name, n, 24)[None]
        found = model(data=x)
        values.put(f"{name}.out.n{n}.logits", found["logits"])
        values.put(f"{name}.out.n{n}.prob", found["Y_prob"])
        values.put(f"{name}.out.n{n}.bag", seen["bag"])
        for layer in ("layer1", "layer2"):
            tokens = seen[layer].detach()
            attention = getattr(model, layer).attn(tokens, return_attn=True)[1]
            row = attention[0, :, -tokens.shape[1], -tokens.shape[1] :].mean(0)
            values.put(f"{name}.out.n{n}.{layer}", row)
        for y in range(model.n_classes):
            loss = F.cross_entropy(model(data=x)["logits"], torch.tensor([y]))
            values.put(f"{name}.loss.n{n}.y{y}", loss)
            loss.backward()
            values.grad(f"{name}.grad.n{n}.y{y}", name, parameters)


def main(words: Sequence[str] | None = None) -> None:
    """Run everything and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("abmil", "clam", "topk", "dsmil", "transmil", "nystrom009", "dtfd", "less"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(words)
    warnings.simplefilter("ignore")  # of old calls in the official code
    values = Values()
    with in_float64():
        abmil(values, args.abmil)
        clam(values, args.clam, args.topk)
        dsmil(values, args.dsmil)
        transmil(values, args.transmil, args.nystrom009)
        dtfd(values, args.dtfd, BAGS, TRAIN_BAGS)
        less(values, args.less, BAGS, passes)
    made_with = {name: version(name) for name in ("torch", "timm", "nystrom-attention")}
    # One entry: several would be written in no fixed order.
    about = {"about": json.dumps({"shapes": values.shapes, "made_with": made_with})}
    save_file({key: value.contiguous() for key, value in values.items()}, args.output, about)
    print(f"{args.output}: {len(values)} values, {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
