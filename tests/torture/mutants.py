"""Which commands read which files, and folders with mutants for one of them."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mutations
from mutation_ground import PRETRAIN


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
