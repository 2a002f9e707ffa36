"""The report of RUNs of `mil train`, put together as one page.

Legend: S slides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cytofm_cli.errors import InputError
from cytofm_cli.mil.run_folder import METRICS, RUN
from cytofm_cli.report import charts, tables
from cytofm_cli.report.answers import RunAnswers
from cytofm_cli.report.charts import number
from cytofm_cli.report.config import ReportConfig
from cytofm_cli.report.evidence import Evidence
from cytofm_cli.report.page import Pictures, render
from cytofm_cli.report.shown import ShownCell, show_cell
from cytofm_cli.stats.compare import Comparison, compare_runs, share_splits

_QUALITY: Final = (
    "tiles", "dropped", "damaged", "foreground", "focus", "nuclei", "pen", "edge", "clump",
    "saturation", "blank",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A page, and the pictures that lie beside it.

    Attributes:
        html: its text.
        files: pictures by name, in the folder beside it; none if all are within.
        warnings: what stands first in it.
    """

    html: str
    files: Mapping[str, bytes]
    warnings: tuple[str, ...]


def by_notability(run: RunAnswers) -> list[int]:
    """Order slides as they deserve a look: wrong answers, then the most positive or least sure."""
    right_S = run.predicted_S == run.answers.y_S
    return sorted(range(len(right_S)), key=lambda s: (bool(right_S[s]), *_rank(run, s)))


def class_shown(run: RunAnswers, slide: int) -> str:
    """Return whose instance scores are shown of a slide: the positive class, or the answer."""
    return run.positive or run.classes[int(run.predicted_S[slide])]


def report_page(
    runs: Sequence[RunAnswers],
    evidence: Mapping[str, Evidence],
    config: ReportConfig,
    folder: str,
    *,
    failures: Sequence[Mapping[str, str]] = (),
    notes: Sequence[str] = (),
) -> Page:
    """Put a report together.

    Args:
        runs: the first one's answers are shown slide by slide.
        evidence: what the stores of slides show; slides without one are rows of numbers.
        config: settings.
        folder: name of the folder beside the page, for pictures that do not fit into it.
        failures: slides that steps could not do: slide, command, error.
        notes: what was found odd on the way.
    """
    _refuse_damaged(runs)
    run = runs[0]
    pictures = Pictures(folder, sum(map(_bytes_of, evidence.values())))
    pairs, incomparable, compared = _compare(runs)
    slides = [_slide_row(runs, s, evidence, pictures) for s in _order(run)]
    warnings = [*notes, *compared, *_warnings(runs, evidence)]
    if failures:
        warnings.append(f"{len(failures)} slide(s) failed in a step: see Provenance")
    html = render(
        "report.html.j2",
        {
            "title": config.title or f"Report of {' and '.join(r.name for r in runs)}",
            "lead": _lead(run),
            "cards": tables.cards(run),
            "warnings": warnings,
            "cohort": tables.cohort_rows(run),
            "cohort_line": tables.cohort_line(run),
            "splits": [{"name": r.name, "splits": r.splits} for r in _of_own_splits(runs)],
            "interval": run.metrics["interval"],
            "what": run.metrics["what"][:1].upper() + run.metrics["what"][1:],
            "runs": [r.name for r in runs],
            "metrics": tables.metric_rows(runs),
            "thresholds": tables.threshold_lines(runs),
            "confusion": tables.confusion(runs),
            "classes": run.classes,
            "charts": _charts(runs),
            "pairs": [_pair_row(pair) for pair in pairs],
            "incomparable": incomparable,
            "differences": _markup(charts.differences(pairs)) if pairs else "",
            "slides": slides,
            "slides_line": _slides_line(runs),
            "order_line": _order_line(run, evidence),
            "has_maps": any(e.map for e in evidence.values()),
            "columns": _columns(runs),
            "unit": run.unit,
            "failures": failures,
            "provenance": tables.provenance(runs),
            "configs": [{"name": r.name, "text": r.config_text} for r in runs],
        },
    )
    return Page(html, pictures.files, tuple(warnings))


def _refuse_damaged(runs: Sequence[RunAnswers]) -> None:
    """Write what metrics.json says of each RUN alone, so that what is damaged is known by name.

    Raises:
        InputError: names RUN and file.
    """
    for run in runs:
        with RUN.reading(run.path, METRICS):
            _lead(run), tables.cards(run), tables.cohort_rows(run), tables.cohort_line(run)
            tables.metric_rows([run]), tables.threshold_lines([run]), tables.provenance([run])
            run.metrics["what"][:1].upper() + run.metrics["what"][1:] + run.metrics["interval"]
            _warnings([run], {}), _charts([run])


def _lead(run: RunAnswers) -> str:
    m = run.metrics
    return (
        f"Head {m['method']} on {run.unit} bags of encoder {m.get('encoder') or 'not stated'}: "
        f"answers for {m['slides']} slides of {m['groups']} groups, each by models that never saw "
        "the slide or its group."
    )


def _rank(run: RunAnswers, slide: int) -> tuple[float, str]:
    p_C = run.answers.p_SC[slide]
    sure = -float(p_C[1]) if run.positive else float(p_C.max())
    return sure, run.answers.slide_ids[slide]


def _order(run: RunAnswers) -> list[int]:
    """Order the rows: the most positive first; of more than two classes, the least sure."""
    return sorted(range(len(run.predicted_S)), key=lambda s: _rank(run, s))


def _compare(runs: Sequence[RunAnswers]) -> tuple[list[Comparison], str, list[str]]:
    """Return the comparisons, or why there are none, and what to beware of."""
    if len(runs) < 2:
        return [], "", []
    answers = [run.answers for run in runs]
    try:
        pairs = compare_runs(answers)
    except InputError as error:
        return [], f"Not compared: {error.one_line()}", [f"not compared: {error.message}"]
    if share_splits(answers):
        return pairs, "", []
    beware = "these runs used different folds; train with `--splits` of one for less noise"
    return pairs, "", [beware]


def _pair_row(pair: Comparison) -> dict[str, str]:
    record = pair.record()["difference"]
    return {
        "first": pair.first,
        "second": pair.second,
        "auc_first": number(pair.auc[0]),
        "auc_second": number(pair.auc[1]),
        "difference": charts.difference_text(record),
        "p": f"{pair.p_adjusted:.3g}",
    }


def _of_own_splits(runs: Sequence[RunAnswers]) -> list[RunAnswers]:
    """Return the RUNs whose folds are to be shown: one, if all have the same."""
    same = all(run.answers.parts == runs[0].answers.parts for run in runs)
    return [runs[0]] if same else list(runs)


def _charts(runs: Sequence[RunAnswers]) -> list[dict[str, Any]]:
    comparable = [run for run in runs if run.classes == runs[0].classes]
    drawn = [
        ("ROC", charts.roc(comparable)),
        ("Precision and recall", charts.precision_recall(comparable)),
        ("Calibration", charts.calibration(comparable)),
        ("Fold and seed spread", charts.spread(runs)),
        *((f"Probabilities, {run.name}", charts.probabilities(run)) for run in runs),
    ]
    return [{"name": name, "svg": _markup(svg)} for name, svg in drawn]


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - `Chart` escapes all words


def _columns(runs: Sequence[RunAnswers]) -> list[dict[str, Any]]:
    run = runs[0]
    of = run.positive or "the answer"
    names = ["slide", "is", "says", "answer"]
    first = f"p({of})" if len(runs) == 1 else f"p({of}) {run.name}"
    probabilities = [first, *(f"p({of}) {other.name}" for other in runs[1:])]
    columns = [{"name": name, "n": False, "sorts": True, "sorted": ""} for name in names]
    pictures = {"name": "overview, map", "n": False, "sorts": False, "sorted": ""}
    columns.insert(1, pictures)
    columns += [
        {"name": name, "n": True, "sorts": True, "sorted": ""}
        for name in (*probabilities, *_QUALITY)
    ]
    columns[len(names) + 1]["sorted"] = "descending" if run.positive else "ascending"
    return columns


def _slide_row(
    runs: Sequence[RunAnswers],
    slide: int,
    evidence: Mapping[str, Evidence],
    pictures: Pictures,
) -> dict[str, Any]:
    run = runs[0]
    name, y = run.answers.slide_ids[slide], int(run.answers.y_S[slide])
    said = int(run.predicted_S[slide])
    seen = evidence.get(name, Evidence(name))
    instances = _instances(seen, run.unit, pictures)
    tags = ["slide", "right" if y == said else "wrong", f"class-{y}", f"says-{said}"]
    return {
        "name": name,
        "tags": " ".join([*tags, *(["warned"] if seen.warnings else [])]),
        "opens": bool(instances or seen.warnings),
        "cells": _cells(runs, slide, seen),
        "thumbnail": pictures.address(seen.thumbnail) if seen.thumbnail else "",
        "map": pictures.address(seen.map) if seen.map else "",
        "column": seen.column,
        "warnings": seen.warnings,
        "instances": instances,
        "line": _instances_line(seen, run),
        "facts": "; ".join(
            (
                *(seen.quality.narrowed if seen.quality else ()),
                *seen.made_by,
                *([seen.store] if seen.store else []),
            )
        ),
    }


def _cells(runs: Sequence[RunAnswers], slide: int, seen: Evidence) -> list[dict[str, Any]]:
    run = runs[0]
    name, y = run.answers.slide_ids[slide], int(run.answers.y_S[slide])
    said = int(run.predicted_S[slide])
    words = (run.classes[y], run.classes[said], "right" if y == said else "wrong")
    cells: list[dict[str, Any]] = [
        {"text": text, "v": None, "n": False, "answer": place == 2}
        for place, text in enumerate(words)
    ]
    cells += [_number_cell(_probability(other, name, run.positive), ".3f") for other in runs]
    shares = ("foreground", "focus", "pen", "edge", "clump", "saturation", "blank")
    forms = dict.fromkeys(shares, ".2f")
    for key in _QUALITY:
        value = None if seen.quality is None else getattr(seen.quality, key)
        cells.append(_number_cell(value, forms.get(key, "d")))
    return cells


def _probability(run: RunAnswers, slide: str, positive: str | None) -> float | None:
    """Return what a RUN says of a slide: of the positive class, or of its own answer."""
    at = run.row_of.get(slide)
    if at is None:
        return None
    p_C = run.answers.p_SC[at]
    if positive is None:
        return float(p_C[int(run.predicted_S[at])])
    return float(p_C[run.classes.index(positive)]) if positive in run.classes else None


def _number_cell(value: float | None, form: str) -> dict[str, Any]:
    known = value is not None and np.isfinite(value)
    return {
        "text": f"{value:{form}}" if known else "–",
        "v": repr(round(float(value), 6)) if known and value is not None else "",
        "n": True,
        "answer": False,
    }


def _instances(seen: Evidence, unit: str, pictures: Pictures) -> list[ShownCell]:
    return [
        show_cell(
            one.picture,
            pictures,
            rank=one.rank,
            value=value_text(one.value),
            at=(one.x_px0, one.y_px0),
            alt=f"{unit} {one.rank} of {seen.slide_id}: {seen.column} {value_text(one.value)}",
        )
        for one in seen.instances
    ]


def value_text(value: float) -> str:
    """Write an attention or a score in three digits."""
    return f"{value:.3g}"


def _instances_line(seen: Evidence, run: RunAnswers) -> str:
    """Say what orders the cells of a slide."""
    if not seen.instances:
        return ""
    top = f"The first {len(seen.instances)} of {seen.n_instances} {run.unit}s by {seen.column}"
    if seen.distinct == 1:
        return f"{top}, which is the same for all: their order says nothing."
    even = 1 / seen.n_instances
    beside = f"; if all counted alike it would be {even:.3g}" * seen.column.startswith("attention")
    return f"{top}, highest first{beside}. Positions are level-0 pixels."


def _slides_line(runs: Sequence[RunAnswers]) -> str:
    run = runs[0]
    of = f"the positive class, {run.positive}" if run.positive else "the class that is answered"
    return (
        f"Answers of {run.name}. p: probability of {of}. Quality: tiles kept, dropped and damaged; "
        "mean share of foreground and median focus (0 to 1) of the kept tiles; nuclei found; mean "
        "share of the tiles under pen, on rims, in clumps, stained black, blank. "
        "Buttons in the head of the table sort; a slide's name opens what decided."
    )


def _order_line(run: RunAnswers, evidence: Mapping[str, Evidence]) -> str:
    """Say which numbers order the instances, and how to read them."""
    columns = sorted({seen.column for seen in evidence.values() if seen.column})
    if not columns:
        return ""
    told = f"{run.unit.capitalize()}s stand in order of {', '.join(columns)} of {run.name}."
    if any(column.startswith("score_") for column in columns):
        return f"{told} score_C: how much an instance itself speaks for class C."
    if columns == ["attention"]:
        return (
            f"{told} Attention says how much the head weighed an instance, for whichever class; it "
            "is no evidence for one."
        )
    return f"{told} attention_C: how much the head weighed an instance when it judged class C."


def _warnings(runs: Sequence[RunAnswers], evidence: Mapping[str, Evidence]) -> list[str]:
    lines = []
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        lines += [f"{prefix}{note}" for note in run.metrics.get("notes", ())]
    lines += tables.grouped({name: seen.warnings for name, seen in evidence.items()})
    return list(dict.fromkeys(lines))


def _bytes_of(seen: Evidence) -> int:
    cells = sum(len(one.picture.jpeg) for one in seen.instances if one.picture is not None)
    return cells + len(seen.thumbnail or b"") + len(seen.map or b"")
