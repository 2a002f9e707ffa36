"""RUNs and evidence made up in memory, for pages of any size and with any names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytofm_cli.pictures.files import jpeg_bytes
from cytofm_cli.report.answers import RunAnswers, Split
from cytofm_cli.report.crops import PICTURE_PX, CellPicture
from cytofm_cli.report.evidence import Evidence, Instance, Quality
from cytofm_cli.stats.compare import Answers
from cytofm_cli.stats.judge import decide, judge


def run_of(
    p_SC: np.ndarray,
    y_S: Sequence[int],
    *,
    name: str = "run",
    classes: Sequence[str] = ("normal", "abnormal"),
    slides: Sequence[str] | None = None,
    thresholds: Sequence[float] = (0.5, 0.5),
) -> RunAnswers:
    """Return a RUN of two folds with these answers; its metrics are those of `stats.judge`."""
    y = np.asarray(y_S, np.int64)
    names = tuple(slides) if slides is not None else tuple(f"s{i:05}" for i in range(len(y)))
    fold = np.arange(len(y)) % 2
    threshold = np.array(thresholds)[fold] if len(classes) == 2 else np.full(len(y), np.nan)
    predicted = (p_SC[:, 1] >= threshold).astype(np.int64) if len(classes) == 2 else decide(p_SC, 0)
    judged = judge(
        *(y, p_SC, predicted, p_SC, names),
        replicates=20, seed=0, specificity=0.9, ordinal=False,
    )  # fmt: skip
    auc = judged["auc"]["value"]
    record: dict[str, Any] = {
        **judged, "method": "abmil", "preset": "cytofm", "encoder": "e", "unit": "cell",
        "classes": list(classes), "slides": len(y), "groups": len(y), "group_column": None,
        "label_column": "label", "class_counts": np.bincount(y, minlength=len(classes)).tolist(),
        "class_groups": {}, "folds": 2, "seeds": 1, "interval": "95 %", "what": "out-of-fold",
        "threshold": {"of": classes[1], "rule": "youden", "mean": float(np.mean(thresholds)),
                      "by_fold": list(thresholds)} if len(classes) == 2 else None,
        "auc_by_fold": {"0": auc, "1": auc}, "auc_by_seed": {"0": auc}, "notes": [],
    }  # fmt: skip
    parts = tuple(f"{f == 0}|{f == 1}" for f in fold)
    answers = Answers(name, names, y, p_SC, names, tuple(classes), parts)
    return RunAnswers(
        path=Path(name), name=name, digest="d" * 16, metrics=record,
        config={"mil": {}, "task": {}}, answers=answers, predicted_S=predicted,
        threshold_S=threshold, splits=[Split("0", 1, 1, 1), Split("1", 1, 1, 1)],
        config_text="[mil]\n",
    )  # fmt: skip


def many(n: int, seed: int = 0) -> RunAnswers:
    """Return a RUN of n slides; the classes are the same for every seed."""
    y = np.random.default_rng(0).integers(0, 2, n)
    rng = np.random.default_rng(seed + 1)
    p = np.clip(rng.normal(0.35 + 0.3 * y, 0.2), 0, 1)
    return run_of(np.column_stack([1 - p, p]), y.tolist(), name=f"run{seed or ''}")


def picture(colour: tuple[int, int, int] = (120, 90, 160)) -> bytes:
    return jpeg_bytes(np.full((PICTURE_PX, PICTURE_PX, 3), colour, np.uint8))


def evidence_of(slide: str, *, cells: int = 2, warnings: tuple[str, ...] = ()) -> Evidence:
    """Return evidence with cells of an outline each."""
    jpeg = picture()
    seen = CellPicture(jpeg, 40 / PICTURE_PX, ((40.0, 40.0), (90.0, 40.0), (64.0, 90.0)))
    instances = tuple(Instance(i + 1, i, 10 * i, 20, 0.5 / (i + 1), seen) for i in range(cells))
    return Evidence(
        slide, store=f"stores/{slide}.zarr", quality=Quality(16, 2, 0, 0.4, 0.25, 80),
        column="attention", n_instances=80, distinct=80, instances=instances, thumbnail=jpeg,
        map=jpeg, made_by=("embeddings/e/cell: 2026",), warnings=warnings,
    )  # fmt: skip
