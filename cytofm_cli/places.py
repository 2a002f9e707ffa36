"""Where plug-ins lie: in cytofm's folders, in installed distributions, in folders on the path."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

NAMESPACE: Final = "cytofm_plugins"


@dataclass(frozen=True)
class Place:
    """Where a plug-in lies: a module of cytofm, an entry point, or a file."""

    where: str
    module: str = ""
    entry: EntryPoint | None = None
    folder: str = ""

    def plugin(self) -> Any:
        """Import it."""
        if self.entry is not None:
            return self.entry.load()
        module = sys.modules.get(self.module)
        if module is None or (self.folder and not _lies_in(module, self.folder)):
            module = _import_from(self.folder, self.module) if self.folder else None
        return (module or importlib.import_module(self.module)).PLUGIN


def find_places(package: str, own: Sequence[str], group: str) -> dict[str, list[Place]]:
    """Find all plug-ins of a kind by name, for each first the place that counts.

    Args:
        package: of cytofm's own ones.
        own: their names.
        group: of entry points; the folder on the path is called as it, without `cytofm.`
    """
    places = {name: [Place("cytofm", f"{package}.{name}")] for name in own}
    of_distributions = [
        (entry.name.replace("-", "_"), Place(_distribution(entry), entry=entry))
        for entry in _entry_points(group, tuple(sys.path))
    ]
    # By distribution: the order of the path differs between machines.
    for name, place in sorted(of_distributions, key=lambda pair: pair[1].where):
        places.setdefault(name, []).append(place)
    folder = group.rpartition(".")[2]
    for root in search_path():
        lies = os.path.join(root, NAMESPACE, folder)
        for name in sorted(modules_in([lies])):
            module = f"{NAMESPACE}.{folder}.{name}"
            place = Place(os.path.join(lies, name), module, folder=lies)
            places.setdefault(name, []).append(place)
    return places


def search_path() -> list[str]:
    """Return the folders of the path in which plug-ins are looked for, each once.

    The working directory is none of them where Python put it there by itself: as "" or, with
    `python -m`, as the first entry.
    """
    here = os.path.realpath(os.curdir)
    first = os.path.realpath(sys.path[0]) if sys.path else None
    entries = [entry for entry in sys.path[1 if first == here else 0 :] if entry]
    return list(dict.fromkeys(entries))


@functools.cache  # reading the records of all distributions takes milliseconds each time
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def modules_in(folders: Sequence[str]) -> set[str]:
    """Name the modules in folders that are no private ones."""
    return {name for folder in folders for name in _modules_of(str(folder), _changed(str(folder)))}


def _changed(folder: str) -> int | None:
    """Return when the names in a folder last changed, ns; None: there is none."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=256)  # steps ask slide by slide, and folders are slow over a network
def _modules_of(folder: str, changed: int | None) -> tuple[str, ...]:
    if changed is None:
        return ()
    found = pkgutil.iter_modules([folder])
    return tuple(module.name for module in found if not module.name.startswith("_"))


def _distribution(entry: EntryPoint) -> str:
    return f"distribution {entry.dist.name if entry.dist else '?'} ({entry.value})"


def _lies_in(module: Any, folder: str) -> bool:
    return str(getattr(module, "__file__", "")).startswith(os.path.join(folder, ""))


def _import_from(folder: str, name: str) -> Any:
    """Import a module from this folder, whatever else of its name lies on the path."""
    spec = importlib.machinery.PathFinder.find_spec(name, [folder])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder}: no module {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
