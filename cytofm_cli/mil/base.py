"""What every MIL head takes and gives, and the recipe it is trained with.

A head is a module in `cytofm_cli/mil/methods/` that exports `PLUGIN`; `PLUGIN.make` is a
subclass of `MilHead`, called as `make(n_features, n_classes, config)`.
Legend: B bags, N instances, D features, C classes, K attention maps, E embedding width.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cytofm_cli.config import Settings, option, resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.mil.vpu import VpuNet
from cytofm_cli.registry import mil_methods

BagLoss = Callable[[Tensor, Tensor], Tensor]  # logits_BC, y_B → scalar


@dataclasses.dataclass(frozen=True)
class MilOutput:
    """What a head says about a batch of bags.

    Attributes:
        logits_BC: log-odds up to a constant a bag; softmax gives the probabilities. A head with
            one sigmoid output z gives (0, z).
        attention_BKN: sums to 1 over the real instances of each map, except where the head's
            documentation says otherwise.
        attention_raw_BKN: the same before normalisation.
        embedding_BKE: the bag vectors.
        map_classes: the class that each map speaks for; None: it speaks for the whole bag.
        score_BCN: a score of each instance for each class, if the head has one.
        score_kind: what the score is.
        aux: what the head's own loss needs.
    """

    logits_BC: Tensor
    attention_BKN: Tensor
    attention_raw_BKN: Tensor
    embedding_BKE: Tensor
    map_classes: tuple[int | None, ...] = (None,)
    score_BCN: Tensor | None = None
    score_kind: str = "none"
    aux: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def prob_BC(self) -> Tensor:  # noqa: N802
        """Return the class probabilities."""
        return self.logits_BC.softmax(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """How a head is trained; a bag at a time.

    The defaults are the `cytofm` preset, tuned for small cohorts of small, sparse bags; each
    head's `OFFICIAL` holds what its authors published.
    """

    optimizer: Literal["adam", "adamw", "lookahead_radam", "sgd"] = option("adamw", "optimiser")
    lr: float = option(1e-3, "learning rate", low=0)
    betas: tuple[float, ...] = option((0.9, 0.999), "moment decay of Adam")
    weight_decay: float = option(0.1, "weight decay (coupled L2 for adam and sgd)", low=0)
    decay_vectors: bool = option(True, "decay biases and other 1-D parameters too")
    epochs: int = option(60, "most passes over the training bags", low=1)
    min_epochs: int = option(5, "stop no earlier than after this many passes", low=0)
    patience: int = option(10, "passes without improvement before stopping; 0 never stops", low=0)
    schedule: Literal["constant", "cosine", "step"] = option("constant", "learning rate")
    warmup_epochs: int = option(0, "passes of linear warm-up", low=0)
    hold_epochs: int = option(0, "passes at the full rate before a cosine begins to fall", low=0)
    lr_end: float = option(0.0, "learning rate at the end of a cosine", low=0)
    step_epoch: int = option(100, "pass at which a step schedule drops", low=1)
    step_factor: float = option(0.2, "factor of that drop", low=0)
    accumulate: int = option(1, "bags whose gradients make one step", low=1)
    clip_norm: float = option(0.0, "largest gradient norm of each part; 0: no limit", low=0)
    select: Literal["loss", "auc", "accuracy", "auc_accuracy", "last"] = option(
        "loss", "which epoch is kept, judged on validation"
    )
    select_from: float = option(0.0, "only epochs from this share of all on count", low=0, high=1)
    ties: Literal["first", "last"] = option("last", "which of equally good epochs is kept")
    balance: Literal["none", "weights", "sampling"] = option(
        "weights", "what evens out class sizes"
    )
    shuffle: bool = option(True, "new order of bags each pass")
    shuffle_instances: bool = option(False, "new order of instances each time")
    keep_instances: float = option(1.0, "share of instances seen each time", low=0.05, high=1)
    standardise: bool = option(True, "scale features by mean and spread of the training bags")
    vpu: int = option(
        0,
        "width of features that LESS's VPU loss trains from the frozen ones in each fold, on "
        "slides of the first class against the last; 0: none",
        low=0,
    )
    label_smoothing: float = option(0.0, "label smoothing of the bag loss", low=0, high=1)
    bag_loss: Literal["cross_entropy", "ordinal"] = option(
        "cross_entropy", "bag loss; ordinal: squared earth mover"
    )


class MilHead(nn.Module):
    """Base of all heads: bags in, `MilOutput` out.

    Attributes:
        OFFICIAL: `Recipe` settings that the authors published.
        OFFICIAL_HEAD: head settings that the authors published.
        CYTOFM: `Recipe` settings of the `cytofm` preset that differ from the defaults.
        CYTOFM_HEAD: head settings of the `cytofm` preset that differ from the defaults.
        order_matters: whether the order of instances changes the result.
        needs_classes: it reads probabilities of classes of cells, no embeddings.
        gap: what of the official training this project does not follow, for the run record.
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {}
    OFFICIAL_HEAD: ClassVar[Mapping[str, Any]] = {}
    CYTOFM: ClassVar[Mapping[str, Any]] = {}
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {}
    order_matters: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    gap: ClassVar[str] = ""

    @abstractmethod
    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags.

        Args:
            x_BND: float features.
            mask_BN: True at real instances; None if all are.
            seeds: one number a bag; heads that draw at random in evaluation use it, so that
                a slide always gets the same answer.
        """

    def clip_parts(self) -> list[list[nn.Parameter]]:
        """Return the parts whose gradient norms `Recipe.clip_norm` bounds, each on its own."""
        return [list(module.parameters()) for module in self.children()]

    @classmethod
    def notes(
        cls, settings: Sequence[Mapping[str, Any]], bag_of: Mapping[str, NDArray[Any]]
    ) -> list[str]:
        """Say what a reader must know of bags under the head's settings.

        Args:
            settings: all of the head, of each candidate of a search.
            bag_of: features (N, D) by slide.
        """
        return []

    def loss(self, out: MilOutput, y_B: Tensor, bag_loss: BagLoss) -> Tensor:
        """Return the training loss; heads with more than a bag loss override this."""
        return bag_loss(out.logits_BC, y_B)


class MilModel(nn.Module):
    """A head with the scaling of its features: what is trained, stored and shipped.

    Args:
        head: the head.
        n_features: D.
        vpu: width of the VPU features between scaling and head; 0: none.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, head: MilHead, n_features: int, vpu: int = 0) -> None:
        super().__init__()
        self.head = head
        self.vpu = VpuNet(n_features, vpu) if vpu else None
        self.standardise = False
        self.register_buffer("mean_D", torch.zeros(n_features))
        self.register_buffer("scale_D", torch.ones(n_features))

    def fit_scaling(self, bags_ND: Sequence[np.ndarray[Any, Any]]) -> None:
        """Take mean and spread of these bags; every bag counts the same, however large."""
        moments = [_moments(bag_ND) for bag_ND in bags_ND]
        mean_D = np.stack([mean for mean, _ in moments]).mean(0)
        square_D = np.stack([square for _, square in moments]).mean(0)
        spread_D = np.sqrt(np.maximum(square_D - mean_D**2, 0))
        # A feature without spread carries nothing: leave its scale alone, do not blow it up.
        spread_D[spread_D <= 1e-6 * np.maximum(np.abs(mean_D), 1e-6)] = 1.0
        self.mean_D.copy_(torch.from_numpy(mean_D))
        self.scale_D.copy_(torch.from_numpy(1 / spread_D))
        self.standardise = True

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags of unscaled features."""
        x_BND = self.scale(x_BND)
        if self.vpu is not None:
            with torch.no_grad():
                x_BND = self.vpu(x_BND)
        output: MilOutput = self.head(x_BND, mask_BN, seeds)
        return output

    def scale(self, x: Tensor) -> Tensor:
        """Scale features, if this model does."""
        return (x - self.mean_D) * self.scale_D if self.standardise else x


def _moments(bag_ND: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    values_ND = np.asarray(bag_ND, dtype=np.float64)
    return values_ND.mean(0), np.einsum("nd,nd->d", values_ND, values_ND) / len(values_ND)


def make_head(
    method: str, n_features: int, n_classes: int, settings: Mapping[str, Any] | None = None
) -> tuple[MilHead, Any]:
    """Build a head by name.

    Returns:
        head and its resolved configuration.

    Raises:
        UsageError: unknown head or setting.
    """
    plugin = mil_methods.load(method)
    config = resolve(plugin.config, method, settings or {}) if plugin.config else None
    head = plugin.make(n_features, n_classes, config)
    if not isinstance(head, MilHead):
        raise UsageError(f"MIL method {method!r} makes no MilHead.")
    return head, config


def preset_settings(method: str, preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return recipe and head settings of a preset: `official` or `cytofm`."""
    make = mil_methods.load(method).make
    if preset == "official":
        return {"standardise": False, "balance": "none", **make.OFFICIAL}, dict(make.OFFICIAL_HEAD)
    return dict(make.CYTOFM), dict(make.CYTOFM_HEAD)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch from these numbers inside the block, and put its state back after it."""
    state = int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng():
        torch.manual_seed(state)
        yield
