"""An encoder that is a PyTorch network: resize, normalise, forward, pool.

Letters: B images, C colours, H W pixels, N tokens, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.encoders import assumptions, layouts, weights
from cytofm_cli.encoders.base import PIXELS, EncoderRequest, EncoderSpec, Pooling
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.work.device import find_device
from cytofm_cli.work.memory import out_of_memory


class TorchEncoder:
    """A network with its preprocessing and pooling.

    Args:
        model: timm's interface: `forward_features`, `forward_head`.
        spec: what the network expects and gives.
        device: where it runs.
        report: what loading the weights did; None without weights.

    Attributes:
        notes: what the user should be told of it, a line each.
        enter_thread: to be called first in each of the threads that encode, where several may;
            None: one thread encodes.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: EncoderSpec,
        device: torch.device,
        report: layouts.LoadReport | None = None,
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(requires_grad=False)
        self.spec = spec
        self.device = device
        self.report = report
        self.notes = assumptions.notes(spec, report)
        self.enter_thread = _compute_alone if device.type == "cpu" else None
        self._mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def prepare(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        """Resize with antialiasing to the model's input: uint8 (B, 3, H, W), on the CPU."""
        if not pixels_BHWC.flags.writeable:  # torch cannot promise to leave it unwritten
            pixels_BHWC = pixels_BHWC.copy()
        x_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
        if self.spec.input_px is None:
            return x_BCHW
        return fit_square(
            x_BCHW,
            resize_px=self.spec.resize_px or self.spec.input_px,
            input_px=self.spec.input_px,
            interpolation=self.spec.interpolation,
        )

    def encode(self, batch: Tensor) -> NDArray[np.float32]:
        """Return the vectors of prepared images, float32 (B, dim): fp32 on a CPU, else autocast."""
        if len(batch) == 0:  # timm's position code cannot tell the grid of no images
            return np.zeros((0, self.spec.dim), np.float32)
        too_big = out_of_memory(
            f"a batch of {len(batch)} does not fit into memory.", hint="pass a smaller --batch-size"
        )
        with too_big, self.computing():
            values_BD = pool(self.model, self.normalised(batch), self.spec.pooling)
            values: NDArray[np.float32] = values_BD.float().cpu().numpy()
        return values

    def normalised(self, batch: Tensor) -> Tensor:
        """Return prepared images as the network takes them: float32 (B, 3, H, W) on its device."""
        x_BCHW = batch.to(self.device, non_blocking=True).float() / 255
        return (x_BCHW - self._mean) / self._std

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients, in the precision of the device."""
        with torch.inference_mode(), self._autocast():
            yield

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.device.type == "cpu":
            return contextlib.nullcontext()
        fine = self.device.type == "cuda" and not torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, dtype=torch.float16 if fine else torch.bfloat16)


def _compute_alone() -> None:
    """Have torch split nothing that this thread computes: other threads work on other batches."""
    torch.set_num_threads(1)


def fit_square(x_BCHW: Tensor, *, resize_px: int, input_px: int, interpolation: str) -> Tensor:
    """Resize the shorter side to `resize_px` and cut out the centre, uint8 in and out."""
    height, width = x_BCHW.shape[-2:]
    scale = resize_px / min(height, width)
    size = (max(round(height * scale), input_px), max(round(width * scale), input_px))
    if size != (height, width):
        x_BCHW = functional.interpolate(x_BCHW, size=size, mode=interpolation, antialias=True)
    top, left = (size[0] - input_px) // 2, (size[1] - input_px) // 2
    return x_BCHW[..., top : top + input_px, left : left + input_px]


def pool(model: Any, x_BCHW: Tensor, pooling: Pooling) -> Tensor:
    """Run a timm model on normalised images and return one vector each, (B, D).

    Tokens are taken after the last norm, also where timm would put it behind its pooling.
    """
    features: Tensor = model.forward_features(x_BCHW)
    if pooling == "pool":
        pooled: Tensor = model.forward_head(features, pre_logits=True)
        return pooled
    tokens_BND: Tensor = getattr(model, "fc_norm", nn.Identity())(features)
    cls_BD, mean_BD = tokens_BND[:, 0], tokens_BND[:, model.num_prefix_tokens :].mean(1)
    if pooling in ("cls+mean", PIXELS):
        both_BD = torch.cat([cls_BD, mean_BD], dim=1)
        return model.joined(both_BD, x_BCHW) if pooling == PIXELS else both_BD
    return cls_BD if pooling == "cls" else mean_BD


def build(
    request: EncoderRequest,
    make_model: Callable[[], nn.Module],
    spec: EncoderSpec,
    *,
    state: Mapping[str, Tensor] | None = None,
    may_lack: Callable[[nn.Module], set[str]] = lambda model: set(),
) -> TorchEncoder:
    """Build a network and give it the weights that were asked for.

    Args:
        request: where the weights come from.
        make_model: builds the network, randomly initialised.
        spec: of the network; name, digest and what loading did are filled in here.
        state: the entries of the file, if they were read before.
        may_lack: names the entries that a weight file need not have.

    Raises:
        WeightsError: no weights were given, or they do not fit.
    """
    device = find_device(request.device)
    if request.weights is None and not request.random_weights:
        raise WeightsError(
            f"encoder {request.name!r} needs its weights.", hint="pass --weights FILE"
        )
    if request.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            model = make_model()
        return TorchEncoder(model, replace(spec, name=f"{spec.name}-random{request.seed}"), device)
    state = weights.read_state(request.weights) if state is None else state
    model, report = _load(request, state, make_model, may_lack)
    spec = replace(
        spec,
        weights_sha256=weights.sha256(request.weights),
        network=report.network.rstrip(".") or None,
        positions=report.positions,
    )
    return TorchEncoder(model, spec, device, report)


def read_for(request: EncoderRequest) -> dict[str, Tensor] | None:
    """Read the entries of the weight file that is asked for, None without one.

    Raises:
        UsageError: random weights are asked for too.
        WeightsError: see `weights.read_state`.
    """
    if request.weights is not None and request.random_weights:
        raise UsageError("weights from a file, or random ones: not both.")
    return None if request.weights is None else weights.read_state(request.weights)


def _load(
    request: EncoderRequest,
    state: Mapping[str, Tensor],
    make_model: Callable[[], nn.Module],
    may_lack: Callable[[nn.Module], set[str]],
) -> tuple[nn.Module, layouts.LoadReport]:
    """Build a network around the weights of a file.

    Drawing a billion random weights to overwrite them takes a minute, so the network is first
    built without memory; in full only if something in it does not come from the file.
    """

    def fill(model: nn.Module) -> layouts.LoadReport:
        return layouts.load_into(
            model,
            state,
            where=str(request.weights),
            may_lack=may_lack(model),
            key=request.weights_key,
        )

    with torch.device("meta"):
        model = make_model()
    report = fill(model)
    if any(x.is_meta for x in (*model.parameters(), *model.buffers())):
        with torch.random.fork_rng(devices=[]):
            model = make_model()
        report = fill(model)
    return model, report
