"""Images from a generator.

Each image has a noise of its own, drawn from the seed and its number: asking for more images gives
the same first ones. Levels are rounded, not cut (upstream truncates, half a grey level darker).

Letters: B images, C channels, H W pixels, h w places of the latent, D width of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.file import Generator
from cytofm_cli.generate.interpolant import on_path
from cytofm_cli.generate.samplers import Guidance, SamplerName, Velocity, guided, sample
from cytofm_cli.views import draws

_STREAM: Final = 900  # what the seed is folded with for the noise of images


class HowToSample(Protocol):
    """The settings of sampling that both commands have: see `config.SampleConfig`."""

    @property
    def sampler(self) -> SamplerName: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def interval(self) -> tuple[float, ...]: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Start:
    """Where images begin instead of at noise alone: SDEdit (arXiv:2108.01073).

    Attributes:
        image_BCHW: an image each, float in [0, 1], of the generator's size.
        strength: how far each is noised first, t: 0 not at all, 1 to noise alone.
    """

    image_BCHW: Tensor
    strength: float


def draw_images(
    generator: Generator,
    given: Tensor | None,
    n: int,
    how: HowToSample,
    device: torch.device,
    *,
    start: Start | None = None,
    noises: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.uint8]:
    """Return n images, uint8 (n, H, W, 3).

    Args:
        generator: the networks; moved to the device.
        given: a condition an image, (n, E) vectors or (n,) classes; None: the null condition.
        n: how many.
        how: sampler, steps, guidance, seed.
        device: where to compute.
        start: images to begin at; None: at noise.
        noises: number of the noise of each image, those of one number are the same; None: each
            its own.
        progress: called with (images done, of how many).

    Raises:
        UsageError: guidance without a condition to lead to, or a null one to lead from; no
            condition for a generator that always had one; a condition of another width.
        InputError: a sample is not finite.
    """
    guidance = Guidance(scale=how.guidance, low=how.interval[0], high=how.interval[-1])
    require_guidance(generator, given, guidance)
    generator.sit.to(device)
    generator.vae.to(device)
    made = []
    for first in range(0, n, how.batch_size):
        rows = slice(first, min(first + how.batch_size, n))
        some = None if given is None else given[rows].to(device)
        begin = start and Start(start.image_BCHW[rows].to(device), start.strength)
        numbers = (noises or range(n))[rows]
        made.append(_batch(generator, some, numbers, how, guidance, device, begin))
        progress(rows.stop, n)
    return np.concatenate(made)


def require_guidance(generator: Generator, given: Tensor | None, guidance: Guidance) -> None:
    """Refuse guidance that has nothing to lead from or to, and a null condition never trained.

    Raises:
        UsageError: see `draw_images`.
    """
    guides, kind = guidance.scale > 1, generator.sit.shape.condition.kind
    without = "without a condition" if kind == "none" else "with --dropped 0"
    if guides and (kind == "none" or not generator.about.get("has_null", True)):
        raise UsageError(
            f"guidance {guidance.scale:g} without a null vector: this generator was trained "
            f"{without}.",
            hint="--guidance 1",
        )
    if given is not None or kind == "none":
        return
    if guides:
        raise UsageError(
            f"guidance {guidance.scale:g} leads to a condition, and none is given.",
            hint="--like STORE:CELL, --class NAME, or --guidance 1",
        )
    if not generator.about.get("has_null", True):
        raise UsageError(
            "no condition is given, and this generator was trained with one always (--dropped 0).",
            hint="--class NAME" if kind == "class" else "--like STORE:CELL",
        )


@torch.inference_mode()
def _batch(
    generator: Generator,
    given: Tensor | None,
    numbers: Sequence[int],
    how: HowToSample,
    guidance: Guidance,
    device: torch.device,
    start: Start | None,
) -> NDArray[np.uint8]:
    shape = generator.sit.shape
    streams = [_stream(how.seed, number) for number in numbers]
    place = (shape.latent, shape.side, shape.side)

    def noise(step: int, n: Tensor) -> Tensor:
        drawn = [torch.randn(place, generator=s, dtype=torch.float64) for s in streams]
        return torch.stack(drawn).to(device)

    told, null = _velocities(generator, given, len(numbers))
    begun, from_t = noise(-1, torch.empty(0)), 1.0
    if start is not None:
        begun, from_t = _noised(generator, start, begun), start.strength
    latent = sample(
        guided(told, null, guidance),
        begun,
        sampler=how.sampler,
        steps=how.steps,
        noise=noise,
        from_t=from_t,
    )
    decoded = generator.vae.decode(generator.sit.bn.back(latent.float()))
    if not bool(torch.isfinite(decoded).all()):
        raise InputError(
            "the generator gives images that are not finite.", hint="its training diverged"
        )
    return to_levels(decoded)


def _noised(generator: Generator, start: Start, noise_BChw: Tensor) -> Tensor:
    """Return the latents of images on their way to noise, at t = strength."""
    z_BChw = generator.vae.encode(start.image_BCHW * 2 - 1).mean_BChw
    t_B = torch.full((len(z_BChw),), start.strength, device=z_BChw.device, dtype=torch.float64)
    return on_path(generator.sit.bn.by_running(z_BChw).double(), noise_BChw, t_B)


def _velocities(generator: Generator, given: Tensor | None, n: int) -> tuple[Velocity, Velocity]:
    """Return the network's velocity under the condition, and under none."""
    sit = generator.sit
    has = sit.shape.condition.kind != "none"
    null_BD = sit.y_embedder.null(n) if has else None
    told_BD = null_BD if given is None or not has else sit.y_embedder(given)

    def of(condition_BD: Tensor | None) -> Velocity:
        def velocity(n_t: Tensor, t: float) -> Tensor:
            times = torch.full((len(n_t),), t, device=n_t.device)
            said: Tensor = sit(n_t.float(), times, condition_BD)
            return said

        return velocity

    return of(told_BD), of(null_BD)


def to_levels(x_BCHW: Tensor) -> NDArray[np.uint8]:
    """Return images in [-1, 1] as uint8 (B, H, W, 3), rounded."""
    levels = ((x_BCHW + 1) * 127.5).round().clamp(0, 255).byte()
    image: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).cpu().numpy()
    return image


def _stream(seed: int, number: int) -> torch.Generator:
    key = int(draws.fold(draws.sample_keys(seed, _STREAM), number)) >> 1
    return torch.Generator().manual_seed(key)
