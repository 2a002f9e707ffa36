"""Every command killed before its K-th change of the file system, for every K; then it runs again.

    TMPDIR=/dev/shm python tests/torture/crashes.py --report FILE.json [--every N] [--minutes M]

For every K: a copy of the same folder, the command killed before its K-th change, `verify`, which
must find no damage, the command once more. What is there then is what an undisturbed command
leaves, byte for byte but for times, and nothing is left beside it. Goes on where FILE.json ends.
Exit code 1 if any K found something. `--table FILE.json` prints the table of docs/torture.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.torture.cases import AGAIN, CASES, words_of
from tests.torture.ground import Warm, check_stores, make_ground, put, snapshot, warmed
from tests.torture.kills import write_report
from tests.torture.warm import CRASHED

NAMES = [*CASES, *(f"again: {name}" for name in AGAIN)]


@dataclass(frozen=True)
class Undisturbed:
    """A command, what it begins with, what it leaves, and how many changes it makes."""

    words: tuple[object, ...]
    template: Path
    wanted: dict[str, bytes]
    n: int


def undisturbed(warm: Warm, ground: Path, work: Path, name: str) -> Undisturbed:
    """Run a command undisturbed; `ground`, with what comes before the command, is its template."""
    words, before = words_of(name)
    template = ground
    if before is not None:
        put(ground, work)
        warm.do(*before)
        template = work.with_name(f"begun, {name.replace(': ', ' ')}")  # each case its own
        shutil.copytree(work, template, symlinks=True)
    put(template, work)
    n = warm.do(*words)
    wanted = snapshot(work)
    left = [name for name in wanted if "/." in f"/{name}" and "/.cytofm/" not in f"/{name}"]
    assert left == []
    return Undisturbed(words, template, wanted, n)


def crash(warm: Warm, work: Path, case: Undisturbed, crash_at: int) -> str:
    """Crash a command before one of its changes, and run it again; return what is wrong."""
    put(case.template, work)
    code, changes = warm.run(*case.words, crash_at=crash_at)
    if code != CRASHED and changes > crash_at:
        return f"exit {code}, not killed: {warm.said.read_text()}"
    try:
        check_stores(warm, work)
    except AssertionError as error:
        return str(error)
    again, _ = warm.run(*case.words)
    held, wanted = snapshot(work), case.wanted
    differing = sorted(name for name in {*held, *wanted} if held.get(name) != wanted.get(name))
    if differing or again not in (0, 2):  # 2: all is there already, and is not written over
        return f"exit {again}, differing: {differing[:8]} {warm.said.read_text()[-2000:]}"
    return ""


def chosen(n: int, every: int) -> list[int]:
    """Return about every so many-th change, and the last one."""
    return sorted({*range(0, n, every), n - 1})


def _go_on(options: argparse.Namespace, warm: Warm, folder: Path) -> dict[str, Any]:
    report = json.loads(options.report.read_text()) if options.report.exists() else {}
    work = folder / "work"
    make_ground(warm, work)
    ground = Path(shutil.copytree(work, folder / "ground", symlinks=True))
    end = time.monotonic() + 60 * options.minutes
    for name in options.case or NAMES:
        if time.monotonic() > end:
            break
        told = report.setdefault(name, {"changes": 0, "cpu_s": 0.0, "crashes": 0, "findings": {}})
        begun = warm.cpu_s()
        case = undisturbed(warm, ground, work, name)
        todo = chosen(case.n, options.every)[told["crashes"] :]
        told["changes"] = case.n
        for crash_at in todo:
            if time.monotonic() > end:
                break
            if wrong := crash(warm, work, case, crash_at):
                told["findings"][str(crash_at)] = wrong
                print(f"{name}: {crash_at} of {case.n}: {wrong}", flush=True)
            told["crashes"] += 1
            told["cpu_s"] = round(told["cpu_s"] + warm.cpu_s() - begun, 2)
            begun = warm.cpu_s()
            write_report(options.report, report)
        print(f"{name}: {told['crashes']} of {case.n}, {told['cpu_s']} s", flush=True)
    return dict(report)


def table(report: dict[str, Any]) -> str:
    """Return how many K of each command were tried, as a table of Markdown."""
    lines = ["| command | changes | crashes | CPU s | findings |", "|---|---|---|---|---|"]
    total = [0, 0, 0.0, 0]
    for name, told in report.items():
        row = [told["changes"], told["crashes"], told["cpu_s"], len(told["findings"])]
        total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(f"| {name} | {row[0]} | {row[1]} | {row[2]:.0f} | {row[3]} |")
    return "\n".join([*lines, f"| all | {total[0]} | {total[1]} | {total[2]:.0f} | {total[3]} |"])


def main() -> None:
    """Crash what the command line asks for, and say how many K found something."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path, help="what was done, and goes on")
    parser.add_argument("--case", action="append", choices=NAMES, help="only these commands")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th K")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--table", type=Path, help="print the table of a report, do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name).resolve()
        with warmed(folder) as warm:
            report = _go_on(options, warm, folder)
    print(table(report))
    sys.stdout.flush()
    sys.exit(int(any(told["findings"] for told in report.values())))


if __name__ == "__main__":
    main()
