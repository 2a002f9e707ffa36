"""Nuclei with a Cellpose 4 weight file of the user (extra `cellpose`).

Cellpose takes a path that does not exist for a wish to download its default model, and loads
weights of which only some fit without a word. Both are checked here first. The published
weights were trained on data for non-commercial use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import WeightsError
from cytofm_cli.nuclei.base import NUCLEUS, NucleusTable, as_rgb, check_mpp
from cytofm_cli.nuclei.polygons import label_table
from cytofm_cli.nuclei.weights import existing_file
from cytofm_cli.registry import DetectorPlugin

if TYPE_CHECKING:
    from collections.abc import Iterable

NEEDS: Final = "a Cellpose-SAM file (cpsam_v2)"
MPP_RANGE: Final = (0.05, 2.1)
MIN_PIXELS: Final = 15
# What every Cellpose-SAM file has beside its transformer blocks.
EXPECTED_KEYS: Final = ("W2", "out.weight", "out.bias")


@dataclass(frozen=True, kw_only=True)
class CellposeConfig(Settings):
    """Settings of the Cellpose detector."""

    weights: Path | None = option(None, "Cellpose-SAM weight file on this machine")
    diameter_um: float = option(
        8.0, "typical diameter of a nucleus, in µm; scales the image", low=1.0, high=50.0
    )
    flow_threshold: float = option(0.4, "largest error of the flow of a mask", low=0.0, high=3.0)
    cellprob_threshold: float = option(0.0, "smallest logit of a pixel", low=-6.0, high=6.0)
    device: str = option("auto", "auto, cpu, cuda or cuda:1", affects_result=False)


class CellposeDetector:
    """Nuclei with Cellpose; see the module's text."""

    classes: tuple[str, ...] = (NUCLEUS,)
    halo_um: float = 20.0

    def __init__(self, config: CellposeConfig | None = None) -> None:
        from cytofm_cli.nuclei import networks
        from cytofm_cli.work.device import find_device

        self.config = config or CellposeConfig()
        path = existing_file(self.config.weights, "cellpose", NEEDS).resolve()
        self.device = find_device(self.config.device)
        state = networks.load_tensors(path)
        check_keys(path, state, EXPECTED_KEYS)
        self.model = _open_model(path, self.device)
        # Cellpose loads what fits and keeps random numbers for the rest: compare with the file.
        check_keys(path, state, self.model.net.state_dict())

    def detect(self, image_HWC: NDArray[np.uint8], mpp: float) -> NucleusTable:
        """Find the nuclei of an RGB image; see `NucleusDetector.detect`."""
        from cytofm_cli.nuclei.networks import memory_errors

        rgb = as_rgb(image_HWC)
        check_mpp(mpp, *MPP_RANGE, "cellpose")
        with memory_errors("cellpose"):
            labels_HW = self.model.eval(
                rgb,
                channel_axis=-1,
                diameter=self.config.diameter_um / mpp,
                flow_threshold=self.config.flow_threshold,
                cellprob_threshold=self.config.cellprob_threshold,
                min_size=MIN_PIXELS,
            )[0]
        return label_table(np.asarray(labels_HW, np.int64), mpp)


def check_keys(path: Path, state: dict[str, Any], expected: Iterable[str]) -> None:
    """Refuse a file that lacks a tensor of the network.

    Raises:
        WeightsError: names how many are missing, and the first.
    """
    keys = {key.removeprefix("module.") for key in state}
    missing = [key for key in expected if key not in keys]
    if missing:
        raise WeightsError(
            f"{path}: not a Cellpose-SAM weight file: {len(missing)} tensors are missing, "
            f"e.g. {missing[0]!r}."
        )


def _open_model(path: Path, device: Any) -> Any:
    from cellpose import models

    return models.CellposeModel(
        gpu=device.type == "cuda",
        pretrained_model=str(path),
        device=device,
        use_bfloat16=device.type == "cuda",
    )


PLUGIN = DetectorPlugin(
    make=CellposeDetector,
    config=CellposeConfig,
    weights=NEEDS,
    summary="Cellpose-SAM with your weight file",
    needs=("cellpose",),
    extra="cellpose",
    sample="cytofm_cli.testing.samples.detectors:cellpose",
)
