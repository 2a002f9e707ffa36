"""The trunks of pretraining: SR-ViT, Vision Transformers and convolutional networks of timm.

    backbones, about = make_backbones(config, drop_path=0.1, patch_px=16, img_px=224)
    student, teacher = backbones(role="student"), backbones(role="teacher")

All trunks of a run start from the same weights: random ones, drawn from the seed, or those of a
file. `pretrain.export` writes one.

Letters: B images, C H W an image, N patches (in blocks: all tokens), D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cytofm_cli import registry
from cytofm_cli.encoders import catalogue, layouts, lora, weights
from cytofm_cli.encoders.base import PIXELS, Blueprint, TrunkRequest
from cytofm_cli.encoders.pixel_statistics import SCALES
from cytofm_cli.encoders.sr_vit import SrVit, TokenGrid, annealed_h, relative_keys
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import Backbone, Backbones, Tokens
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.norms import norm_notes

_SHORT_NAMES: Final = {"resnet50": "timm/resnet50"}


@dataclass(frozen=True, kw_only=True)
class TrunkInfo:
    """What a run records about its trunk.

    Attributes:
        arch: its name, which `load_encoder` knows.
        builder: keyword arguments of the architecture, plain JSON values.
        dim: D.
        patch_px: side of a patch; None: no patches.
        n_parameters: of one trunk, without a mask token.
        n_trained: of these, how many take a gradient in the student.
        drop_path: largest rate of dropped residual branches, in students.
        init_sha256: digest of the file the weights come from; None: random.
        notes: what happened on the way, for the user: one line each.
    """

    arch: str
    builder: Mapping[str, Any]
    dim: int
    patch_px: int | None
    n_parameters: int
    n_trained: int
    drop_path: float
    init_sha256: str | None
    notes: tuple[str, ...]


class Trunk(Backbone):
    """A network, wrapped. Its parameters are called `trunk.…`.

    Attributes:
        trunk: the network, with timm's interface.
        arch: the name that `load_encoder` knows the architecture by.
        builder: its keyword arguments.
    """

    trunk: Any

    def __init__(self, trunk: nn.Module, arch: str, builder: Mapping[str, Any]) -> None:
        super().__init__()
        self.trunk, self.arch, self.builder = trunk, arch, dict(builder)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters without weight decay, beside biases and one-dimensional ones."""
        named: set[str] = getattr(self.trunk, "no_weight_decay", set)()
        return {f"trunk.{name}" for name in named} | {"mask_token"}

    def set_h(self, h: int | None) -> None:
        """Keep `h` keys of every query from now on; None: all.

        Raises:
            UsageError: the trunk is no SR-ViT.
        """
        if not isinstance(self.trunk, SrVit):
            raise UsageError(f"{self.arch} attends to all keys.", hint="--encoder sr-vit-tiny")
        self.trunk.set_h(h)


class VitTrunk(Trunk):
    """A Vision Transformer.

    Args:
        trunk: built with `dynamic_img_size`.
        arch: see `Trunk`.
        builder: see `Trunk`.
        masks: have a mask token, zero at the start as in iBOT.
    """

    patch_px: int

    def __init__(
        self,
        trunk: VisionTransformer,
        arch: str,
        builder: Mapping[str, Any],
        *,
        masks: bool = False,
    ) -> None:
        super().__init__(trunk, arch, builder)
        self.dim = int(trunk.embed_dim)
        self.patch_px = int(trunk.patch_embed.feat_ratio())
        self.mask_token = nn.Parameter(torch.zeros(self.dim)) if masks else None
        if trunk.attn_pool is not None:  # unused: tokens are taken before it
            trunk.attn_pool.requires_grad_(requires_grad=False)

    def n_patches(self, size_px: int) -> int:
        """Return N of a square image."""
        return (size_px // self.patch_px) ** 2

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the tokens after the last norm; without a class token, cls is their mean.

        Args:
            x_BCHW: normalised images, sides whole numbers of patches.
            mask_BN: bool, True replaces a patch, in rows of the patch grid.
        """
        trunk = self.trunk
        patch_BHWD = trunk.patch_embed(x_BCHW)
        if mask_BN is not None:
            patch_BHWD = self._mask(patch_BHWD, mask_BN)
        grid = TokenGrid((patch_BHWD.shape[1], patch_BHWD.shape[2]), trunk.num_prefix_tokens)
        x_BND = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(patch_BHWD)))
        x_BND = trunk.run_blocks(x_BND, grid) if isinstance(trunk, SrVit) else self._blocks(x_BND)
        x_BND = trunk.fc_norm(trunk.norm(x_BND))  # one of the two does nothing
        patch_BND = x_BND[:, trunk.num_prefix_tokens :]
        cls_BD = x_BND[:, 0] if trunk.cls_token is not None else patch_BND.mean(1)
        return Tokens(cls_BD=cls_BD, patch_BND=patch_BND)

    def _mask(self, patch_BHWD: Tensor, mask_BN: Tensor) -> Tensor:
        if self.mask_token is None:
            raise UsageError("masks were given to a trunk that was made without a mask token.")
        mask_BHW1 = mask_BN.view(*patch_BHWD.shape[:3], 1)
        return torch.where(mask_BHW1, self.mask_token.to(patch_BHWD.dtype), patch_BHWD)

    def _blocks(self, x_BND: Tensor) -> Tensor:
        for block in self.trunk.blocks:
            if self.trunk.grad_checkpointing and torch.is_grad_enabled():
                x_BND = cast("Tensor", checkpoint(block, x_BND, use_reentrant=False))
            else:
                x_BND = block(x_BND)
        return x_BND


class ConvTrunk(Trunk):
    """A network without patches: its pooled features stand for the image."""

    def __init__(self, trunk: nn.Module, arch: str, builder: Mapping[str, Any]) -> None:
        super().__init__(trunk, arch, builder)
        self.dim = int(getattr(trunk, "head_hidden_size", None) or self.trunk.num_features)
        self.patch_px = None

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the pooled features of normalised images."""
        if mask_BN is not None:
            raise UsageError(f"{self.arch} has no patches to mask.")
        features = self.trunk.forward_features(x_BCHW)
        return Tokens(cls_BD=self.trunk.forward_head(features, pre_logits=True), patch_BND=None)


def make_backbones(
    config: PretrainConfig, *, drop_path: float, patch_px: int, img_px: int
) -> tuple[Backbones, TrunkInfo]:
    """Read the weights to start from, and return a maker of trunks that start from them.

    Args:
        config: encoder, h, irpe, init, lora_*, seed and checkpoint_activations matter here.
        drop_path: largest rate of dropped residual branches, in students.
        patch_px: side of a patch; views are whole numbers of it.
        img_px: side of a global view, which the absolute positions are laid out for.

    Raises:
        UsageError: no such encoder, or one that cannot be pretrained here.
        WeightsError: the weights do not fit.
    """
    maker = _Maker(config, drop_path, patch_px, img_px)
    return maker, maker.info


class _Maker:
    """See `make_backbones`. Holds the weights that all trunks start from."""

    def __init__(
        self, config: PretrainConfig, drop_path: float, patch_px: int, img_px: int
    ) -> None:
        self._config, self._drop_path = config, drop_path
        self._print = _blueprint(config, patch_px, img_px)
        if config.lora_rank and config.init is None:
            raise UsageError("low-rank updates of random weights.", hint="pass --init FILE")
        notes: list[str] = []
        if drop_path and not self._print.is_vit and not _drops_paths(self._print):
            notes.append(f"{self._print.arch} cannot drop residual branches: drop path is 0")
            self._drop_path = 0.0
        network = self._first(notes)
        self._state: dict[str, Tensor] = network.state_dict()
        # Beside updates of low rank the weights rest: all trunks have the very same ones, so that
        # a giant is held once. (FSDP shards each trunk by itself.)
        self._shares = bool(config.lora_rank) and config.parallel != "fsdp"
        if self._shares:
            self._state |= {name: p for name, p in network.named_parameters() if lora.rests(name)}
        student = self(role="student")
        self.info = TrunkInfo(
            arch=student.arch,
            builder=student.builder,
            dim=student.dim,
            patch_px=student.patch_px,
            n_parameters=sum(x.numel() for x in network.parameters()),
            n_trained=sum(x.numel() for x in student.parameters() if x.requires_grad),
            drop_path=self._drop_path,
            init_sha256=None if config.init is None else weights.sha256(config.init),
            notes=tuple(notes),
        )

    def __call__(self, *, role: str, masks: bool = False) -> Trunk:
        """See `Backbones`."""
        if role not in ("student", "teacher"):
            raise UsageError(f"no trunk has the role {role!r}.", hint="student, teacher")
        plan = self._print
        if masks and not plan.is_vit:
            raise UsageError(
                f"{plan.arch} has no patches to mask.",
                hint="--method dino, or --encoder sr-vit-tiny",
            )
        network = self._network(self._drop_path if role == "student" else 0.0)
        trunk: Trunk = ConvTrunk(network, plan.arch, plan.builder)
        if plan.is_vit:
            trunk = VitTrunk(network, plan.arch, plan.builder, masks=masks)
        if self._config.lora_rank:
            with self._seeded():  # A of all trunks is the same, too
                c = self._config
                lora.add_lora(trunk, c.lora_rank, c.lora_alpha, targets=c.lora_targets)
        if role == "teacher":
            trunk.requires_grad_(requires_grad=False)
        elif self._config.checkpoint_activations:
            _recompute(trunk)
        return trunk

    def _first(self, notes: list[str]) -> nn.Module:
        """Build the network that all start equal to: random, or with the weights of a file."""
        if self._config.init is None:
            return self._random(0.0)
        state, where = weights.read_state(self._config.init), str(self._config.init)
        if scales := [key for key in state if key.startswith(SCALES)]:
            state = {key: value for key, value in state.items() if key not in scales}
            anew = "" if self._config.lora_rank else f"; pooling = {PIXELS} measures it anew"
            notes.append(f"{where}: how it weighs tokens and pixels is left behind{anew}")
        with torch.device("meta"):
            network = cast("nn.Module", self._print.network(0.0))
        report = layouts.load_into(network, state, where=where, may_lack=relative_keys(network))
        if any(x.is_meta for x in (*network.parameters(), *network.buffers())):
            network = self._random(0.0)
            report = layouts.load_into(network, state, where=where, may_lack=relative_keys(network))
        notes += _loading_notes(where, report)
        notes += norm_notes(_full_name(self._config.encoder), self._config.init)
        return network

    def _network(self, rate: float) -> nn.Module:
        """Build a network that starts as all do."""
        if not self._shares:
            network = self._random(rate)
            network.load_state_dict(self._state)
            return network
        with torch.device("meta"):
            network = cast("nn.Module", self._print.network(rate))
        if any(x.is_meta for x in network.buffers()):  # not all of them are part of a state
            network = self._random(rate)
        own = {k: v if isinstance(v, nn.Parameter) else v.clone() for k, v in self._state.items()}
        network.load_state_dict(own, assign=True)
        return network

    def _random(self, rate: float) -> nn.Module:
        with self._seeded():
            return cast("nn.Module", self._print.network(rate))

    @contextlib.contextmanager
    def _seeded(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed)
            yield


def resting(module: nn.Module) -> set[str]:
    """Name the weights in a module's state that updates of low rank leave as they were read."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, trunk in module.named_modules()
        if isinstance(trunk, Trunk) and lora.scale_of(trunk)
        for name, _ in trunk.named_parameters(remove_duplicate=False)
        if lora.rests(name)
    }


def _blueprint(config: PretrainConfig, patch_px: int, img_px: int) -> Blueprint:
    """Decide the architecture: the encoder's plug-in does.

    Raises:
        UsageError: it cannot be pretrained, or not with these patches.
    """
    encoder = config.encoder
    if Path(encoder).suffix in weights.SUFFIXES or Path(encoder).is_file():
        raise UsageError(
            f"--encoder {encoder}: is a file.", hint=f"--encoder sr-vit-tiny --init {encoder}"
        )
    resolved = catalogue.resolve(_full_name(encoder))
    trunk = registry.encoders.load(resolved.plugin).trunk
    if trunk is None:
        raise UsageError(
            f"encoder {encoder!r} cannot be pretrained.", hint="sr-vit-tiny, timm/NAME, resnet50"
        )
    blueprint: Blueprint = trunk(
        TrunkRequest(
            name=resolved.name,
            model=resolved.model,
            builder=resolved.builder,
            patch_px=patch_px,
            img_px=img_px,
            h=config.h or None,
            irpe=config.irpe,
        )
    )
    return blueprint


def _full_name(encoder: str) -> str:
    return _SHORT_NAMES.get(encoder, encoder)


def _drops_paths(plan: Blueprint) -> bool:
    """Tell whether a network takes a rate of dropped residual branches."""
    try:
        with torch.device("meta"):
            plan.network(0.1)
    except TypeError:
        return False
    return True


def _recompute(trunk: Trunk) -> None:
    """Save memory: compute activations again when gradients flow back."""
    try:
        trunk.trunk.set_grad_checkpointing(enable=True)
    except (AttributeError, AssertionError) as error:
        raise UsageError(
            f"{trunk.arch} cannot compute its activations twice.",
            hint="leave --checkpoint-activations out",
        ) from error


def _loading_notes(where: str, report: layouts.LoadReport) -> list[str]:
    notes = [f"{where}: {note}" for note in (report.choice, *report.notes) if note]
    if report.dropped:
        notes.append(f"{where}: {len(report.dropped)} entries of training heads left out")
    if report.added:
        notes.append(f"{where}: {len(report.added)} entries are new ({report.added[0]}, …)")
    return notes


def h_at(config: PretrainConfig, step: int, *, n_steps: int, n_tokens: int) -> int | None:
    """Return the keys to keep at an update: falling from all to `--h`, then `--h`.

    Args:
        config: `h` and `h_anneal` matter.
        step: updates done.
        n_steps: of the run.
        n_tokens: of a global view, class token included.
    """
    if not config.h:
        return None
    n_falling = round(config.h_anneal * n_steps)
    return annealed_h(step, n_steps=n_falling, n_tokens=n_tokens, h=config.h)
