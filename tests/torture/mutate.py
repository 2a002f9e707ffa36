"""Run commands on mutated files, each in a limited child of one warm process, and judge them.

    TMPDIR=/dev/shm python tests/torture/mutate.py --count 10000 --seed 1 --report FILE.json

The same seed gives the same files. What is judged, and how, stands in `judge`. Goes on where
FILE.json ends. `--table FILE.json` prints the table of docs/torture.md.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import warm
from confined import run_limited
from mutants import CASES, Case, Mutant, Prepared, prepare
from mutation_ground import make_ground
from mutations import CANARY

BLOWN_BYTES: Final = 3 << 29
LOOK_EVERY: Final = 20
CODES: Final = frozenset({0, 2, 3, 4, 75})


@dataclass
class Finding:
    """What is wrong with how one mutated file was met."""

    kind: str
    mutants: list[str]
    words: str
    code: int
    wrong: list[str]
    said: str
    seconds: float


@dataclass
class Tally:
    """Counts of a kind of file."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    findings: int = 0
    mutations: dict[str, int] = field(default_factory=dict)


# The judgement.


def judge(prepared: Prepared, code: int | None, peak: int, outside: list[str]) -> list[str]:
    """Return what is wrong: nothing, of a file that was met well."""
    said = (prepared.folder / "said.err").read_text("utf-8", "replace")
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    strange = [line for line in lines if not line.startswith(_OURS)]
    wrong = []
    if code is None:
        wrong.append("hang")
    elif code < 0:
        wrong.append(f"killed by signal {-code}")
    elif code == 99:
        wrong.append("network")
    elif code not in CODES:
        wrong.append(f"exit {code}")
    if "Traceback" in said:
        wrong.append("traceback")
    if peak > BLOWN_BYTES:
        wrong.append("memory")
    if code in (2, 3, 4, 75):
        if len(errors) != 1 and code in (2, 75):
            wrong.append(f"{len(errors)} error lines")
        about_content = not _TABLES.isdisjoint(prepared.words)  # says which slide, or class
        if not about_content and not any(_is_named(m, lines) for m in prepared.mutants):
            wrong.append("file not named")
    if code == 3 and len(prepared.mutants) > 1:  # all of them
        wrong += [f"{m.name} not named" for m in prepared.mutants if not _is_named(m, lines)]
    if any(len(line) > 2000 for line in lines):
        wrong.append("long line")
    if strange:
        wrong.append("strange line")
    if any(ord(letter) < 32 for line in said.split("\n") for letter in line):
        wrong.append("control characters")
    ran = [*prepared.folder.parent.rglob(CANARY)]
    if ran:
        wrong.append("code was run")
    left = [path.name for path in (prepared.folder / "tmp").iterdir()]
    if left:
        wrong.append(f"left {left[0]} in TMPDIR")
    partial = [path.name for path in prepared.folder.rglob("*.partial*")]
    if partial and code is not None:
        wrong.append(f"left {partial[0]}")
    return wrong + [f"wrote {name}" for name in outside]


def _is_named(mutant: Mutant, lines: list[str]) -> bool:
    return any(name in line for line in lines for name in mutant.names)


_TABLES: Final = frozenset({"--labels", "--points", "--cells", "--manifest"})
_OURS: Final = ("error:", "warning:")


def stamp(folder: Path) -> dict[str, tuple[int, int]]:
    """Return sizes and times of the files under a folder."""
    held = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            held[str(path)] = (facts.st_size, facts.st_mtime_ns)
    return held


# The run.


def _can(case: Case, ground: Path) -> bool:
    needed = re.findall(r"\{ground\}/(\S+)", case.words)
    return any(ground.glob(case.source)) and all((ground / name).exists() for name in needed)


def run(
    ground: Path, scratch: Path, asked: argparse.Namespace, number: int, until: float
) -> Iterator[tuple[Case, Prepared, int | None, float, list[str]]]:
    """Prepare, run and judge mutants by number; yield what became of each batch."""
    cases = tuple(case for case in CASES if _can(case, ground))
    cases = tuple(case for case in cases if asked.kind is None or case.kind in asked.kind)
    whole = stamp(ground)
    n = 0
    while number < asked.count and time.time() < until:
        drawn = random.Random(f"{asked.seed}:{number}")
        case = drawn.choices(cases, [case.weight for case in cases])[0]
        folder = scratch / str(number)
        prepared = prepare(case, ground, folder, asked.seed, number, asked.batch)
        code, seconds, peak = run_limited(prepared)
        outside = [path.name for path in scratch.iterdir() if path != folder]
        if n % LOOK_EVERY == 0:  # a look costs as much as a command
            now = stamp(ground)
            outside += [name for name in {*whole, *now} if whole.get(name) != now.get(name)][:8]
            whole = now
        yield case, prepared, code, seconds, judge(prepared, code, peak, outside)
        shutil.rmtree(folder, ignore_errors=True)
        number += len(prepared.mutants)
        n += 1


def main() -> int:
    """Run the mutations that the command line asks for; return 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--kind", action="append", help="only these kinds of files")
    parser.add_argument(
        "--batch", type=int, default=16, help="files a command, where it takes many"
    )
    parser.add_argument("--short", action="store_true", help="slides, stores and tables alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="what was done, and goes on")
    parser.add_argument("--table", type=Path, help="print the table of a report, do nothing else")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument(
        "--ground", type=Path, help="folder of whole files, made if it is not there"
    )
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads(asked.table.read_text())))
        return 0
    until = time.time() + 60 * asked.minutes
    held = Held.read(asked)
    os.environ.update(NO_COLOR="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    warm.load()
    with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
        os.environ.update(HOME=scratch, MPLCONFIGDIR=scratch)
        ground = asked.ground or Path(scratch) / "ground"
        if not ground.exists():
            shared = asked.shared if asked.shared.is_dir() and not asked.short else None
            make_ground(ground, shared, short=asked.short)
        place = Path(scratch) / "work"
        place.mkdir()
        report(asked, run(ground, place, asked, held.next, until), ground, held)
    return int(len(held.findings) > 0)


@dataclass
class Held:
    """What a report holds: counts by kind of file, findings, the number of the next mutation."""

    tallies: dict[str, Tally]
    findings: list[Finding]
    next: int

    @classmethod
    def read(cls, asked: argparse.Namespace) -> Held:
        """Return what was done already."""
        tallies: dict[str, Tally] = collections.defaultdict(Tally)
        if not asked.report.exists():
            return cls(tallies, [], 0)
        told = json.loads(asked.report.read_text())
        if told["seed"] != asked.seed:
            sys.exit(f"{asked.report}: has seed {told['seed']}, not {asked.seed}.")
        tallies.update({kind: Tally(**of) for kind, of in told["by_kind"].items()})
        return cls(tallies, [Finding(**of) for of in told["findings"]], told["next"])


def report(asked: argparse.Namespace, results: Iterator[Any], ground: Path, held: Held) -> None:
    """Count results by kind of file, write the report as it grows."""
    tallies, findings = held.tallies, held.findings
    for n, (case, prepared, code, seconds, wrong) in enumerate(results, 1):
        said = (prepared.folder / "said.err").read_text("utf-8", "replace")
        _count(tallies[case.kind], prepared, code, said)
        tallies[case.kind].findings += bool(wrong)
        if wrong:
            words = " ".join(prepared.words).replace(str(ground), "GROUND")
            met = [f"{m.number} {m.source} {m.mutation}" for m in prepared.mutants]
            findings.append(
                Finding(
                    case.kind, met, words.replace(str(prepared.folder), "HERE"),
                    -99 if code is None else code, wrong, said[-3000:], seconds,
                )
            )  # fmt: skip
        held.next = prepared.mutants[-1].number + 1
        if n % 5 == 0 or wrong:
            _write(asked, held)
    _write(asked, held)


def _count(tally: Tally, prepared: Prepared, code: int | None, said: str) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    for mutant in prepared.mutants:
        named = _is_named(mutant, errors)
        refused = named if len(prepared.mutants) > 1 else code in (2, 3, 4, 75)
        tally.tried += 1
        tally.refused += refused
        tally.accepted += not refused and code in (0, 4)
        for mutation in mutant.mutation.split("+"):
            tally.mutations[mutation] = tally.mutations.get(mutation, 0) + 1


def _write(asked: argparse.Namespace, held: Held) -> None:
    total = {name: sum(getattr(t, name) for t in held.tallies.values()) for name in _COUNTS}
    document = {
        "seed": asked.seed,
        "next": held.next,
        "total": total,
        "by_kind": {kind: asdict(tally) for kind, tally in sorted(held.tallies.items())},
        "findings": [asdict(each) for each in held.findings],
    }
    partial = asked.report.with_name(f".{asked.report.name}.partial")
    partial.write_text(json.dumps(document, indent=1))
    partial.replace(asked.report)


def table(told: dict[str, Any]) -> str:
    """Return the counts of a report as a table of Markdown."""
    lines = ["| File | Tried | Refused | Accepted | Neither | Findings |", "|---" * 6 + "|"]
    for kind, of in (*told["by_kind"].items(), ("all", told["total"])):
        tried, refused, accepted, findings = (of[name] for name in _COUNTS)
        neither = tried - refused - accepted
        lines.append(f"| {kind} | {tried} | {refused} | {accepted} | {neither} | {findings} |")
    return "\n".join(lines)


_COUNTS: Final = ("tried", "refused", "accepted", "findings")

if __name__ == "__main__":
    sys.exit(main())
