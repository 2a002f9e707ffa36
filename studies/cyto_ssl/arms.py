"""What is run: arms, seeds, budgets, in the order in which they are begun. `study.toml` says it.

python arms.py                  # a line a run
python arms.py dino+all 0 1     # the settings of one, as `cytofm pretrain --config` takes them
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

STUDY: Final[dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "study.toml").read_text(encoding="utf-8")
)
PARTS: Final = tuple(STUDY["part"])  # ncp, top-h, irpe
ALL: Final = "all"


@dataclass(frozen=True, order=True)
class Run:
    """One pretraining.

    Attributes:
        arm: method, and what of Cyto-SSL it has: `dino`, `dino+ncp`, `byol+all`.
        seed: of weights, data and views; arms of one seed start from the same weights.
        budget: updates, as a multiple of the study's.
    """

    arm: str
    seed: int
    budget: float = 1.0

    @property
    def name(self) -> str:
        """What its folder and its encoder are called."""
        length = "" if self.budget == 1 else f"-x{self.budget:g}"
        return f"{self.arm.replace('+', '-')}{length}-s{self.seed}"

    @property
    def method(self) -> str:
        """The method of self-supervision."""
        return self.arm.partition("+")[0]

    @property
    def steps(self) -> int:
        """Updates."""
        return round(STUDY["run"]["steps"] * self.budget)


def all_runs() -> Iterator[Run]:
    """Yield every run once, what the first question needs first, seed by seed."""
    known: set[Run] = set()
    for question in ("parts", "methods", "budget"):
        asked = STUDY[question]
        for seed in asked["seeds"]:
            for arm in asked["arms"]:
                for budget in asked.get("budgets", [1.0]):
                    run = Run(arm, seed, float(budget))
                    if run not in known:
                        known.add(run)
                        yield run


def settings(run: Run) -> dict[str, dict[str, Any]]:
    """Return the tables of one run: [pretrain], [views] and the method's own."""
    pretrain = {**STUDY["pretrain"], "batch": STUDY["run"]["batch"]}
    views = dict(STUDY["views"])
    if run.method in STUDY["multi_crop"]["methods"]:
        views |= {key: value for key, value in STUDY["multi_crop"].items() if key != "methods"}
    _, _, part = run.arm.partition("+")
    pretrain |= STUDY["plain"]
    for name in PARTS if part == ALL else filter(None, [part]):
        pretrain |= STUDY["part"][name]
    pretrain |= {"method": run.method, "seed": run.seed, "steps": run.steps, "name": run.name}
    tables = {"pretrain": pretrain, "views": views}
    own = STUDY["method"].get(run.method)
    return tables | ({run.method: own} if own else {})


def as_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Write the tables."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        for listed in all_runs():
            print(f"{listed.name}: {listed.steps} updates")
    else:
        arm, seed, budget = sys.argv[1:]
        print(as_toml(settings(Run(arm, int(seed), float(budget)))), end="")
