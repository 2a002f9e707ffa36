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
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import mutations
import warm
from mutation_ground import PRETRAIN, make_ground

MOST_BYTES: Final = 2 << 30
MOST_SECONDS: Final = 20.0
MORE_SECONDS: Final = 2.0  # for each file of a batch
MOST_FILE_BYTES: Final = 1 << 30
BLOWN_BYTES: Final = 3 << 29
LOOK_EVERY: Final = 20
CODES: Final = frozenset({0, 2, 3, 4, 75})
REPLACED: Final = (b"", b"\0" * 64, None)


@dataclass(frozen=True)
class Case:
    """A kind of file, and the command that reads it.

    Attributes:
        kind: as the report calls it.
        source: pattern of the files, or of folders in which one file is changed; under the ground.
        words: of the command; {in} is the mutated file or folder, {ground} what is whole.
        inside: pattern of the files of a folder that are changed.
        weight: how often it is drawn.
        batched: the command takes many, and each is met by itself.
    """

    kind: str
    source: str
    words: str
    inside: str = ""
    weight: int = 12
    batched: bool = False


_TILE = "--tile-px 200 --foreground none --slide-mpp 0.25 --workers 1 -o out"
_EMBED = "embed {in} --encoder handcrafted {again}"
_PROBE = "--encoder handcrafted --task abnormal --replicates 100 -o out"
CASES: Final = (
    Case("slide", "seeds/*", "info {in}", weight=14, batched=True),
    Case("slide", "seeds/*", f"tile {{in}} {_TILE}", weight=12, batched=True),
    Case("real slide", "real/*", "info {in}", weight=14, batched=True),
    Case("real slide", "real/*", f"tile {{in}} {_TILE}", weight=8, batched=True),
    Case("store", "stores/p1*", "info {in}", "**/*", 8, batched=True),
    Case("store", "stores/p1*", "verify {in}", "**/*", 8, batched=True),
    Case("store", "stores/p1*", "status {in}", "**/*", 4, batched=True),
    Case("store", "stores/p1*", "export {in} -o out --to h5,geojson", "**/*", 8, batched=True),
    Case("store", "stores/p1*", "detect {in} --overwrite --workers 1", "**/*", 4, batched=True),
    Case("store", "stores/p1*", _EMBED, "**/*", 4, batched=True),
    Case("store", "stores/p1*", "mil score {ground}/run {in} -o out.csv {no_maps}", "**/*", 18),
    Case("store", "stores/p1*", "views {in} -o out", "**/*", 6),
    Case("nuclei GeoJSON", "nuclei/*", "detect {store} --detector import --nuclei {in} {again}"),
    Case("regions", "regions/*", f"tile {{slide}} --regions {{in}} {_TILE}", weight=24),
    Case("table", "labels.csv", "mil train --bags {ground}/stores --labels {in} -o out --dry-run"),
    Case("table", "manifest.csv", f"tile --manifest {{in}} {_TILE} --dry-run"),
    Case("table", "crops.csv", "tile {ground}/crops --cells {in} -o out --workers 1"),
    Case("table", "points.csv", "evaluate probe {ground}/stores --points {in} " + _PROBE, weight=3),
    Case("table", "points.csv", "cells train {ground}/stores --labels {in} --encoder handcrafted"
         " --task abnormal --groups {ground}/labels.csv -o out", weight=3),
    Case("bag", "bags/*", "mil train --bags {in} --labels {ground}/labels.csv -o out --dry-run"
         " --allow-missing", weight=6),
    Case("bag", "bags/*", "mil score {ground}/run {in} -o out.csv {no_maps}", weight=24),
    Case("RUN", "run", "mil score {in} {ground}/stores -o out.csv {no_maps}", "**/*", 24),
    Case("RUN", "run", "report {in} {ground}/stores -o out.html", "**/*", 9),
    Case("RUN", "cells", "cells apply {in} {store}", "**/*", 18),
    Case("weights", "encoder.safetensors", "embed {store} --encoder {in}", weight=18),
    Case("weights", "weights/*", "embed {store} --encoder sr-vit-nano --weights {in}", weight=18),
    Case("checkpoint", "pretrained", "pretrain {ground}/stores -o {in} {pretrain}", "**/*", 6),
)  # fmt: skip


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


@dataclass(frozen=True)
class Mutant:
    """One mutated file, or a folder with one."""

    number: int
    name: str
    source: str
    mutation: str
    names: frozenset[str]


@dataclass(frozen=True)
class Prepared:
    """A folder with mutants, and the words of the command that reads them."""

    folder: Path
    words: list[str]
    mutants: tuple[Mutant, ...]


def prepare(case: Case, ground: Path, folder: Path, seed: int, first: int, batch: int) -> Prepared:
    """Copy what a case begins with, and change one file of each copy."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    (folder / "in").mkdir()
    numbers = range(first, first + (batch if case.batched else 1))
    mutants = tuple(_mutant(case, ground, folder / "in", seed, number) for number in numbers)
    store = folder / "whole" / "p2_s1.zarr"
    if "{store}" in case.words:
        shutil.copytree(next(ground.glob("stores/p2*")), store)
    known = {
        "in": " ".join(str(folder / "in" / mutant.name) for mutant in mutants),
        "ground": ground,
        "store": store,
        "slide": next((ground / "cohort" / "slides").glob("p2*")),
        "pretrain": PRETRAIN,
        "again": "--overwrite --workers 1",
        "no_maps": "--no-attention",
    }
    return Prepared(folder, [*case.words.format_map(known).split(), "-q"], mutants)


def _mutant(case: Case, ground: Path, folder: Path, seed: int, number: int) -> Mutant:
    """Make one; those of a batch have their number in their names."""
    rng = random.Random(f"{seed}:{number}:bytes")
    source = rng.choice(sorted(ground.glob(case.source)))
    name = f"m{number:06d}_{source.name}" if case.batched else source.name
    place = folder / name
    if source.is_dir():
        shutil.copytree(source, place, symlinks=True)
        mutation, inner = change_inside(place, case.inside, rng)
    else:
        data, mutation = mutations.mutate(source.name, source.read_bytes(), rng)
        place.write_bytes(data)
        inner = source.name
    # A slide or store is named as it stands in failures: by its id.
    names = {name, name.partition(".")[0]} | (set() if case.batched else {Path(inner).name})
    return Mutant(number, name, f"{source.name}:{inner}", mutation, frozenset(names))


def change_inside(place: Path, pattern: str, rng: random.Random) -> tuple[str, str]:
    """Change one file of a folder, more often one of its records; or remove or replace it."""
    files = sorted(path for path in place.glob(pattern) if path.is_file())
    records = [path for path in files if path.suffix in (".json", ".toml", ".csv", ".pt")]
    path = rng.choice(records if records and rng.random() < 0.6 else files)
    inner = path.relative_to(place).as_posix()
    what = rng.random()
    if what < 0.04:
        path.unlink()
        return "gone", inner
    if what < 0.06:
        path.unlink()
        path.mkdir()
        return "folder", inner
    if what < 0.08:
        path.unlink()
        path.symlink_to(rng.choice((path.name, "/etc/passwd", "/dev/zero", "..")))
        return "link", inner
    data, mutation = mutations.mutate(path.name, path.read_bytes(), rng)
    path.write_bytes(data)
    return mutation, inner


# The child.


def _limited(prepared: Prepared) -> None:
    """Run the command in this process, which is a child, and end it."""
    code = 1
    try:
        _confine(prepared.folder)
        from cytofm_cli.__main__ import main

        main(prepared.words)
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _confine(folder: Path) -> None:
    """Limit this process: its memory, its files, where it writes, and no network."""
    os.setsid()
    os.chdir(folder)
    for name in ("out", "err"):
        handle = os.open(f"said.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1 if name == "out" else 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    os.environ["CYTOFM_CACHE_DIR"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(MOST_SECONDS), int(MOST_SECONDS) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_no_network)


def _no_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(2, b"NETWORK\n")
        os._exit(99)


def run_limited(prepared: Prepared) -> tuple[int | None, float, int]:
    """Run a command in a limited child; return its exit code (None: it hung), seconds, peak."""
    start = time.monotonic()
    # Where others compute, a second of this machine is no second of its processor.
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    most = busy * (MOST_SECONDS + MORE_SECONDS * len(prepared.mutants))
    pid = os.fork()
    if pid == 0:
        _limited(prepared)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - start
        hung = not done and seconds > most
        if done or hung:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        if hung:
            _, _, usage = os.wait4(pid, 0)
            return None, seconds, usage.ru_maxrss * 1024
        if done:
            return os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024
        time.sleep(0.005)


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
    ran = [*prepared.folder.parent.rglob(mutations.CANARY)]
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
