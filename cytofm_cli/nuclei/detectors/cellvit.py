"""Nuclei with a CellViT checkpoint of the user: CellViT-256 and CellViT-SAM-B/L/H.

The file is a dictionary with `arch`, `config` (flat, dot-separated keys) and
`model_state_dict`; it is read without running code, and every tensor must fit. Nothing is
downloaded. Licences of the published weights: SAM-derived Apache-2.0; the ViT-256 one may not
be sold (Commons Clause); both ask to cite arXiv:2306.15350.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import WeightsError
from cytofm_cli.nuclei.base import NUCLEUS, NucleusTable, as_rgb, check_mpp, empty_table
from cytofm_cli.nuclei.hover import SEPARATIONS, majority_class, separate
from cytofm_cli.nuclei.polygons import label_table
from cytofm_cli.nuclei.resample import resample_area
from cytofm_cli.nuclei.weights import existing_file
from cytofm_cli.registry import DetectorPlugin

if TYPE_CHECKING:
    from cytofm_cli.nuclei.cellvit_net import CellViT

Floats = NDArray[np.float32]

# Names of PanNuke's classes; 0 is the background and also stands for "no class".
PANNUKE: Final = (NUCLEUS, "neoplastic", "inflammatory", "connective", "dead", "epithelial")
MPP_OF: Final = {40: 0.25, 20: 0.5}
NEEDS: Final = "a CellViT checkpoint, e.g. CellViT-256-x40-AMP.pth"
MPP_RANGE: Final = (0.05, 1.05)
MPP_TOLERANCE: Final = 0.035  # closer than this, the network sees the pixels as they are
SIDE_MULTIPLE: Final = 32  # what the networks were trained with
# The distance maps are scaled to 0..1 over the tile; where almost nothing is nuclear this only
# blows up noise.
MIN_NUCLEAR_PX: Final = 30


@dataclass(frozen=True, kw_only=True)
class CellvitConfig(Settings):
    """Settings of the CellViT detector."""

    weights: Path | None = option(None, "CellViT checkpoint (.pth) on this machine")
    magnification: int = option(
        0, "40 or 20; 0 takes it from the file's config or name, else 40", low=0, high=40
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:1", affects_result=False)


@dataclass(frozen=True, kw_only=True)
class CellvitFile:
    """A network with its weights and what the file says about its input."""

    network: CellViT
    mean: tuple[float, ...]
    std: tuple[float, ...]
    magnification: int
    classes: tuple[str, ...]
    half: bool


class CellvitDetector:
    """Nuclei and their classes with CellViT; see the module's text."""

    halo_um: float = 16.0  # 64 px at 40×, the overlap of the published pipeline

    def __init__(self, config: CellvitConfig | None = None) -> None:
        from cytofm_cli.work.device import find_device

        self.config = config or CellvitConfig()
        path = existing_file(self.config.weights, "cellvit", NEEDS)
        self.device = find_device(self.config.device)
        self.file = read_checkpoint(path, self.config.magnification)
        self.file.network.eval().to(self.device)
        self.classes = self.file.classes

    def detect(self, image_HWC: NDArray[np.uint8], mpp: float) -> NucleusTable:
        """Find the nuclei of an RGB image; see `NucleusDetector.detect`."""
        rgb = as_rgb(image_HWC)
        check_mpp(mpp, *MPP_RANGE, "cellvit")
        own_mpp = MPP_OF[self.file.magnification]
        factor = own_mpp / mpp if abs(mpp - own_mpp) > MPP_TOLERANCE else 1.0
        pixels = resample_area(rgb, factor) / np.float32(255)
        maps = self._maps(pixels)
        table = nuclei_from_maps(
            maps["nuclei_binary_map"],
            maps["hv_map"],
            maps["nuclei_type_map"],
            magnification=self.file.magnification,
            mpp=mpp * factor,
            classes=self.classes,
        )
        return table.moved(scale=factor).sorted()

    def _maps(self, pixels_HWC: Floats) -> dict[str, Floats]:
        """Run the network on an image of any size; maps as float32 (C, H, W)."""
        import torch

        from cytofm_cli.nuclei.networks import memory_errors

        H, W, _ = pixels_HWC.shape
        pad = [(0, -side % SIDE_MULTIPLE) for side in (H, W)]
        padded = np.pad(pixels_HWC, (*pad, (0, 0)), mode="edge")
        normal = (padded - np.array(self.file.mean, np.float32)) / np.array(
            self.file.std, np.float32
        )
        x_BCHW = torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))[None]
        half = self.file.half and self.device.type == "cuda"
        with (
            memory_errors("cellvit"),
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.float16, enabled=half),
        ):
            maps = self.file.network(x_BCHW.to(self.device))
        names = ("nuclei_binary_map", "hv_map", "nuclei_type_map")
        return {name: maps[name][0, :, :H, :W].float().cpu().numpy() for name in names}


def nuclei_from_maps(
    binary_2HW: Floats,
    hv_2HW: Floats,
    type_CHW: Floats,
    *,
    magnification: int,
    mpp: float,
    classes: tuple[str, ...],
) -> NucleusTable:
    """Turn the network's maps into nuclei.

    Args:
        binary_2HW: logits of background and nucleus.
        hv_2HW: horizontal and vertical distance maps.
        type_CHW: logits of the classes, 0 background.
        magnification: 40 or 20; sets the width of the derivative.
        mpp: µm/px of the maps.
        classes: one name for each class; that of 0 is given to nuclei without a class.

    Returns:
        The confidence is the mean probability of "nucleus" over the nucleus.
    """
    nuclear = 1 / (1 + np.exp(np.clip(binary_2HW[0] - binary_2HW[1], -30, 30)))
    mask_HW = nuclear > 0.5
    if mask_HW.sum() < MIN_NUCLEAR_PX:
        return empty_table(classes)
    labels_HW = separate(mask_HW, hv_2HW, SEPARATIONS[magnification])
    size = np.bincount(labels_HW.ravel())[1:]
    total = np.bincount(labels_HW.ravel(), weights=nuclear.ravel())[1:]
    return label_table(
        labels_HW,
        mpp,
        probability=np.clip(total / np.maximum(size, 1), 0, 1),
        class_id=majority_class(labels_HW, type_CHW.argmax(0), len(classes)),
        classes=classes,
    )


def read_checkpoint(path: Path, magnification: int = 0) -> CellvitFile:
    """Read a published CellViT file.

    Raises:
        WeightsError: unsafe, of another layout or architecture, or a tensor does not fit.
    """
    import torch

    from cytofm_cli.nuclei.cellvit_net import SIZES, CellViT
    from cytofm_cli.nuclei.networks import load_strictly, load_tensors

    content = load_tensors(path)
    missing = [key for key in ("arch", "config", "model_state_dict") if key not in content]
    if missing:
        raise WeightsError(
            f"{path}: not a CellViT checkpoint: no {', '.join(missing)}.",
            hint="a classifier or encoder file is not enough; the segmentation file is needed",
        )
    config, state = content["config"], content["model_state_dict"]
    if not isinstance(config, Mapping) or not isinstance(state, Mapping):
        raise WeightsError(f"{path}: `config` and `model_state_dict` must be dictionaries.")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    name = _size_name(str(content["arch"]), str(config.get("model.backbone", "")), path)
    head = "classifier_head.weight" if SIZES[name].sam else "encoder.head.weight"
    n_classes = _rows(state, "nuclei_type_maps_decoder.decoder0_header.2.weight", path)
    n_binary = _rows(state, "nuclei_binary_map_decoder.decoder0_header.2.weight", path)
    with torch.device("meta"):
        network = CellViT(
            SIZES[name],
            n_classes=n_classes,
            n_tissues=_rows(state, head, path),
            regression=n_binary == 4,
        )
    load_strictly(network, state, path)
    return CellvitFile(
        network=network,
        mean=_triple(config.get("transformations.normalize.mean"), path),
        std=_triple(config.get("transformations.normalize.std"), path),
        magnification=_magnification(magnification, config, path),
        classes=PANNUKE
        if n_classes == len(PANNUKE)
        else (NUCLEUS, *[f"class {i}" for i in range(1, n_classes)]),
        half=bool(config.get("training.mixed_precision", False)),
    )


def _size_name(arch: str, backbone: str, path: Path) -> str:
    if arch.startswith("CellViT256"):
        return "CellViT-256"
    if arch.startswith("CellViTSAM") and backbone.upper() in {"SAM-B", "SAM-L", "SAM-H"}:
        return backbone.upper()
    raise WeightsError(
        f"{path}: architecture {arch!r} with backbone {backbone!r} is not supported.",
        hint="CellViT256, or CellViTSAM with SAM-B, SAM-L or SAM-H",
    )


def _rows(state: Mapping[str, Any], key: str, path: Path) -> int:
    shape = getattr(state.get(key), "shape", None)
    if not shape:
        raise WeightsError(f"{path}: tensor {key!r} is missing; not a CellViT checkpoint.")
    return int(shape[0])


def _triple(values: Any, path: Path) -> tuple[float, ...]:
    if values is None:
        return (0.5, 0.5, 0.5)
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the normalisation {values!r} is not three numbers.") from error
    return (red, green, blue)


def _magnification(asked: int, config: Mapping[str, Any], path: Path) -> int:
    said = next((config[key] for key in sorted(config) if key.endswith("magnification")), None)
    in_name = re.search(r"x(20|40)", path.name)
    value = asked or said or (in_name and in_name[1]) or 40
    if str(value) not in {"20", "40"}:
        raise WeightsError(f"{path}: magnification {value} is not 20 or 40.")
    return int(value)


PLUGIN = DetectorPlugin(
    make=CellvitDetector,
    config=CellvitConfig,
    weights=NEEDS,
    summary="CellViT-256 or CellViT-SAM with your weight file; nuclei with PanNuke classes",
    sample="cytofm_cli.testing.samples.detectors:cellvit",
)
