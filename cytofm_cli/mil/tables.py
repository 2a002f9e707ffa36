"""Tables of a benchmark: rows are kinds of bags, columns are heads, as in the papers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cytofm_cli.stats import cautions as intervals
from cytofm_cli.stats.cautions import interval_text, is_usable
from cytofm_cli.stats.compare import Comparison
from cytofm_cli.table_text import TableWriter

METRICS = ("auc", "accuracy", "recall")
ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Table:
    """What a benchmark found.

    Attributes:
        rows: kinds of bags.
        columns: heads.
        cells: content of metrics.json by (row, column); absent where the run failed.
        pairs: comparisons of all runs, named "row column".
        untested: why there are none.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Mapping[str, Any]]
    pairs: Sequence[Comparison]
    untested: str = ""

    def auc(self, row: str, column: str) -> float | None:
        """Return the AUC of a cell."""
        cell = self.cells.get((row, column))
        return None if cell is None else cell["auc"]["value"]

    def best(self) -> tuple[str, str] | None:
        """Return the cell of highest AUC."""
        known = {key: self.auc(*key) for key in self.cells}
        scored = {key: value for key, value in known.items() if value is not None}
        return max(scored, key=lambda key: scored[key]) if scored else None

    def worse_than_best(self, row: str, column: str) -> bool:
        """Tell whether the best cell is better than this one beyond chance, after correction."""
        best = self.best()
        if best is None or (row, column) == best:
            return False
        names = {f"{row} {column}", " ".join(best)}
        return any({p.first, p.second} == names and p.p_adjusted < ALPHA for p in self.pairs)

    def mean_ranks(self) -> dict[str, float | None]:
        """Return each row's mean rank over the columns where all rows have a result (1: best)."""
        ranks: dict[str, list[float]] = {row: [] for row in self.rows}
        for column in self.columns:
            values = {row: self.auc(row, column) for row in self.rows}
            if any(value is None for value in values.values()):
                continue
            for row in self.rows:
                above = sum(values[other] > values[row] for other in self.rows)  # type: ignore[operator]
                equal = sum(values[other] == values[row] for other in self.rows)
                ranks[row].append(above + (equal + 1) / 2)
        return {row: sum(of_row) / len(of_row) if of_row else None for row, of_row in ranks.items()}


def markdown(table: Table) -> str:
    """Write the table for reading: AUC with interval; accuracy and recall below it."""
    ranks = table.mean_ranks()
    lines = [
        "| bags | " + " | ".join(table.columns) + " | mean rank |",
        "|---|" + "---|" * (len(table.columns) + 1),
    ]
    for row in table.rows:
        cells = [_cell(table, row, column, "**", "**", "<br>") for column in table.columns]
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {_number(ranks[row], 1)} |")
    return "\n".join([*lines, "", *_legend(table)]) + "\n"


def latex(table: Table) -> str:
    """Write the table as LaTeX (needs the booktabs package)."""
    ranks = table.mean_ranks()
    head = " & ".join(["Bags", *map(_tex, table.columns), "Rank"])
    lines = [
        r"\begin{tabular}{l" + "c" * (len(table.columns) + 1) + "}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [
            r"\begin{tabular}{@{}c@{}}"
            + _cell(table, row, column, r"\textbf{", "}", r"\\").replace("†", r"$^\dagger$")
            + r"\end{tabular}"
            for column in table.columns
        ]
        lines.append(" & ".join([_tex(row), *cells, _number(ranks[row], 1)]) + r" \\")
    notes = [f"% {line}" for line in _legend(table) if line]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes]) + "\n"


def as_csv(table: Table) -> str:
    """Write one row a run: every metric with its interval."""
    text = io.StringIO()
    writer = TableWriter(text)
    names = sorted(
        {
            name
            for cell in table.cells.values()
            for name, value in cell.items()
            if isinstance(value, dict) and "low" in value
        },
        key=lambda name: (name not in METRICS, METRICS.index(name) if name in METRICS else 0, name),
    )
    ends = ("value", "low", "high")
    header = [f"{n}" if end == "value" else f"{n}_{end}" for n in names for end in ends]
    writer.writerow(["bags", "encoder", "unit", "method", *header, "worse_than_best"])
    for row in table.rows:
        for column in table.columns:
            cell = table.cells.get((row, column))
            if cell is None:
                continue
            values = [_number(cell.get(n, {}).get(end), 6) for n in names for end in ends]
            kind = [row, cell["encoder"], cell["unit"], column]
            writer.writerow([*kind, *values, table.worse_than_best(row, column)])
    return text.getvalue()


def _cell(table: Table, row: str, column: str, bold: str, end: str, newline: str) -> str:
    cell = table.cells.get((row, column))
    if cell is None:
        return "–"
    auc = cell["auc"]
    value = _number(auc["value"], 3)
    if (row, column) == table.best():
        value = f"{bold}{value}{end}"
    mark = "†" if table.worse_than_best(row, column) else ""
    interval = interval_text(auc["low"], auc["high"])
    rest = " / ".join(_number(cell[name]["value"], 3) for name in METRICS[1:])
    return f"{value}{mark} {interval}{newline}{rest}"


def _legend(table: Table) -> list[str]:
    metrics = next(iter(table.cells.values()))
    tuned = " and ".join(metrics["tuned"][0]["settings"]) if "tuned" in metrics else ""
    search = f" with {tuned} chosen within each training part" if tuned else ""
    of = f" of {metrics['classes'][1]!r}" if len(metrics["classes"]) == 2 else ""
    tests = (
        "†: lower than it beyond chance (answers swapped by group, Holm, "
        f"{len(table.pairs)} comparisons, 5 %)."
    )
    if table.untested:
        tests = f"No tests: {table.untested}"
    return [
        f"Each cell: AUC [95 % interval], then accuracy / recall{of}, of out-of-fold answers of "
        f"{metrics['slides']} slides from {metrics['groups']} groups; {metrics['folds']} folds × "
        f"{metrics['seeds']} seeds, {metrics['preset']} preset{search}. "
        f"Interval: {metrics['interval']}.",
        f"Bold: highest AUC. {tests} Mean rank of AUC over the columns; 1 is best.",
        *(f"{note}." for note in _cautions(table)),
    ]


def _cautions(table: Table) -> list[str]:
    """Say which intervals are too narrow, or none."""
    metrics = next(iter(table.cells.values()))
    # A RUN of an older version counts groups in all only: no class has more.
    by_class = metrics.get("class_groups") or dict.fromkeys(metrics["classes"], metrics["groups"])
    lines = intervals.cautions(by_class, metrics["groups"])
    if any(not is_usable(of["auc"]["low"], of["auc"]["high"]) for of in table.cells.values()):
        lines.append(
            "No interval: every replicate separates the classes perfectly, so how far the truth "
            "may lie is not known"
        )
    return lines


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _tex(text: str) -> str:
    return "".join(f"\\{c}" if c in "_&%#$" else c for c in text)
