"""The training step of REPA-E (arXiv:2504.10483): autoencoder and SiT at once.

What the gradient of each loss reaches:

| loss | autoencoder | SiT | its projector | discriminator |
|---|---|---|---|---|
| L1, perceptual, KL, adversarial | yes | no | no | no |
| alignment of the autoencoder's pass | yes | no | no | no |
| velocity | no | yes | no | no |
| alignment of the SiT's pass | no | yes | yes | no |
| hinge | no | no | no | yes |

Upstream takes three steps with three optimisers: the autoencoder's, with the SiT frozen and the
latents' norm at rest; the discriminator's; the SiT's, on the latents from before the first one,
with the same times and noise. No step reads what a former one has changed, the networks share no
parameter, and AdamW moves each parameter by itself: so here the three losses are one sum, and one
optimiser holds what the three would. Each network is clipped by itself. Then the running means of
the SiT, with the statistics of the latents, and, beyond upstream, of the autoencoder follow: else
samples would be brought back by averaged statistics and decoded by raw weights (CytoSyn,
arXiv:2603.18089, finds the autoencoder's mean to help).

A second training, upstream's `train_ldm_only.py`, takes the autoencoder and the statistics of its
latents as they are (`Resting`) and trains the SiT alone, on latents drawn anew at every step.

Decided, where upstream has a trap: only what the loop trains is ever switched back to training;
the perceptual distance is that of the aligned encoder's tokens (1 - cosine), which gets images in
[0, 1] as its normalisation wants them (no LPIPS weights come with cytofm); tiles may be turned.

Letters: B images, C channels, H W pixels, h w places of the latent, V width of a condition.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cytofm_cli.generate.discriminator import Discriminator, hinge
from cytofm_cli.generate.frozen import FrozenEncoder, Seen
from cytofm_cli.generate.interpolant import alignment_loss, draw_times, on_path, velocity_loss
from cytofm_cli.generate.sit import SiT, SitShape
from cytofm_cli.generate.vae import Posterior, Resting, Vae, VaeShape
from cytofm_cli.pretrain import ema, optim
from cytofm_cli.pretrain.base import Batch, Learner, MethodConfig, StepOutput


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the losses, and what else a step needs to know.

    Attributes:
        kl, perceptual, gan, align_vae, align_sit: of the losses.
        dropped: share of images that are told nothing.
        times: "uniform" or "lognormal".
        ema: share that the running means keep.
        clip: largest gradient norm of each network; 0: none.
    """

    kl: float = 1e-6
    perceptual: float = 1.0
    gan: float = 0.1
    align_vae: float = 1.5
    align_sit: float = 0.5
    dropped: float = 0.1
    times: str = "uniform"
    ema: float = 0.9999
    clip: float = 1.0


@dataclass(frozen=True)
class Draws:
    """What both passes of a step share.

    Attributes:
        t_B: times.
        noise_BChw: ε.
    """

    t_B: Tensor
    noise_BChw: Tensor


class RepaE(Learner):
    """Autoencoder, SiT, their running means and, with a weight, a discriminator.

    Args:
        vae: sizes of the autoencoder.
        sit: sizes of the SiT.
        weights: of the losses.
        config: rates.
        told: whose vectors are conditions; None: nobody's.
        aligned: whose tokens are aligned with; None: nobody's.
        classes: int64, the class of each tile of the index; None: conditions are no classes.
        resting: the autoencoder, of sizes `vae`, that stays; None: it is trained.
    """

    def __init__(
        self,
        vae: VaeShape,
        sit: SitShape,
        weights: Weights,
        config: MethodConfig,
        *,
        told: FrozenEncoder | None = None,
        aligned: FrozenEncoder | None = None,
        classes: Tensor | None = None,
        resting: Resting | None = None,
    ) -> None:
        super().__init__()
        self.config, self.weights, self._rests = config, weights, resting is not None
        self.vae, self.sit = Vae(vae), SiT(sit)
        if resting is not None:
            self.vae.load_state_dict(resting.vae.state_dict())
            self.vae.requires_grad_(requires_grad=False)
            self.sit.bn.load_state_dict(resting.norm)
        self.discriminator = Discriminator() if weights.gan else None
        self.vae_ema, self.ema = copy.deepcopy(self.vae), copy.deepcopy(self.sit)
        for mean in (self.vae_ema, self.ema):
            mean.requires_grad_(requires_grad=False)
        self._frozen = (told, aligned)  # no part of the module: neither trained nor saved
        self._classes = classes

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Return the three losses as one."""
        image_BCHW = batch.views[0]
        x_BCHW = 2 * image_BCHW - 1
        given, seen = self._seen(batch)
        if self._rests:
            return self._second_stage(x_BCHW, given, seen)
        posterior = self.vae.encode(x_BCHW)
        z_BChw = posterior.sample(torch.randn_like(posterior.mean_BChw)).float()
        decoded_BCHW = self.vae.decode(z_BChw).float()
        if int(self.sit.bn.num_batches_tracked) == 0:
            self.sit.bn.begin(z_BChw)
            ema.follow_buffers(self.ema, self.sit, 0.0)
        drawn = self.draw(z_BChw)
        loss, parts = self.autoencoder_loss(
            x_BCHW, decoded_BCHW, posterior, z_BChw, drawn, given, seen
        )
        sit_loss, sit_parts = self.sit_loss(
            z_BChw.detach(), drawn, given, None if seen is None else seen.token_BTE
        )
        loss, parts = loss + sit_loss, {**parts, **sit_parts}
        if self.discriminator is not None:
            real, fake = self.discriminator(x_BCHW), self.discriminator(decoded_BCHW.detach())
            parts["hinge"] = hinge(real.float(), fake.float())
            loss = loss + parts["hinge"]
        features_BD = posterior.mean_BChw.detach().flatten(1)
        return StepOutput(loss, features_BD, {name: v.detach() for name, v in parts.items()})

    def _second_stage(self, x_BCHW: Tensor, given: Tensor | None, seen: Seen | None) -> StepOutput:
        """Return the SiT's loss on latents of the resting autoencoder."""
        with torch.no_grad():
            posterior = self.vae.encode(x_BCHW)
            z_BChw = posterior.sample(torch.randn_like(posterior.mean_BChw)).float()
        target_BTE = None if seen is None else seen.token_BTE
        loss, parts = self.sit_loss(z_BChw, self.draw(z_BChw), given, target_BTE)
        features_BD = posterior.mean_BChw.flatten(1)
        return StepOutput(loss, features_BD, {name: v.detach() for name, v in parts.items()})

    def draw(self, z_BChw: Tensor) -> Draws:
        """Draw times and noise from torch's generator."""
        t_B = draw_times(len(z_BChw), self.weights.times, z_BChw.device)
        return Draws(t_B, torch.randn_like(z_BChw))

    def autoencoder_loss(
        self,
        x_BCHW: Tensor,
        decoded_BCHW: Tensor,
        posterior: Posterior,
        z_BChw: Tensor,
        drawn: Draws,
        given: Tensor | None,
        seen: Seen | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the autoencoder's pass, through a SiT at rest, and its parts."""
        w = self.weights
        parts = {
            "l1": (x_BCHW - decoded_BCHW).abs().mean(),
            "kl": posterior.divergence().float().mean(),
        }
        loss = parts["l1"] + w.kl * parts["kl"]
        aligned = self._frozen[1]
        if aligned is not None and seen is not None and seen.own_BTE is not None and w.perceptual:
            said_BTE = aligned.tokens((decoded_BCHW + 1) / 2)
            parts["perceptual"] = 1 + alignment_loss(said_BTE, seen.own_BTE)
            loss = loss + w.perceptual * parts["perceptual"]
        if self.discriminator is not None:
            with at_rest(self.discriminator):
                parts["adversarial"] = -self.discriminator(decoded_BCHW).float().mean()
            loss = loss + w.gan * parts["adversarial"]
        if seen is not None and seen.token_BTE is not None and w.align_vae:
            with at_rest(self.sit):
                n_t = on_path(self.sit.bn.by_running(z_BChw), drawn.noise_BChw, drawn.t_B)
                said_BTE = self.sit.aligned(n_t, drawn.t_B, self._condition(given, None))
            parts["align_vae"] = alignment_loss(said_BTE, seen.token_BTE)
            loss = loss + w.align_vae * parts["align_vae"]
        return loss, parts

    def sit_loss(
        self, z_BChw: Tensor, drawn: Draws, given: Tensor | None, target_BTE: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the SiT's pass over latents without a gradient, and its parts."""
        norm = self.sit.bn
        n_BChw = norm.by_running(z_BChw) if self._rests else norm.by_batch(z_BChw)
        n_t = on_path(n_BChw, drawn.noise_BChw, drawn.t_B)
        null_B = torch.rand(len(z_BChw), device=z_BChw.device) < self.weights.dropped
        condition = self._condition(given, null_B)
        if target_BTE is None:
            velocity = self.sit(n_t, drawn.t_B, condition)
            loss = velocity_loss(velocity, n_BChw, drawn.noise_BChw)
            return loss, {"velocity": loss}
        velocity, said_BTE = self.sit.both(n_t, drawn.t_B, condition)
        parts = {
            "velocity": velocity_loss(velocity, n_BChw, drawn.noise_BChw),
            "align_sit": alignment_loss(said_BTE, target_BTE),
        }
        return parts["velocity"] + self.weights.align_sit * parts["align_sit"], parts

    def before_update(self, step: int) -> None:
        """Clip each network by itself."""
        for network in (self.vae, self.sit, self.discriminator):
            if network is not None and self.weights.clip:
                some = [p for p in network.parameters() if p.grad is not None]
                optim.clip_gradients(some, self.weights.clip)

    def after_update(self, step: int) -> None:
        """Move the running means."""
        for mean, network in ((self.ema, self.sit), (self.vae_ema, self.vae)):
            ema.follow(mean, network, self.weights.ema)
            ema.follow_buffers(mean, network, self.weights.ema)

    def monitors(self, step: int) -> dict[str, float]:
        """Return the share of the start in the running means, and the latents' middling spread."""
        spread = self.sit.bn.running_var.sqrt().mean()
        return {"ema_start": self.weights.ema**step, "latent_std": float(spread)}

    def _condition(self, given: Tensor | None, null_B: Tensor | None) -> Tensor | None:
        if given is None:
            return None
        embedded: Tensor = self.sit.y_embedder(given, null_B)
        return embedded

    def _seen(self, batch: Batch) -> tuple[Tensor | None, Seen | None]:
        """Return the conditions, and what the encoder to align with says."""
        image_BCHW, (told, aligned) = batch.views[0], self._frozen
        seen = None if aligned is None else aligned(image_BCHW)
        if self._classes is not None:
            assert batch.tiles_B is not None
            rows = torch.from_numpy(batch.tiles_B)
            return self._classes[rows].to(image_BCHW.device), seen
        if told is None:
            return None, seen
        same = seen is not None and told is aligned
        return (seen if same else told(image_BCHW)).vector_BV, seen  # type: ignore[union-attr]


@contextlib.contextmanager
def at_rest(network: nn.Module) -> Iterator[Any]:
    """Build a graph through a network whose parameters take no gradient from it."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield network
    finally:
        for parameter in trained:
            parameter.requires_grad = True
