"""Write docs/study.md and its picture from results/*.json.

    python report.py

What is between the two marks of the page is replaced; the words around it stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

from arms import STUDY
from outcomes import (
    Gap,
    Result,
    chosen,
    compare,
    holm,
    mean_interval,
    needle,
    read_heads,
    read_results,
    sign_test,
    within,
)
from places import RESULTS, ROOT

PAGE: Final = ROOT / "docs" / "study.md"
PICTURE: Final = ROOT / "docs" / "study.svg"
BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
BASELINES: Final = ("handcrafted", "cytofm-tiny", "random")
HEADS: Final = tuple(STUDY["judge"]["heads"])
_LEFT, _TOP, _ROW, _WIDTH = 120, 48, 26, 250  # of the picture, px
Outcome = Callable[[Sequence[Result]], Mapping[str, float]]
PRIMARY: Final[dict[str, Outcome]] = {
    "malaria cells, linear": lambda some: within(some, "malaria_nih", "linear"),
    **{f"needle1, {head}": lambda some, head=head: needle(some, "needle1", head) for head in HEADS},
}


def main() -> None:
    """Write both."""
    results = read_results(RESULTS)
    parts = [arm for arm in STUDY["parts"]["arms"] if chosen(results, arm)]
    shown = [arm for arm in BASELINES if chosen(results, arm)] + parts
    sections = [
        f"![Primary outcomes by arm]({PICTURE.name})\n",
        "### a. The parts\n",
        primary_table(results, shown, "dino"),
        "### b. The methods\n",
        methods_table(results),
        "### c. Encoders and heads\n",
        heads_table(read_heads(RESULTS / "heads")),
        "### d. The length\n",
        budget_table(results),
        "### Other collections\n",
        secondary_table(results, shown),
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(sections) + "\n" + END + after)
    PICTURE.write_text(forest(results, shown))


def primary_table(results: Sequence[Result], arms: Sequence[str], base: str) -> str:
    """Return a row an arm: mean with interval, difference from `base` with corrected p."""
    against = [arm for arm in arms if arm.startswith(base + "+")]
    gaps: dict[str, dict[str, Gap]] = {}
    adjusted: dict[str, dict[str, float]] = {}
    for name, outcome in PRIMARY.items():
        plain = outcome(chosen(results, base)) if against else {}
        gaps[name] = {arm: compare(plain, outcome(chosen(results, arm))) for arm in against}
        adjusted[name] = holm({arm: gap.p for arm, gap in gaps[name].items()})
    rows = []
    for arm in arms:
        cells = [f"{arm} ({len(chosen(results, arm))})"]
        for name, outcome in PRIMARY.items():
            cells.append(interval(mean_interval(outcome(chosen(results, arm)))))
            cells.append(
                difference(gaps[name][arm], adjusted[name][arm]) if arm in gaps[name] else ""
            )
        rows.append(cells)
    heads = [word for name in PRIMARY for word in (f"{name}: AUC [95 %]", f"− {base}, p")]
    return table(["arm (seeds)", *heads], rows)


def methods_table(results: Sequence[Result]) -> str:
    """Return a row a method: plain, with all parts, the difference; below, the sign tests."""
    methods = ["dino", *(arm for arm in STUDY["methods"]["arms"] if "+" not in arm)]
    there = [m for m in methods if chosen(results, m) and chosen(results, f"{m}+all")]
    rows, gaps = [], {name: [] for name in PRIMARY}
    for method in there:
        cells = [method]
        for name, outcome in PRIMARY.items():
            plain, full = (outcome(first_seed(results, arm)) for arm in (method, f"{method}+all"))
            gap = compare(plain, full)
            gaps[name].append(gap.value)
            cells += [f"{mean_interval(plain)[0]:.3f}", f"{mean_interval(full)[0]:.3f}"]
            cells.append(difference(gap, gap.p))
        rows.append(cells)
    heads = [word for name in PRIMARY for word in (name, "+ all", "difference, p")]
    tests = ", ".join(f"{name} p = {sign_test(some):.2f}" for name, some in gaps.items())
    note = f"\nOver the {len(there)} methods (sign test): {tests}.\n" if len(there) > 1 else ""
    return table(["method (seed 0)", *heads], rows) + note


def heads_table(tables: Mapping[str, Any]) -> str:
    """Return a row an encoder and task, a column a head; below each task its control."""
    methods = STUDY["heads"]["methods"]
    rows = [
        [task, encoder, *(interval_of(by_head.get(method)) for method in methods)]
        for task, encoders in tables.items()
        for encoder, by_head in encoders.items()
    ]
    return table(["task", "encoder", *methods], rows)


def budget_table(results: Sequence[Result]) -> str:
    """Return a row a length: plain, with all parts, the difference."""
    rows = []
    for budget in STUDY["budget"]["budgets"]:
        plain, full = (first_seed(results, arm, budget) for arm in STUDY["budget"]["arms"])
        if not plain or not full:
            continue
        cells = [f"{round(STUDY['run']['steps'] * budget)}"]
        for outcome in PRIMARY.values():
            one, other = outcome(plain), outcome(full)
            gap = compare(one, other)
            cells += [f"{mean_interval(one)[0]:.3f}", f"{mean_interval(other)[0]:.3f}"]
            cells.append(difference(gap, gap.p))
        rows.append(cells)
    heads = [word for name in PRIMARY for word in (name, "+ all", "difference, p")]
    return table(["updates (seed 0)", *heads], rows)


def secondary_table(results: Sequence[Result], arms: Sequence[str]) -> str:
    """Return a row an arm: the AUCs that `evaluate probe` prints.

    Of several seeds: their mean, the lowest lower and the highest upper bound.
    """
    columns = [(name, probe) for name in STUDY["judge"]["crop_um"] for probe in ("linear", "knn20")]
    rows = []
    for arm in arms:
        some = chosen(results, arm)
        cells = [arm]
        for name, probe in columns:
            judged = [result["cells"][name][probe] for result in some]
            mean = sum(one["value"] for one in judged) / len(judged)
            low, high = min(one["low"] for one in judged), max(one["high"] for one in judged)
            cells.append(interval((mean, low, high)))
        controls = [
            f"{sum(v) / len(v):.3f}"
            for head in HEADS
            if (v := list(needle(some, "control1", head).values()))
        ]
        rows.append(cells + controls)
    heads = [f"{name}, {probe}" for name, probe in columns]
    return table(["arm", *heads, *(f"control1, {head}" for head in HEADS)], rows)


def first_seed(results: Sequence[Result], arm: str, budget: float = 1.0) -> list[Result]:
    """Return the result of seed 0."""
    return [r for r in chosen(results, arm, budget) if r.get("seed", 0) == 0]


def interval_of(auc: Mapping[str, float] | None) -> str:
    """Write an AUC with its interval, if there is one."""
    return interval((auc["value"], auc["low"], auc["high"])) if auc else "–"


def interval(values: tuple[float, ...]) -> str:
    """Write a number with its interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def difference(gap: Gap, p: float) -> str:
    """Write a difference with its interval and p."""
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], {p:.2g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    if not rows:
        return "Not run yet.\n"
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def forest(results: Sequence[Result], arms: Sequence[str]) -> str:
    """Draw, an outcome a panel, each arm's mean and interval; the same scale in all panels."""
    height = _TOP + _ROW * len(arms) + 30
    width = _LEFT + len(PRIMARY) * (_WIDTH + 30)
    parts = [_panel(results, arms, column) for column in range(len(PRIMARY))]
    for row, arm in enumerate(arms):
        y = _TOP + _ROW * (row + 0.5) + 4
        parts.append(f'<text x="{_LEFT - 10}" y="{y}" text-anchor="end">{escape(arm)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(results: Sequence[Result], arms: Sequence[str], column: int) -> str:
    name, outcome = list(PRIMARY.items())[column]
    left, bottom = _LEFT + column * (_WIDTH + 30), _TOP + _ROW * len(arms)
    low, high = 0.4, 1.0

    def at(value: float) -> str:
        return f"{left + (min(max(value, low), high) - low) / (high - low) * _WIDTH:.1f}"

    parts = [f'<text x="{left}" y="24" font-weight="bold">{escape(name)}</text>']
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        colour = "#888" if tick == 0.5 else "#ddd"  # chance
        parts.append(f'<path d="M{at(tick)} {_TOP - 8}V{bottom}" stroke="{colour}"/>')
        parts.append(f'<text x="{at(tick)}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
    for row, arm in enumerate(arms):
        y = _TOP + _ROW * (row + 0.5)
        mean, lower, upper = mean_interval(outcome(chosen(results, arm)))
        colour = "#777" if arm in BASELINES else "#1f5fa8"
        parts.append(f'<path d="M{at(lower)} {y}H{at(upper)}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at(mean)}" cy="{y}" r="4.5" fill="{colour}"/>')
    return "".join(parts)


if __name__ == "__main__":
    main()
