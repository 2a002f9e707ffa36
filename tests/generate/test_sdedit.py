"""Images that begin at other images: SDEdit on the samplers' way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytofm_cli.generate.file import Generator
from cytofm_cli.generate.sample import Start, draw_images, to_levels
from cytofm_cli.generate.samplers import sample
from cytofm_cli.generate.sit import SiT
from cytofm_cli.generate.use_config import RestainConfig
from cytofm_cli.generate.vae import Vae

from .toys import VAE, images, sit_shape

CPU = torch.device("cpu")
HOW = {"steps": 6, "guidance": 1.0, "batch_size": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    sit, vae = SiT(sit_shape(side=16, patch=4)).eval(), Vae(VAE).eval()
    torch.nn.init.normal_(sit.final_layer.linear.weight, std=0.1)  # zero as it begins
    torch.nn.init.normal_(sit.y_embedder.proj.weight)
    torch.nn.init.normal_(sit.final_layer.adaLN_modulation[1].weight)
    with torch.no_grad():
        sit.bn.begin(vae.encode(images(8) * 2 - 1).mean_BChw)
    return Generator(sit, vae, {})


def test_start__without_noise_gives_the_decoded_image(generator: Generator) -> None:
    told = torch.randn(4, 5)
    made = draw_images(generator, told, 4, RestainConfig(**HOW), CPU, start=Start(images(), 0.0))
    with torch.inference_mode():
        decoded = to_levels(generator.vae.decode(generator.vae.encode(images() * 2 - 1).mean_BChw))
    assert np.abs(made.astype(int) - decoded).max() <= 1  # there and back through the norm


@pytest.mark.parametrize("sampler", ["euler", "heun", "sde"])
def test_start__at_full_noise_is_plain_sampling_bit_for_bit(
    generator: Generator, sampler: str
) -> None:
    told, how = torch.randn(4, 5), RestainConfig(sampler=sampler, **HOW)
    plain = draw_images(generator, told, 4, how, CPU)
    begun = draw_images(generator, told, 4, how, CPU, start=Start(images(), 1.0))
    half = draw_images(generator, told, 4, how, CPU, start=Start(images(), 0.5))
    assert np.array_equal(plain, begun)
    assert not np.array_equal(plain, half)


def test_noises__of_one_number_are_the_same(generator: Generator) -> None:
    told, how = torch.randn(1, 5).repeat(4, 1), RestainConfig(**HOW)
    made = draw_images(generator, told, 4, how, CPU, noises=[7, 7, 7, 2])
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
    assert not np.array_equal(made[0], made[3])


def test_sample__from_half_way_takes_half_of_the_steps_and_ends_where_the_way_does() -> None:
    asked: list[float] = []

    def velocity(n, t):
        asked.append(t)
        return torch.full_like(n, 2.0)  # a straight way: 2 less at 0 than at 1

    ended = sample(
        velocity, torch.tensor([3.0]), sampler="euler", steps=8, noise=lambda s, n: n, from_t=0.5
    )
    assert (asked, float(ended)) == ([0.5, 0.375, 0.25, 0.125], 2.0)
    asked.clear()
    sample(velocity, torch.zeros(1), sampler="sde", steps=8, noise=lambda s, n: 0 * n, from_t=0.5)
    assert asked == pytest.approx([0.5, 0.5 - 0.46 / 3, 0.5 - 0.92 / 3, 0.04])
    asked.clear()
    sample(velocity, torch.zeros(1), sampler="sde", steps=50, noise=lambda s, n: 0 * n, from_t=0.02)
    assert asked == [0.02]  # below the last step of the way
    start = torch.tensor([3.0], dtype=torch.float64)
    stay = sample(velocity, start, sampler="sde", steps=8, noise=lambda s, n: n, from_t=0.0)
    assert torch.equal(stay, start)
