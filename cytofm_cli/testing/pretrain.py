"""What every self-supervised method must do. A case builds methods on small trunks.

Letters: B tiles, C H W an image, D features.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cytofm_cli.config import resolve
from cytofm_cli.pretrain.base import Backbone, Batch, Length, Method, MethodConfig
from cytofm_cli.pretrain.optim import build_optimizer
from cytofm_cli.registry import PretrainPlugin, Sample, pretrain_methods
from cytofm_cli.testing.samples.trunks import Backbones
from cytofm_cli.testing.suite import Case, Suite
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.recipes import recipe_of

N_TILES: Final = 8
# Small enough to train within milliseconds; settings that a method lacks are left out.
SMALL: Final = {"prototypes": 32, "hidden": 24, "bottleneck": 8, "out": 8, "mask_min_patches": 1}
# A moving target may well raise the loss of self-distillation at first.
_REST: Final = {
    "momentum": 1.0,
    "centre_momentum": 1.0,
    "teacher_temp_warmup": 0.0,
    "freeze_last": 0.0,
}
_GLOBAL_PX, _LOCAL_PX, _MOST_LOCAL = 16, 8, 2


@dataclass(frozen=True)
class Methods:
    """Builds a method under the settings of a sample, and batches of its views."""

    name: str
    plugin: PretrainPlugin
    sample: Sample

    def trunks(self) -> tuple[str, ...]:
        """Name the trunks that it must take."""
        return ("vit",) if self.sample.traits.get("masks") else ("vit", "conv")

    def build(self, trunk: str, *, seed: int = 0, **more: Any) -> Method:
        """Return a method in training mode."""
        config = self.plugin.config or MethodConfig
        known = {field.name for field in dataclasses.fields(config)}
        wanted: Mapping[str, Any] = {**SMALL, **more, **self.sample.settings}
        settings = {key: value for key, value in wanted.items() if key in known}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            length = Length(n_steps=100, steps_per_epoch=10, batch=N_TILES)
            method: Method = self.plugin.make(Backbones(trunk, seed), config(**settings), length)
        return method.train()

    def batch(self, n: int = N_TILES, seed: int = 0) -> Batch:
        """Draw views as its recipe has them; tiles differ more than the views of one do."""
        recipe = recipe_of(ViewsConfig(**self.plugin.views))
        large = max(view.size_px for view in recipe.views)
        sizes = [
            _GLOBAL_PX if view.size_px == large else _LOCAL_PX
            for number, view in enumerate(recipe.views)
            if view.size_px == large or number < recipe.n_global + _MOST_LOCAL
        ]
        generator = torch.Generator().manual_seed(seed)
        tile = torch.randn(n, 3, 1, 1, generator=generator)
        views = [tile + 0.5 * torch.randn(n, 3, px, px, generator=generator) for px in sizes]
        return Batch(views=views, n_global=recipe.n_global, keys_B=sample_keys(seed, np.arange(n)))


def _methods(name: str, plugin: PretrainPlugin, sample: Sample, _folder: Path) -> Methods:
    return Methods(name, plugin, sample)


SUITE = Suite(pretrain_methods, _methods)


def _step(method: Method, batch: Batch, step: int, optimizer: torch.optim.Optimizer) -> Tensor:
    """Do an update as the loop does."""
    optimizer.zero_grad()
    out = method(batch, step)
    out.loss.backward()
    method.before_update(step)
    optimizer.step()
    method.after_update(step)
    loss: Tensor = out.loss.detach()
    return loss


def _optimizer(method: Method, lr: float = 1e-3) -> torch.optim.Optimizer:
    optimizer = build_optimizer(method)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, 0.0
    return optimizer


@SUITE.check
def defaults_lie_in_their_ranges(case: Case) -> None:
    """And the views are of settings that a user may leave open."""
    config = case.plugin.config or MethodConfig
    assert resolve(config, case.name) == config()
    open_settings = {f.name for f in dataclasses.fields(ViewsConfig) if f.default is None}
    assert set(case.plugin.views) <= open_settings | {"recipe"}


@SUITE.check
def loss_and_parts_are_finite_and_repeat_themselves(case: Case) -> None:
    """Randomness comes from the keys of the batch only."""
    for trunk in case.thing.trunks():
        method, batch = case.thing.build(trunk), case.thing.batch()
        first, again = method(batch, 3), method(batch, 3)
        assert first.loss.shape == ()
        assert first.loss.isfinite()
        assert torch.equal(first.loss, again.loss)
        assert first.features_BD.shape == (N_TILES, 16)
        assert not first.features_BD.requires_grad
        for part, value in first.parts.items():
            assert value.isfinite(), part
            assert not value.requires_grad, part
            assert value.shape == (), part


@SUITE.check
def every_trained_parameter_gets_a_gradient_and_no_other(case: Case) -> None:
    """What the trait `idle` names may get a gradient of 0, as a mask token without masks."""
    for trunk in case.thing.trunks():
        method = case.thing.build(trunk)
        method(case.thing.batch(), 5).loss.backward()
        rests = set()
        for key, parameter in method.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), key
                rests |= set() if parameter.grad.any() else {key}
        idle = case.sample.traits.get("idle", ())
        assert all(any(word in key for word in idle) for key in rests), rests


@SUITE.check
def trunks_are_those_that_it_was_given(case: Case) -> None:
    """The one to keep, and the one that is trained."""
    method = case.thing.build("vit")
    assert isinstance(method.encoder(), Backbone)
    assert isinstance(method.student(), Backbone)
    assert any(parameter.requires_grad for parameter in method.student().parameters())


@SUITE.check
def the_state_gives_the_next_losses_bit_for_bit(case: Case) -> None:
    """A resumed run goes on as if it had not stopped."""
    for trunk in case.thing.trunks():
        method = case.thing.build(trunk)
        optimizer = _optimizer(method)
        for step in range(2):
            _step(method, case.thing.batch(seed=step), step, optimizer)
        other = case.thing.build(trunk, seed=99)
        other.load_state_dict(method.state_dict())
        twin = _optimizer(other)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for step in (2, 3):
            batch = case.thing.batch(seed=step)
            expected = _step(method, batch, step, optimizer)
            assert torch.equal(_step(other, batch, step, twin), expected)


@SUITE.check
def the_loss_falls_towards_a_target_that_rests(case: Case) -> None:
    """On one batch, seen again and again."""
    rest = {**_REST, **case.sample.traits.get("rest", {})}
    for trunk in case.thing.trunks():
        method, batch = case.thing.build(trunk, **rest), case.thing.batch(n=16)
        optimizer = _optimizer(method, 3e-3)
        losses = [_step(method, batch, step, optimizer) for step in range(15)]
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


@SUITE.check
def the_order_of_tiles_does_not_matter(case: Case) -> None:
    """Neither for the loss nor for the features."""
    order = [3, 0, 7, 1, 6, 5, 2, 4]
    for trunk in case.thing.trunks():
        method, batch = case.thing.build(trunk), case.thing.batch()
        mixed = Batch(
            views=[view[order] for view in batch.views],
            n_global=batch.n_global,
            keys_B=batch.keys_B[np.asarray(order)],
        )
        expected, got = method(batch, 1), method(mixed, 1)
        torch.testing.assert_close(got.loss, expected.loss, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(
            got.features_BD, expected.features_BD[order], atol=1e-5, rtol=1e-4
        )


@SUITE.check
def half_precision_gives_float32_losses(case: Case) -> None:
    """Near to the exact ones."""
    with torch.autocast("cpu", torch.bfloat16):
        out = case.thing.build("vit")(case.thing.batch(), 0)
    assert out.loss.dtype == torch.float32
    exact = case.thing.build("vit")(case.thing.batch(), 0)
    torch.testing.assert_close(out.loss, exact.loss, atol=0.1, rtol=0.05)
