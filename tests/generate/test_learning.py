"""It learns: a conditional toy whose answer is known, and which a wrong sign fails."""

from __future__ import annotations

import pytest
import torch

from cytofm_cli.generate.conditions import ConditionShape
from cytofm_cli.generate.config import PRESETS
from cytofm_cli.generate.interpolant import on_path, velocity_loss
from cytofm_cli.generate.samplers import Guidance, guided, sample
from cytofm_cli.generate.sit import SiT
from cytofm_cli.generate.vae import Vae, VaeShape

from .toys import sit_shape

pytestmark = pytest.mark.slow

MEANS = (-0.8, 0.8)
SPREAD = 0.2


def blobs(labels: torch.Tensor) -> torch.Tensor:
    """Return 4 × 4 images of one channel, whose level tells their class."""
    level = torch.tensor(MEANS)[labels] + SPREAD * torch.randn(len(labels))
    return level[:, None, None, None].expand(-1, 1, 4, 4).clone()


def trained(sign: float, steps: int = 400) -> SiT:
    torch.manual_seed(0)
    shape = sit_shape(
        side=4, latent=1, patch=2, depth=2, width=32, aligned=0,
        condition=ConditionShape(kind="class", classes=2),
    )  # fmt: skip
    sit = SiT(shape)
    optimiser = torch.optim.AdamW(sit.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        labels = torch.randint(2, (64,))
        n, t = blobs(labels), torch.rand(64)
        noise = torch.randn_like(n)
        null = torch.rand(64) < 0.1
        said = sit(on_path(n, noise, t), t, sit.y_embedder(labels, null))
        optimiser.zero_grad()
        velocity_loss(sign * said, n, noise).backward()
        optimiser.step()
    return sit


@pytest.fixture(scope="module")
def sit() -> SiT:
    return trained(1.0)


@torch.no_grad()
def means_of(sit: SiT, asked: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    told, null = sit.y_embedder(asked), sit.y_embedder.null(len(asked))
    velocity = guided(
        lambda x, t: sit(x.float(), torch.full((len(x),), t), told),
        lambda x, t: sit(x.float(), torch.full((len(x),), t), null),
        Guidance(scale=scale),
    )
    start = torch.randn(len(asked), 1, 4, 4, generator=torch.Generator().manual_seed(1))
    ended = sample(
        velocity, start, sampler="heun", steps=12, noise=lambda step, n: torch.zeros_like(n)
    )
    return ended.mean((1, 2, 3))


@pytest.mark.slow
def test_learning__conditional_means_are_met_and_a_wrong_sign_is_not(sit: SiT) -> None:
    asked = torch.arange(2).repeat(100)
    levels = means_of(sit, asked)
    for label in (0, 1):
        mine = levels[asked == label]
        assert abs(float(mine.mean()) - MEANS[label]) < 0.12
        assert abs(float(mine.std()) - SPREAD) < 0.12
    shuffled = asked.flip(0)
    assert abs(float(levels[shuffled == 0].mean()) - MEANS[0]) > 0.5
    wrong = means_of(trained(-1.0), asked)
    assert abs(float(wrong[asked == 0].mean()) - MEANS[0]) > 0.5


@pytest.mark.slow
def test_learning__guidance_leads_further_apart(sit: SiT) -> None:
    asked = torch.arange(2).repeat(50)
    gap = []
    for scale in (1.0, 2.0):
        levels = means_of(sit, asked, scale)
        gap.append(float(levels[asked == 1].mean() - levels[asked == 0].mean()))
    assert gap[1] > gap[0]


def overfitted(lr: float, steps: int = 60) -> float:
    """Return the L1 of an autoencoder of tiny on four images, each of one colour, in [-1, 1]."""
    torch.manual_seed(0)
    colour = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.3], [0.2, 0.3, 0.9], [0.8, 0.8, 0.1]])
    x = 2 * colour[:, :, None, None].expand(4, 3, 16, 16) - 1
    vae = Vae(VaeShape(base=PRESETS["tiny"]["vae_base"], blocks=PRESETS["tiny"]["vae_blocks"]))
    optimiser = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 10)
        posterior = vae.encode(x)
        decoded = vae.decode(posterior.sample(torch.randn_like(posterior.mean_BChw)))
        loss = (x - decoded).abs().mean()
        optimiser.zero_grad()
        (loss + 1e-6 * posterior.divergence().mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
    return float(loss.detach())


def test_learning__four_colours_come_through_the_autoencoder_of_tiny() -> None:
    # The best single colour is off by 0.55; at 1e-3 it is 0.17, with the noise of
    # PyTorch's start 0.33.
    assert overfitted(PRESETS["tiny"]["lr"]) < 0.1


def test_learning__the_latent_begins_with_little_noise() -> None:
    torch.manual_seed(0)
    posterior = Vae(VaeShape(base=32, blocks=1)).encode(torch.rand(4, 3, 32, 32) * 2 - 1)
    spread = torch.exp(0.5 * posterior.logvar_BChw)
    assert torch.allclose(spread, torch.tensor(-3.0).exp().expand_as(spread))
