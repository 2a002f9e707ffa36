"""Write the tables under "Judged" of docs/cytofm-tiny.md from results/judged.json.

    python report.py [OUT]

With OUT, the folder of the Makefile after `judge` and `needle`, what the file holds is taken from
there first. What is between the two marks of the page is replaced; the words around it stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = HERE.parents[1] / "docs" / "cytofm-tiny.md"
RESULTS: Final = HERE / "results" / "judged.json"
BEGIN, END = "<!-- judged -->", "<!-- /judged -->"
OWN: Final = "cytofm-tiny-2"
OTHERS: Final = {
    "handcrafted": "`handcrafted`", "cytofm-tiny": "`cytofm-tiny`", "sr-vit-nano-random0": "random",
}  # fmt: skip
PROBES: Final = {"linear": "linear", "knn20": "k-NN"}
COLLECTIONS: Final = {
    "malaria_nih": "malaria cells, {} patients", "sipakmed": "SIPaKMeD, 5 classes, {} blocks",
    "lbc_cdetector": "liquid-based, 11 classes, {} blocks",
    "cric": "CRIC, abnormal or not, {} groups",
}  # fmt: skip
Interval = Mapping[str, float]
Results = dict[str, Any]


def main() -> None:
    """Keep the results, and write the page."""
    if len(sys.argv) > 1:
        kept = json.dumps(collect(Path(sys.argv[1])), indent=1)
        RESULTS.write_text(kept + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + page(json.loads(RESULTS.read_text())) + END + after)


def collect(out: Path) -> Results:
    """Read what `judge` and `needle` came to: by collection, and of bags with one cell."""
    found: Results = {}
    for name in COLLECTIONS:
        metrics = json.loads((out / "judged" / name / "metrics.json").read_text())
        (task,) = metrics["tasks"].values()
        found[name] = {
            **{key: metrics[key] for key in ("groups", "instances", "crop_um")},
            "auc": {
                encoder: {probe: _rounded(of["probes"][probe]["auc"]) for probe in PROBES}
                for encoder, of in task["encoders"].items()
            },
            "less": {
                f"{row['second']} {row['probe']}": _turned(row)
                for row in metrics["comparisons"]
                if row["first"] == OWN and row["metric"] == "auc"
            },
        }
    found["bags"] = {
        path.parent.name: _rounded(json.loads(path.read_text())["auc"])
        for path in sorted((out / "needle").glob("*/metrics.json"))
    }
    return found


def page(results: Results) -> str:
    """Write both tables: values, and differences."""
    values = [f"| collection | probe | `{OWN}` | {' | '.join(OTHERS.values())} |", "|" + "---|" * 6]
    gaps = ["| collection | probe | − " + " | − ".join(OTHERS.values()) + " |", "|" + "---|" * 5]
    for name, title in COLLECTIONS.items():
        of = results[name]
        for probe, said in PROBES.items():
            head = f"| {title.format(of['groups'])} | {said} | "
            cells = [_value(of["auc"][encoder][probe]) for encoder in (OWN, *OTHERS)]
            values.append(head + " | ".join(cells) + " |")
            cells = [_gap(of["less"][f"{encoder} {probe}"]) for encoder in OTHERS]
            gaps.append(head + " | ".join(cells) + " |")
    text = "Differences of `cytofm-tiny-2`, paired over groups; bold: beyond the interval:"
    return "\n".join(["", *values, "", text, "", *gaps, "", ""])


def _rounded(of: Interval) -> dict[str, float]:
    return {key: round(of[key], 6) for key in ("value", "low", "high")}


def _turned(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a difference, which is second minus first, as first minus second."""
    turned = {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
    return {
        key: round(x, 6) for key, x in (turned | {k: row[k] for k in ("p", "p_adjusted")}).items()
    }


def _value(of: Interval) -> str:
    return f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _gap(of: Interval) -> str:
    value = f"{of['value']:+.3f}"
    if of["low"] > 0 or of["high"] < 0:
        value = f"**{value}**"
    return f"{value} [{of['low']:+.3f}, {of['high']:+.3f}]".replace("-", "−")


if __name__ == "__main__":
    main()
