"""The long form of the torture: so many trials, or as many as fit into so many minutes.

    TMPDIR=/dev/shm python tests/torture/long.py --kills 1000 --report FILE.json [--minutes 60]

Goes on where FILE.json ends; what each trial is, its seed and number say. Exit code 1 if any found
something. `--table FILE.json` prints the table of docs/torture.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.torture.ground import Warm, make_ground, warmed
from tests.torture.kills import (
    DRAWN,
    WEATHERS,
    Case,
    draw,
    may_mount,
    prepare,
    run_trial,
    write_report,
)


def asked() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="trials in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="what was done, and goes on")
    parser.add_argument("--table", type=Path, help="print the table of a report, do nothing else")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--case", action="append", choices=list(DRAWN), help="only these commands")
    parser.add_argument("--weather", action="append", choices=list(WEATHERS), help="only these")
    return parser.parse_args()


def counted(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often each command met what."""
    table: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        table.setdefault(outcome["case"], Counter()).update(outcome["sent"])
    return {
        "trials": len(outcomes),
        "findings": sum(bool(outcome["finding"]) for outcome in outcomes),
        "sent": {case: dict(sorted(counts.items())) for case, counts in sorted(table.items())},
    }


COLUMNS = {
    "SIGKILL": ("SIGKILL",), "SIGTERM": ("SIGTERM",), "SIGUSR1": ("SIGUSR1",),
    "SIGINT": ("SIGINT",), "SIGSTOP": ("SIGSTOP",),
    "calls fail": ("ENOSPC", "EIO", "EROFS", "EDQUOT"),
    "disk full": ("full disk",), "writers": ("2 writers", "8 writers"), "clock": ("clock",),
    "slide": ("changed", "vanished"),
}  # fmt: skip


def table(outcomes: list[dict[str, Any]]) -> str:
    """Return how often each command met what, as a table of Markdown."""
    rows = [["command", "trials", *COLUMNS, "CPU s", "findings"]]
    for case in [*DRAWN, "all"]:
        some = [outcome for outcome in outcomes if case in (outcome["case"], "all")]
        sent = counted(some)["sent"].values()
        numbers = [
            sum(n for counts in sent for name, n in counts.items() if name.startswith(starts))
            for starts in COLUMNS.values()
        ]
        found = sum(bool(outcome["finding"]) for outcome in some)
        cpu_s = round(sum(outcome["cpu_s"] for outcome in some))
        rows.append([case, *map(str, (len(some), *numbers, cpu_s, found))])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def go_on(options: argparse.Namespace, warm: Warm, folder: Path) -> list[dict[str, Any]]:
    """Do the trials that are left, and return all."""
    held = json.loads(options.report.read_text()) if options.report.exists() else {}
    if held and held["seed"] != options.seed:
        sys.exit(f"{options.report}: has seed {held['seed']}, not {options.seed}.")
    outcomes: list[dict[str, Any]] = held.get("outcomes", [])
    work, cases = folder / "work", dict[str, Case]()
    make_ground(warm, work)
    ground = Path(shutil.copytree(work, folder / "ground", symlinks=True))
    weathers = options.weather or list(WEATHERS)
    if "full disk" in weathers and not may_mount(folder / "mounted"):
        weathers.remove("full disk")
    end = time.monotonic() + 60 * options.minutes
    for number in range(len(outcomes), options.kills):
        if time.monotonic() > end:
            break
        rng = random.Random(f"{options.seed}/{number}")
        name, weather = draw(rng, options.case or list(DRAWN), weathers)
        if name not in cases:
            cases[name] = prepare(warm, ground, work, name)
        outcome = run_trial(warm, work, cases[name], weather, rng, number)
        outcomes.append(asdict(outcome))
        content = {"seed": options.seed, **counted(outcomes), "outcomes": outcomes}
        write_report(options.report, content)
        first = outcome.finding.partition("\n")[0]
        print(f"{number} {name}: {weather} {outcome.sent} {outcome.codes} {first}", flush=True)
    return outcomes


def main() -> None:
    """Do the trials, and say how many found something."""
    options = asked()
    if options.table:
        print(table(json.loads(options.table.read_text())["outcomes"]))
        return
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name).resolve()
        with warmed(folder) as warm:
            outcomes = go_on(options, warm, folder)
    found = sum(bool(outcome["finding"]) for outcome in outcomes)
    print(table(outcomes))
    print(f"{len(outcomes)} of {options.kills} trials, {found} with a finding")
    sys.stdout.flush()
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
