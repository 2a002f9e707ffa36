"""Everything about a training of a generator that is decided before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import as_record
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.conditions import ConditionShape
from cytofm_cli.generate.config import NO_ENCODER, VAE_LOSSES, GenerateConfig, ema_of, settled
from cytofm_cli.generate.file import read_autoencoder
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.repa_e import Weights
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.generate.sit import SitShape
from cytofm_cli.generate.vae import Resting, VaeShape
from cytofm_cli.nuclei.base import NUCLEUS
from cytofm_cli.pretrain.base import Length, MethodConfig
from cytofm_cli.pretrain.data import TileIndex, open_index
from cytofm_cli.pretrain.plan import make_length
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.views.augment import Augment
from cytofm_cli.views.ncp import PRESETS, NcpConfig
from cytofm_cli.views.recipes import Recipe, ViewSpec

CELL_UM: Final = 32.0  # where neither the user nor the encoder says
PLAIN: Final[NcpConfig] = PRESETS["none"]
_TURNS: Final = Augment(flip=(0.5, 0.5), transpose=0.5)


@dataclass(frozen=True, eq=False)
class GeneratePlan:
    """Everything that is fixed before the first step.

    Attributes:
        config: with what the preset settles.
        index: the tiles or cells.
        length: of the run.
        vae, sit: sizes of the networks.
        weights: of the losses.
        rates: of the optimiser.
        classes: names, in the order of the table; () unless they are the condition.
        class_N: of each tile of the index; None likewise.
        told, aligned: the frozen encoders; None: none.
        resting: the autoencoder that is not trained; None: it is.
        record: what the RUN says that it was made with.
    """

    config: GenerateConfig
    index: TileIndex
    length: Length
    vae: VaeShape
    sit: SitShape
    weights: Weights
    rates: MethodConfig
    classes: tuple[str, ...]
    class_N: NDArray[np.int64] | None
    told: FrozenEncoder | None
    aligned: FrozenEncoder | None
    resting: Resting | None
    record: dict[str, dict[str, Any]]

    @property
    def recipe(self) -> Recipe:
        """The one view that training shows: the whole tile or cell, in [0, 1]."""
        assert self.config.size_px is not None
        return one_view(self.config.size_px, turned=self.config.flips)

    @property
    def image_mpp(self) -> float:
        """µm/px of the images."""
        return self.index.tile_px * self.index.mpp / self.recipe.views[0].size_px

    @property
    def has_null(self) -> bool:
        """Whether training shows the null condition, which guidance leads away from."""
        nameless = self.class_N is not None and bool((self.class_N == len(self.classes)).any())
        return self.config.condition != "none" and (self.weights.dropped > 0 or nameless)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before the first step, one line each."""
        return (*self.index.notes, *self._terms())

    def _terms(self) -> Iterator[str]:
        for spec in {e.spec.name: e.spec for e in (self.told, self.aligned) if e}.values():
            if spec.name != "cytofm-tiny":
                yield (
                    f"{spec.name}: licence {spec.licence}; its terms may bind the generator, which "
                    "learns from its features"
                )
        if self.resting is not None:
            yield f"{self.config.autoencoder}: its autoencoder stays as it is; the SiT is trained"
        if self.aligned is None:
            yield "no encoder to align with: no alignment, no perceptual distance"


def one_view(size_px: int, *, turned: bool) -> Recipe:
    """Return the recipe of a whole tile or cell as an image in [0, 1]."""
    view = ViewSpec(
        size_px=size_px, scale=(1, 1), aspect=(1, 1), augment=_TURNS if turned else Augment()
    )
    return Recipe(name="generate", views=(view,), n_global=1, mean=(0, 0, 0), std=(1, 1, 1))


def make_plan(
    config: GenerateConfig, stores: Sequence[Path], *, slides: Path | None = None
) -> GeneratePlan:
    """Check and decide everything before training; writes nothing.

    Raises:
        UsageError, InputError: impossible settings; unusable stores; no cell has a class.
    """
    resting, sha256 = _resting(config.autoencoder)
    config = settled(config if resting is None else _of_sizes(config, resting.vae.shape))
    assert config.size_px is not None and config.batch is not None and config.lr is not None
    vae, grid = _shapes(config) if resting is None else _grid(config, resting.vae.shape)
    told = FrozenEncoder(config.encoder, grid) if config.condition == "encoder" else None
    aligned = _aligned(config, told, grid)
    index = open_cells_or_tiles(config, stores, told or aligned, slides)
    classes, class_N = class_table(index) if config.condition == "class" else ((), None)
    sit = SitShape(
        side=config.size_px // vae.factor,
        latent=vae.latent,
        **{name: getattr(config, name) for name in ("depth", "width", "heads", "patch")},
        aligned_depth=config.aligned_depth or 1,
        projector=config.projector or 1,
        aligned=aligned.token_dim if aligned else 0,
        condition=ConditionShape(
            kind=config.condition, dim=told.dim if told else 0, classes=len(classes)
        ),
    )
    length = make_length(config.batch, index.n_tiles, steps=config.steps, epochs=config.epochs)
    record = {
        "generate": _recorded(config),
        "encoders": _named(told, aligned) | {"autoencoder_sha256": sha256},
        "data": index.facts() | {"n_steps": length.n_steps, "classes": list(classes)},
    }
    return GeneratePlan(
        config, index, length, vae, sit, _weights(config, length), _rates(config),
        classes, class_N, told, aligned, resting, record,
    )  # fmt: skip


def open_cells_or_tiles(
    config: GenerateConfig,
    stores: Sequence[Path],
    encoder: FrozenEncoder | None,
    slides: Path | None,
) -> TileIndex:
    """Open the tiles, or the square around each nucleus."""
    own = encoder.spec.cell_um if encoder else None
    cell_um = config.cell_um or own or CELL_UM
    cells = config.unit == "cell"
    return open_index(
        stores,
        config.detector,
        need_nuclei=cells,
        cell_um=cell_um if cells else None,
        slides=slides,
    )


def class_table(index: TileIndex) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes of the cells, sorted, and that of each; a cell without one has the number
    of classes, which is the null condition's.

    Raises:
        InputError: no cell has a class.
    """
    names = [
        [slide.nuclei.table.classes[i] for i in slide.nuclei.table.class_id.tolist()]
        for slide in index.slides
    ]
    classes = tuple(sorted({name for of in names for name in of} - {NUCLEUS}))
    if not classes:
        raise InputError(
            "no cell of the stores has a class.",
            hint="stores of `cytofm tile --cells` with labels, or --condition encoder",
        )
    number = {name: at for at, name in enumerate(classes)}
    flat = [number.get(name, len(classes)) for of in names for name in of]
    return classes, np.array(flat, np.int64)


def _recorded(config: GenerateConfig) -> dict[str, Any]:
    """Return the settings but for where the autoencoder lies: which it is, its digest says."""
    record = dict(as_record(config, results_only=True))
    record.pop("autoencoder", None)
    return record


def _resting(run: Path | None) -> tuple[Resting | None, str | None]:
    """Read the autoencoder that stays, and the digest of its file."""
    if run is None:
        return None, None
    path = generator_of(run)
    return read_autoencoder(path), sha256_file(path)


def _of_sizes(config: GenerateConfig, shape: VaeShape) -> GenerateConfig:
    """Return the settings with the sizes of the autoencoder that stays.

    Raises:
        UsageError: others are asked for, or a loss that only the autoencoder has.
    """
    for name, size in (("vae_base", shape.base), ("vae_blocks", shape.blocks)):
        if (asked := getattr(config, name)) not in (None, size):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} {asked}: the autoencoder of {config.autoencoder} has {size}.",
                hint=f"{flag} {size}, or leave it out",
            )
    for name in VAE_LOSSES:
        if asked := getattr(config, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} {asked:g}: the autoencoder of {config.autoencoder} stays as it is, and "
                "none of its losses is used.",
                hint=f"leave {flag} out",
            )
    return replace(config, vae_base=shape.base, vae_blocks=shape.blocks, gan=0.0)


def _shapes(config: GenerateConfig) -> tuple[VaeShape, int]:
    assert config.vae_base is not None and config.vae_blocks is not None
    return _grid(config, VaeShape(base=config.vae_base, blocks=config.vae_blocks))


def _grid(config: GenerateConfig, vae: VaeShape) -> tuple[VaeShape, int]:
    """Return the autoencoder's sizes, and the tokens a side of the SiT."""
    assert config.size_px is not None and config.patch is not None
    return vae, config.size_px // vae.factor // config.patch


def _aligned(config: GenerateConfig, told: FrozenEncoder | None, grid: int) -> FrozenEncoder | None:
    """Open the encoder to align with.

    Raises:
        UsageError: it has no tokens.
    """
    if config.align in (None, NO_ENCODER):
        return None
    same = told is not None and config.align == config.encoder
    encoder = told if same else FrozenEncoder(config.align, grid)
    assert encoder is not None
    if not encoder.token_dim:
        raise UsageError(
            f"encoder {encoder.spec.name} is no Vision Transformer: it has no tokens to align "
            "with.",
            hint="--align cytofm-tiny, or --align none",
        )
    return encoder


def _named(told: FrozenEncoder | None, aligned: FrozenEncoder | None) -> dict[str, Any]:
    """Return which encoders they are, to the bit."""
    named: dict[str, Any] = {}
    for role, encoder in (("condition", told), ("aligned", aligned)):
        named[role] = None if encoder is None else encoder.spec.name
        named[f"{role}_sha256"] = None if encoder is None else encoder.spec.weights_sha256
    return named


def _weights(config: GenerateConfig, length: Length) -> Weights:
    names = ("kl", "perceptual", "gan", "align_vae", "align_sit", "dropped", "times", "clip")
    some: dict[str, Any] = {name: getattr(config, name) for name in names}
    return Weights(**some, ema=ema_of(config, length.n_steps))


def _rates(config: GenerateConfig) -> MethodConfig:
    """Return the optimiser's rates: AdamW without decay, at the very rate that is set."""
    assert config.lr is not None and config.batch is not None
    assert config.lr_end is not None and config.warmup is not None
    return MethodConfig(
        lr=config.lr * 256 / config.batch,
        min_lr=config.lr_end,
        warmup=config.warmup,
        weight_decay=0.0,
        weight_decay_end=0.0,
        clip=0.0,  # each network is clipped by itself
        drop_path=0.0,
    )
