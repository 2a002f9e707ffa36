"""Classes of nuclei, counted by slide.

Legend: N nuclei, C classes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.cells.config import CountConfig
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.table_text import TableWriter
from cytofm_cli.words import named


@dataclass(frozen=True, eq=False)
class SlideCount:
    """What a slide holds.

    Attributes:
        slide_id: its name.
        run: RUN whose classes they are.
        classes: their names.
        basis: see `ClassesRecord`.
        n: nuclei.
        n_abstained: those that the classifier says nothing of.
        n_below: others whose class is less probable than asked for.
        count_C: int64, the nuclei that are left, by class.
        mean_C: mean probability of each class over all nuclei; NaN without nuclei.
        top_C: mean of each class's k largest probabilities; NaN without nuclei.
        top_score: of one-class: mean of the k largest distances; else None.
        made_by: what made the classes: digest of the model, threshold of abstaining, detector.
    """

    slide_id: str
    run: str
    classes: tuple[str, ...]
    basis: str
    n: int
    n_abstained: int
    n_below: int
    count_C: NDArray[np.int64]
    mean_C: NDArray[np.float64]
    top_C: NDArray[np.float64]
    top_score: float | None
    made_by: tuple[str, float, str]

    @property
    def share_C(self) -> NDArray[np.float64]:  # noqa: N802
        """Return the shares of the classes among the nuclei counted; NaN if none is."""
        total = int(self.count_C.sum())
        return self.count_C / total if total else np.full(len(self.count_C), np.nan)


def count_store(store: Store, config: CountConfig) -> SlideCount:
    """Count the classes of the nuclei of a store.

    Raises:
        StoreError: no classes, several RUNs and none named, or they are out of date.
    """
    run = store.which_classes(config.run)
    step = schema.classes_step(run)
    store.require_fresh(step)
    record = store.classes_record(run)
    class_N, p_NC, abstained_N = (
        store.read(f"{step}/{name}") for name in ("class", "probability", "abstained")
    )
    has_score = store.has(f"{step}/score")
    score_N = store.read(f"{step}/score").astype(np.float64) if has_score else None
    said_N = abstained_N == 0
    own_N = p_NC[np.arange(len(class_N)), class_N]
    counted_N = said_N & (own_N >= config.min_probability)
    n_classes = len(record.classes)
    return SlideCount(
        slide_id=store.slide_id,
        run=run,
        classes=record.classes,
        basis=record.basis,
        n=len(class_N),
        n_abstained=int((~said_N).sum()),
        n_below=int((said_N & ~counted_N).sum()),
        count_C=np.bincount(class_N[counted_N], minlength=n_classes).astype(np.int64),
        mean_C=top_mean(p_NC.astype(np.float64), len(class_N)),
        top_C=top_mean(p_NC.astype(np.float64), config.top_k),
        top_score=None if score_N is None else float(top_mean(score_N[:, None], config.top_k)[0]),
        made_by=(record.run_sha256, float(record.config["abstain"]), record.detector),
    )


def mixture_notes(counts: Sequence[SlideCount]) -> list[str]:
    """Say where counts of slides cannot be compared, since their classes were made otherwise."""
    notes = []
    kinds = ("models", "thresholds of abstaining", "detectors")
    for kind, made_by in zip(kinds, zip(*(of.made_by for of in counts), strict=True), strict=False):
        slides: dict[object, list[str]] = {}
        for of, how in zip(counts, made_by, strict=True):
            slides.setdefault(how, []).append(of.slide_id)
        if len(slides) > 1:
            listed = "; ".join(named(names) for names in slides.values())
            notes.append(f"counts are of classes by {len(slides)} {kind}: {listed}")
    return notes


def top_mean(values_NC: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the mean of each column's k largest values, of all if they are fewer; NaN for none."""
    if not len(values_NC):
        return np.full(values_NC.shape[1], np.nan)
    k = min(k, len(values_NC))
    return np.asarray(np.sort(values_NC, axis=0)[-k:].mean(0))


def counts_csv(counts: Sequence[SlideCount], top_k: int) -> str:
    """Write a row a slide.

    `slide_id,run,basis,nuclei,abstained,below_gate,counted`, then by class `n_…`, `share_…` (of
    those counted), `mean_…` (probability, over all nuclei) and `top<k>_…`, and of one-class
    `top<k>_score`. What cannot be told is empty.
    """
    classes = list(dict.fromkeys(name for of in counts for name in of.classes))
    scored = any(of.top_score is not None for of in counts)
    text = io.StringIO()
    writer = TableWriter(text)
    head = ["slide_id", "run", "basis", "nuclei", "abstained", "below_gate", "counted"]
    kinds = ("n", "share", "mean", f"top{top_k}")
    last = [f"top{top_k}_score"] if scored else []
    writer.writerow([*head, *(f"{kind}_{name}" for kind in kinds for name in classes), *last])
    for of in counts:
        row = [of.slide_id, of.run, of.basis, of.n, of.n_abstained, of.n_below]
        cells: list[str] = []
        for values_C in (of.count_C, of.share_C, of.mean_C, of.top_C):
            by_name = dict(zip(of.classes, values_C.tolist(), strict=True))
            cells += [_number(by_name.get(name)) for name in classes]
        score = [_number(of.top_score)] if scored else []
        writer.writerow([*row, int(of.count_C.sum()), *cells, *score])
    return text.getvalue()


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
