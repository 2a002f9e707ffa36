"""What every self-supervised method must do, and what is special to each."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cytofm_cli.config import resolve
from cytofm_cli.encoders.handcrafted.describe import describe
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import Method
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.losses import Centre, Sinkhorn
from cytofm_cli.pretrain.optim import build_optimizer
from cytofm_cli.pretrain.parallel import wrap
from cytofm_cli.pretrain.schedules import cosine
from cytofm_cli.pretrain.teacher import TeacherMethod, encode
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.testing.samples.trunks import Backbones, ToyVit
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD

from .toys import length, make_batch, make_method

# Students of a frozen ViT need one: tests/pretrain/test_distill_students.py.
STUDENTS = ["distill_dino", "distill_relations", "distill_tokens"]
METHODS = [name for name in pretrain_methods.names() if name not in STUDENTS]
MASKED = ("ibot", "dinov2")
PROTOTYPES = ("dino", *MASKED)
VARIANTS = [
    *((name, "vit", {}) for name in METHODS),
    *((name, "conv", {}) for name in METHODS if name not in MASKED),
    ("dino", "vit", {"centring": "sinkhorn"}),
    ("ibot", "vit", {"shared_head": False}),
    ("ibot", "vit", {"mask_chance": 0.0, "shared_head": False}),  # no image is masked
    ("dinov2", "vit", {"shared_head": False, "centring": "mean"}),
    ("dinov2", "vit", {"koleo": 0.0, "mask_chance": 0.0}),
    ("moco", "vit", {"freeze_patch_embed": False}),
]
IDS = [
    " ".join([name, kind, *(f"{k}={v}" for k, v in more.items())]) for name, kind, more in VARIANTS
]
each_variant = pytest.mark.parametrize(("name", "kind", "settings"), VARIANTS, ids=IDS)


def step_of(method: Method, batch: object, step: int, optimizer: torch.optim.Optimizer) -> Tensor:
    """Do an update as the loop does."""
    optimizer.zero_grad()
    out = method(batch, step)
    out.loss.backward()
    method.before_update(step)
    optimizer.step()
    method.after_update(step)
    return out.loss.detach()


def optimizer_of(method: Method, lr: float = 1e-3) -> torch.optim.Optimizer:
    optimizer = build_optimizer(method)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, 0.0
    return optimizer


def teacher_of(method: Method) -> nn.Module | None:
    return method.teacher_net if isinstance(method, TeacherMethod) else None


# ---------------------------------------------------------------- all methods


def test_registry__has_the_methods() -> None:
    assert METHODS == ["byol", "dino", "dinov2", "distill", "ibot", "moco", "simclr"]
    for name in METHODS + STUDENTS:
        plugin = pretrain_methods.load(name)
        assert resolve(plugin.config, name) == plugin.config()  # defaults lie in their ranges


@pytest.mark.parametrize("name", PROTOTYPES)
def test_prototypes__say_the_entropy_of_the_teacher(name) -> None:
    parts = make_method(name)(make_batch(name), 3).parts
    assert 0 <= parts["teacher_entropy"] <= math.log(32) + 1e-6


@each_variant
def test_method__teacher_starts_as_the_student_and_moves_by_the_momentum(
    name, kind, settings
) -> None:
    method = make_method(name, kind, n_steps=10, **settings)
    teacher = teacher_of(method)
    if teacher is None:
        assert method.encoder() is method.student()
        return
    assert not any(p.requires_grad for p in teacher.parameters())
    assert method.encoder() is teacher.trunk and method.student() is method.student_net.trunk
    own = dict(method.student_net.named_parameters())
    before = {key: p.clone() for key, p in teacher.named_parameters()}
    assert all(torch.equal(p, own[key]) for key, p in before.items())
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(1)
    method.after_update(4)
    momentum = cosine(4, 10, method.config.momentum, 1.0)
    assert {"dino": 0.996, "dinov2": 0.992, "moco": 0.99}.get(name, 0.996) < momentum < 1
    for key, parameter in teacher.named_parameters():
        moved = momentum * before[key] + (1 - momentum) * own[key]
        torch.testing.assert_close(parameter, moved, atol=1e-6, rtol=1e-6)
        assert not torch.equal(parameter, before[key])


@pytest.mark.parametrize("name", METHODS)
def test_method__asks_for_a_student_and_a_teacher(name) -> None:
    plugin, backbones = pretrain_methods.load(name), Backbones()
    plugin.make(backbones, plugin.config(), length())
    masks = name in MASKED
    expected = [("student", masks)] + [("teacher", False)] * (name not in ("simclr", "distill"))
    assert backbones.asked == expected


# ---------------------------------------------------------------- views


class Counting(ToyVit):
    def __init__(self) -> None:
        super().__init__(masks=True)
        self.shapes: list[tuple[tuple[int, ...], bool]] = []

    def forward(self, x_BCHW, mask_BN=None):
        self.shapes.append((tuple(x_BCHW.shape), mask_BN is not None))
        return super().forward(x_BCHW, mask_BN)


def test_encode__one_pass_a_size_gives_what_each_view_gives_alone() -> None:
    trunk, views = Counting(), [torch.randn(2, 3, size, size) for size in (16, 8, 16, 8, 8)]
    masks = [torch.rand(2, 16) < 0.5, None, torch.rand(2, 16) < 0.5, None, None]
    joined = encode(trunk, views, masks)
    assert trunk.shapes == [((4, 3, 16, 16), True), ((6, 3, 8, 8), False)]
    for view, mask, tokens in zip(views, masks, joined, strict=True):
        alone = trunk(view, mask)
        torch.testing.assert_close(tokens.cls_BD, alone.cls_BD)
        torch.testing.assert_close(tokens.patch_BND, alone.patch_BND)


@pytest.mark.parametrize("name", PROTOTYPES)
def test_teacher__sees_whole_global_views_only(name) -> None:
    method, batch = make_method(name), make_batch(name)
    method.teacher_net.trunk, method.student_net.trunk = Counting(), Counting()
    method(batch, 0)
    assert method.teacher_net.trunk.shapes == [((16, 3, 16, 16), False)]
    masked = name in MASKED
    expected = [((16, 3, 16, 16), masked), ((16, 3, 8, 8), False)]
    assert method.student_net.trunk.shapes == expected


@pytest.mark.parametrize("name", ["byol", "moco", "simclr"])
def test_pair_methods__refuse_other_views_and_single_tiles(name) -> None:
    method = make_method(name)
    with pytest.raises(UsageError, match="2 global and 1 local"):
        method(make_batch(name, n_local=1), 0)
    with pytest.raises(UsageError, match="single tile"):
        method(make_batch(name, n=1), 0)


@pytest.mark.parametrize("name", MASKED)
def test_masked_methods__need_patches(name) -> None:
    with pytest.raises(UsageError, match="patches"):
        make_method(name, "conv")


# ---------------------------------------------------------------- prototypes


@pytest.mark.parametrize("name", PROTOTYPES)
def test_prototypes__rest_at_the_start(name) -> None:
    method = make_method(name, n_steps=100, freeze_last=0.02)
    for step, frozen in ((0, True), (1, True), (2, False)):
        method(make_batch(name), step).loss.backward()
        method.before_update(step)
        for key, parameter in method.student_net.named_parameters():
            assert (parameter.grad is None) == (frozen and key.endswith("prototypes")), key


def test_teacher_temperature__follows_its_schedule() -> None:
    config = pretrain_methods.load("dino").config()
    found = [config.temperature(length(100), step) for step in (0, 15, 30, 99)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])


@pytest.mark.parametrize(
    ("name", "kind"), [("dino", Centre), ("ibot", Centre), ("dinov2", Sinkhorn)]
)
def test_centring__is_the_published_one(name, kind) -> None:
    targets = make_method(name).targets
    assert all(type(module) is kind for module in targets.values())
    assert set(targets) == ({"cls"} if name == "dino" else {"cls", "patch"})


def test_centre__moves_after_the_update_by_the_teachers_scores() -> None:
    method, batch = make_method("dino"), make_batch("dino")
    with torch.no_grad():
        tokens = encode(method.teacher_net.trunk, batch.views[:2])
        scores = method.teacher_net.heads["cls"](torch.cat([view.cls_BD for view in tokens]))
    method(batch, 0)
    assert not method.targets["cls"].centre_K.any()
    method.after_update(0)
    torch.testing.assert_close(method.targets["cls"].centre_K, 0.1 * scores.mean(0))


def test_ibot__separate_heads_differ_and_a_shared_one_serves_both() -> None:
    assert set(make_method("ibot").student_net.heads) == {"cls"}
    assert set(make_method("ibot", shared_head=False).student_net.heads) == {"cls", "patch"}


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_masked_methods__loss_is_the_weighted_sum_of_its_parts(weight) -> None:
    out = make_method("dinov2", patch_weight=weight, koleo=0.3)(make_batch("dinov2"), 0)
    parts = out.parts
    total = parts["view_loss"] + weight * parts["patch_loss"] + 0.3 * parts["koleo"]
    torch.testing.assert_close(out.loss.detach(), total)


def test_ibot__without_masks_is_dino() -> None:
    ibot, dino = make_method("ibot", mask_chance=0.0), make_method("dino")
    dino.load_state_dict(
        {k: v for k, v in ibot.state_dict().items() if "mask_token" not in k and ".patch." not in k}
    )
    batch = make_batch("dino")
    torch.testing.assert_close(ibot(batch, 0).loss, dino(batch, 0).loss)


# ---------------------------------------------------------------- distillation


def test_distill__regresses_the_teachers_features_of_the_very_pixels() -> None:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    plain = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    method, batch = make_method("distill", contrast=0.0), make_batch("distill")
    batch = dataclasses.replace(batch, views=[*batch.views[:2], plain])
    out = method(batch, 0)
    said = np.stack(list(describe(pixels.numpy()).values()), 1)
    scaled = (said - said.mean(0)) / said.std(0).clip(1e-6)
    target = torch.tensor(scaled.clip(-4, 4), dtype=torch.float32)
    losses = []
    for view in batch.views[:2]:
        difference = (method.head(method.trunk(view).cls_BD) - target).abs()
        losses.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean())
    torch.testing.assert_close(out.loss, sum(losses) / 2, atol=2e-4, rtol=2e-4)
    assert out.parts["regression"] == out.loss


def test_distill__compares_class_token_and_mean_of_the_patches() -> None:
    method = make_method("distill", tokens="cls+mean", contrast=0.0)
    batch = make_batch("distill")
    dim = method.trunk.dim
    assert method.head[1].in_features == 2 * dim
    with torch.no_grad():  # a head that says the first of the patches' mean alone
        method.head[1].weight.zero_()
        method.head[1].weight[0, dim] = 1
        method.head[1].bias.zero_()
        tokens = method.trunk(batch.views[0])
        joined = torch.cat([tokens.cls_BD, tokens.patch_BND.mean(1)], 1)
        said = method.head(method._compared(tokens))
        torch.testing.assert_close(said[:, 0], method.head[0](joined)[:, dim])
    assert not said[:, 1:].any()


def test_distill__teacher_describes_squares_about_the_middle() -> None:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (8, 20, 20, 3), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    plain = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    method = make_method("distill", teacher_crops=(0.5, 1.0))
    whole = np.stack(list(describe(pixels.numpy()).values()), 1)
    inner = np.stack(list(describe(pixels[:, 5:15, 5:15].numpy()).values()), 1)
    assert method.head[1].out_features == 2 * whole.shape[1]
    expected = torch.tensor(np.concatenate([inner, whole], 1), dtype=torch.float32)
    torch.testing.assert_close(method._ask(plain), expected, atol=1e-4, rtol=1e-4)
    for shares in ((), (0.0,), (1.5,)):
        with pytest.raises(UsageError, match="teacher_crops"):
            make_method("distill", teacher_crops=shares)


def test_distill__refuses_other_views_and_unknown_teachers() -> None:
    with pytest.raises(UsageError, match="two global views and the teacher's") as found:
        make_method("distill")(make_batch("simclr"), 0)
    assert found.value.hint == "--recipe distill"
    with pytest.raises(UsageError, match="single tile"):
        make_method("distill")(make_batch("distill", n=1), 0)
    with pytest.raises(UsageError, match="no encoder is called 'nobody'"):
        make_method("distill", teacher="nobody")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dino", {"teacher_temp": 0.0}),
        ("dino", {"teacher_temp_start": -0.04}),
        ("ibot", {"student_temp": math.nan}),
        ("simclr", {"temperature": 0.0}),
        ("moco", {"temperature": math.inf}),
        ("dinov2", {"teacher_temp_start": 0.01}),  # exp overflows
        ("ibot", {"mask_low": 0.6}),
    ],
)
def test_config__refuses_what_cannot_work(name, settings) -> None:
    with pytest.raises(UsageError, match=next(iter(settings)) + "|temperature of 0.01"):
        pretrain_methods.load(name).config(**settings)


def test_config__published_values() -> None:
    default = {name: pretrain_methods.load(name).config() for name in METHODS}
    assert (default["dino"].prototypes, default["ibot"].prototypes) == (65536, 8192)
    assert {n: c.momentum for n, c in default.items() if n not in ("simclr", "distill")} == {
        "byol": 0.996,
        "dino": 0.996,
        "dinov2": 0.992,
        "ibot": 0.996,
        "moco": 0.99,
    }
    del default["distill"]  # ours
    assert {n: (c.lr, c.weight_decay, c.weight_decay_end) for n, c in default.items()} == {
        "byol": (1e-4, 0.03, 0.03),
        "dino": (5e-4, 0.04, 0.4),
        "dinov2": (2e-3, 0.04, 0.4),
        "ibot": (5e-4, 0.04, 0.4),
        "moco": (1.5e-4, 0.1, 0.1),
        "simclr": (2e-4, 0.1, 0.1),
    }


def test_moco__patch_embedding_rests_only_if_asked_and_there() -> None:
    def moving(kind: str, **settings: bool) -> set[str]:
        named = make_method("moco", kind, **settings).student().named_parameters()
        return {key for key, p in named if p.requires_grad}

    assert not any("patch_embed" in key for key in moving("vit"))
    assert any("patch_embed" in key for key in moving("vit", freeze_patch_embed=False))
    assert moving("conv") == {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}


# ---------------------------------------------------------------- several processes


def test_copies__leave_the_buffers_of_each_process_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:  # what torch warns of is an error here
        wrapped = wrap(make_method("dino"), "ddp", World(size=2), torch.device("cpu"))
        assert isinstance(wrapped, DistributedDataParallel)
        assert list(wrapped.buffers())
        assert not wrapped.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes__do_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("two_processes.py")
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.pretrain.two_processes", str(tmp_path)],
                env={**os.environ, **place, **address},
                cwd=script.parents[2],
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in started:
        _, said = process.communicate()
        assert process.returncode == 0, said
    from .two_processes import CASES, losses_and_gradients

    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case in CASES:
        expected = losses_and_gradients(case)
        mean = (found[0][case]["loss"] + found[1][case]["loss"]) / 2
        torch.testing.assert_close(mean, expected["loss"], atol=1e-10, rtol=1e-10)
        for rank in range(2):  # gradients are averaged by DDP; centres and teachers follow
            assert found[rank][case].keys() == expected.keys()
            for key in expected.keys() - {"loss"}:
                torch.testing.assert_close(
                    found[rank][case][key],
                    expected[key],
                    atol=1e-10,
                    rtol=1e-8,
                    msg=f"{case} {key}",
                )
