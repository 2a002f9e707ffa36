"""A quick look at an encoder while it trains: k-NN on labelled cells, grouped folds.

    probe = CellProbe.load(Path("points.csv"), {"a": Path("stores/a.zarr")}, crop_um=32, px=64,
                           mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    probe.score(lambda x_BCHW: model(x_BCHW.cuda()))  # {"balanced_accuracy": …, "auc": …}

Legend: N cells, B of them in a batch, C colours, H W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.encoders.torch_encoder import fit_square
from cytofm_cli.errors import InputError
from cytofm_cli.evaluate.features import Source, locate, open_source
from cytofm_cli.evaluate.judge import balanced_accuracy, default_folds
from cytofm_cli.evaluate.points import make_tasks, read_points
from cytofm_cli.evaluate.probe import grouped_folds, knn, out_of_fold
from cytofm_cli.nuclei.crops import CellCrops
from cytofm_cli.stats import metrics
from cytofm_cli.tiles.field import Field
from cytofm_cli.views.draws import permutation
from cytofm_cli.words import named

Ints = NDArray[np.int64]
Triple = tuple[float, float, float]
_K = 20


@dataclass(frozen=True, eq=False)
class CellProbe:
    """Labelled cells, kept in memory as the encoder will see them.

    Attributes:
        crops_NCHW: uint8 (N, 3, px, px), RGB.
        y_N: class indices.
        fold_N: fold that tests each cell; whole groups.
        classes: names; the last of two is the positive one.
        mean: per colour, in [0, 1], subtracted from pixels / 255.
        std: per colour, what the difference is divided by.
        notes: what was assumed about the table of cells, and what it names in vain.
    """

    crops_NCHW: Tensor
    y_N: Ints
    fold_N: Ints
    classes: tuple[str, ...]
    mean: Triple
    std: Triple
    notes: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        points: Path,
        slides: Mapping[str, Path | str],
        *,
        crop_um: float,
        px: int,
        mean: Triple,
        std: Triple,
        groups: Path | None = None,
        max_cells: int | None = None,
        mpp: float | None = None,
        folder: Path | None = None,
        task: str | None = None,
    ) -> CellProbe:
        """Read the cells.

        Args:
            points: table `slide_id|image,x,y,label[,group]`, level-0 pixels.
            slides: a store or a slide for each slide id.
            crop_um: side of the crop around a point, µm.
            px: side that crops are resized to.
            mean: of the encoder's normalisation, in [0, 1].
            std: likewise.
            groups: table `slide_id|image,group`, unless the points have that column.
            max_cells: keep a fixed random choice of so many.
            mpp: µm/px of slides that state none.
            folder: where the slides of stores lie now.
            task: `abnormal`, `lsil_plus` or `labels`; None: `abnormal` for Bethesda labels,
                else `labels`.

        Raises:
            LabelError: see `read_points`, `locate`, `make_tasks`.
            SlideError, StoreError: pixels cannot be read.
        """
        sources = [Source(name, str(path)) for name, path in sorted(slides.items())]
        cells, unknown = read_points(points, {source.slide_id for source in sources}, groups)
        notes = cells.notes
        if unknown:
            notes += (f"{points}: {len(unknown)} slide(s) are not given: {named(unknown)}",)
        cells, _ = locate(cells, sources, mpp=mpp, slides=folder)
        if max_cells is not None and len(cells) > max_cells:
            cells = cells.take(sorted(permutation(len(cells), 0)[:max_cells].tolist()))
        chosen = make_tasks(cells, None if task is None else [task], None)[-1]
        cells = cells.take(chosen.rows_N)
        parts = []
        for source in sources:
            xy_px0 = cells.xy_px0[cells.of_slide(source.slide_id)].astype(np.float32)
            if len(xy_px0):
                with open_source(source, mpp=mpp, slides=folder) as (field, fill):
                    parts.append(_crops(field, xy_px0, crop_um=crop_um, px=px, fill=fill))
        group_N = np.unique(cells.groups, return_inverse=True)[1]
        fold_N = grouped_folds(chosen.y_N, group_N, default_folds(cells.groups))
        crops_NCHW = torch.cat(parts).contiguous()
        return cls(crops_NCHW, chosen.y_N, fold_N, chosen.classes, mean, std, notes)

    def score(
        self, encode: Callable[[Tensor], Tensor], *, batch: int = 128, k: int = _K
    ) -> dict[str, Any]:
        """Judge an encoder by its k nearest neighbours (cosine, T 0.07, classes weigh alike).

        Gradients are off; putting the model into evaluation mode and back is the caller's part.

        Args:
            encode: normalised float32 (B, 3, px, px) on the CPU → (B, D), on any device.
            batch: cells at a time.
            k: neighbours.

        Returns:
            `balanced_accuracy` and `auc` (macro one-vs-rest for more than two classes) of the
            held-out answers, 0 to 1; `k`, and `cells`.

        Raises:
            InputError: features that are not finite.
        """
        mean = torch.tensor(self.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.std).view(1, 3, 1, 1)
        with torch.no_grad():
            rows = [
                encode((x_BCHW.float() / 255 - mean) / std).detach().float().cpu()
                for x_BCHW in torch.split(self.crops_NCHW, batch)
            ]
        features_ND = torch.cat(rows).numpy()
        if not np.isfinite(features_ND).all():
            raise InputError("the encoder gives NaN or infinite features: training has diverged.")
        group_N = self.fold_N  # k-NN looks at no groups beyond the folds
        answers = out_of_fold(features_ND, self.y_N, group_N, self.fold_N, knn((k,)))
        p_NC = answers[f"knn{k}"]
        return {
            "balanced_accuracy": float(balanced_accuracy(self.y_N, p_NC)),
            "auc": float(metrics.macro_auc(self.y_N, p_NC)),
            "k": k,
            "cells": len(self.y_N),
        }


def _crops(
    field: Field, xy_px0: NDArray[np.float32], *, crop_um: float, px: int, fill: int
) -> Tensor:
    """Return uint8 (B, 3, px, px) squares of `crop_um` around points of one slide."""
    crops = CellCrops(field, xy_px0, side_px=max(1, round(crop_um / field.mpp)), fill=fill)
    crops_BHWC = crops.read_many(np.arange(len(xy_px0)))
    x_BCHW = torch.from_numpy(crops_BHWC).permute(0, 3, 1, 2)
    return fit_square(x_BCHW, resize_px=px, input_px=px, interpolation="bicubic")
