"""Nuclei with an InstanSeg TorchScript file of the user; its package is not needed.

The file (`instanseg.pt`) holds the network and its own post-processing. TorchScript is code: a
small language without imports or processes of its own, run by PyTorch's interpreter. A file whose
code names an operator that writes files is refused, as is a pickle; still it is not a sandbox:
load files you trust.

Source: Goldsborough et al., arXiv:2408.15954; input as the authors prepare it: every channel
scaled so that its 0.1 and 99.9 percentiles become 0 and 1, at the model's own µm/px.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import InputError, WeightsError
from cytofm_cli.nuclei.base import NUCLEUS, NucleusTable, as_rgb, check_mpp, empty_table
from cytofm_cli.nuclei.polygons import label_table
from cytofm_cli.nuclei.resample import resample_area
from cytofm_cli.nuclei.torchscript import is_torchscript, refuse_reaching
from cytofm_cli.nuclei.weights import existing_file
from cytofm_cli.registry import DetectorPlugin
from cytofm_cli.units import is_plausible_mpp

if TYPE_CHECKING:
    import torch

NEEDS: Final = "an InstanSeg TorchScript file (instanseg.pt)"
MPP_RANGE: Final = (0.05, 2.1)
SIDE_MULTIPLE: Final = 32
MIN_RANGE: Final = 4.0  # grey levels; below this, scaling a tile to 0..1 only shows its noise
PERCENTILES: Final = (0.1, 99.9)


@dataclass(frozen=True, kw_only=True)
class InstansegConfig(Settings):
    """Settings of the InstanSeg detector."""

    weights: Path | None = option(None, "InstanSeg TorchScript file (instanseg.pt)")
    model_mpp: float = option(
        0.0, "µm/px of the model; 0 takes it from the file", low=0.0, high=5.0
    )
    min_area_um2: float = option(2.5, "smaller nuclei are dropped, in µm²", low=0.0, high=1000.0)
    device: str = option("auto", "auto, cpu, cuda or cuda:1", affects_result=False)


class InstansegDetector:
    """Nuclei with InstanSeg; see the module's text."""

    classes: tuple[str, ...] = (NUCLEUS,)
    halo_um: float = 20.0

    def __init__(self, config: InstansegConfig | None = None) -> None:
        from cytofm_cli.work.device import find_device

        self.config = config or InstansegConfig()
        path = existing_file(self.config.weights, "instanseg", NEEDS)
        self.path = path
        self.device = find_device(self.config.device)
        self.module = load_torchscript(path, self.device)
        self.model_mpp = self.config.model_mpp or _pixel_size(self.module, path)

    def detect(self, image_HWC: NDArray[np.uint8], mpp: float) -> NucleusTable:
        """Find the nuclei of an RGB image; see `NucleusDetector.detect`."""
        rgb = as_rgb(image_HWC)
        check_mpp(mpp, *MPP_RANGE, "instanseg")
        factor = self.model_mpp / mpp
        pixels = resample_area(rgb, factor)
        if not _shows_anything(pixels):
            return empty_table(self.classes)
        labels_HW = self._labels(normalise(pixels))
        return label_table(
            labels_HW,
            self.model_mpp,
            scale=factor,
            min_area_px=max(1, round(self.config.min_area_um2 / self.model_mpp**2)),
        )

    def _labels(self, pixels_HWC: NDArray[np.float32]) -> NDArray[np.int64]:
        import torch

        from cytofm_cli.nuclei.networks import memory_errors
        from cytofm_cli.work.memory import is_out_of_memory

        H, W, _ = pixels_HWC.shape
        pad = [(0, -side % SIDE_MULTIPLE) for side in (H, W)]
        padded = np.pad(pixels_HWC, (*pad, (0, 0)), mode="edge")
        x_BCHW = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))[None]
        with memory_errors("instanseg"), torch.inference_mode():
            try:
                labels = self.module(x_BCHW.to(self.device))
            except RuntimeError as error:  # TorchScript wraps whatever goes wrong inside
                if is_out_of_memory(error):
                    raise
                reason = str(error).strip().splitlines()[-1]
                raise WeightsError(f"{self.path}: the model failed ({reason}).") from error
        if (
            not isinstance(labels, torch.Tensor)
            or labels.ndim != 4
            or labels.shape[2:] != (padded.shape[:2])
        ):
            raise WeightsError(
                f"{self.path}: the model gave no label map (1, 1 or 2, H, W); "
                "it is not an InstanSeg model."
            )
        # Of two maps the first is nuclei, the second is cells.
        nuclei: NDArray[np.int64] = labels[0, 0, :H, :W].cpu().numpy().astype(np.int64)
        return nuclei


def normalise(pixels_HWC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each channel so that its 0.1 and 99.9 percentiles become 0 and 1."""
    low, high = np.percentile(pixels_HWC, PERCENTILES, axis=(0, 1))
    scaled: NDArray[np.float32] = ((pixels_HWC - low) / np.maximum(high - low, 1e-3)).astype(
        np.float32
    )
    return scaled


def load_torchscript(path: Path, device: torch.device) -> Any:
    """Load a TorchScript file.

    Raises:
        WeightsError: not TorchScript; a plain pickle is not loaded, it could run anything. Or its
            code calls what reaches out of it (`cytofm_cli.nuclei.torchscript`).
    """
    import torch

    if not is_torchscript(path):
        raise WeightsError(
            f"{path}: not a TorchScript file.", hint="the exported instanseg.pt is needed"
        )
    refuse_reaching(path)
    try:
        with warnings.catch_warnings():
            # The format is deprecated in PyTorch and is what the authors publish.
            warnings.simplefilter("ignore")
            return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: damaged TorchScript file ({reason}).") from error


def _shows_anything(pixels_HWC: NDArray[np.float32]) -> bool:
    low, high = np.percentile(pixels_HWC, PERCENTILES, axis=(0, 1))
    return bool((high - low).max() >= MIN_RANGE)


def _pixel_size(module: Any, path: Path) -> float:
    value = getattr(module, "pixel_size", None)
    try:
        mpp = float(value)  # type: ignore[arg-type]  # a number, a tensor, or nothing
    except (TypeError, ValueError):
        mpp = 0.0
    if not is_plausible_mpp(mpp):
        raise InputError(
            f"{path}: the model does not tell its resolution (pixel_size = {value!r}).",
            hint="set model_mpp, 0.5 for the brightfield model",
        )
    return mpp


PLUGIN = DetectorPlugin(
    make=InstansegDetector,
    config=InstansegConfig,
    weights=NEEDS,
    summary="InstanSeg with your TorchScript file, at the model's own resolution",
    sample="cytofm_cli.testing.samples.detectors:instanseg",
)
