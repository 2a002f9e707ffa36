"""Plug-ins by folder: one module in a plug-in package is one plug-in.

`names` lists the modules without importing them; `load` imports one and turns a missing
optional package into the command that installs it. Other distributions add plug-ins
through entry points in the group of the same name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from cytofm_cli.errors import CytofmError, MissingPackageError, UsageError


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What a plug-in module exports under the name `PLUGIN`.

    Attributes:
        make: the class or function that makes the thing.
        summary: one line for `cytofm doctor` and help.
        config: the plug-in's frozen configuration dataclass, if it has one.
        needs: importable package names that must be there.
        extra: the extra of cytofm that installs `needs`.
        version: goes up when equal settings give other results.
    """

    make: Any
    summary: str
    config: type | None = None
    needs: tuple[str, ...] = ()
    extra: str | None = None
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class Available:
    """A plug-in as listings show it.

    Attributes:
        name: how it is called.
        summary: one line; "" if it cannot even be imported.
        missing: what it needs and how to install that; "" if nothing.
        broken: why it cannot be imported; "" if it can.
    """

    name: str
    summary: str
    missing: str = ""
    broken: str = ""


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind.

    Args:
        kind: what a plug-in is called in messages, e.g. "detector".
        package: dotted name of the package whose modules are the plug-ins.
        group: entry-point group for plug-ins of other distributions.
        spoken: what users type for a module whose name is no good word or is one of Python's.
    """

    kind: str
    package: str
    group: str
    spoken: Mapping[str, str] = field(default_factory=dict)
    _added: dict[str, Plugin] = field(default_factory=dict, init=False, compare=False)

    def add(self, name: str, plugin: Plugin) -> None:
        """Make a plug-in known in this process, e.g. one that is defined in a notebook.

        It takes the place of one that was added under the same name; processes that are started
        later do not know it.

        Raises:
            UsageError: a plug-in of this name is installed.
        """
        key = self.key(name)
        if key not in self._added and key in self.names():
            raise UsageError(
                f"a {self.kind} called {name!r} is there already.", hint="choose another name"
            )
        self._added[key] = plugin

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted, without importing them."""
        try:
            spec = importlib.util.find_spec(self.package)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.submodule_search_locations is None:
            return sorted(self._added)
        own = {
            module.name
            for module in pkgutil.iter_modules(spec.submodule_search_locations)
            if not module.name.startswith("_")
        }
        return sorted(own | set(self._outside()) | set(self._added))

    def load(self, name: str) -> Plugin:
        """Import and return one plug-in.

        Raises:
            UsageError: no plug-in has this name.
            MissingPackageError: a package that it needs is not installed.
        """
        plugin = self.find(name)
        self._refuse_missing(name, plugin)
        return plugin

    def key(self, name: str) -> str:
        """Return the name of the module for what a user typed."""
        name = name.replace("-", "_")
        return {word: module for module, word in self.spoken.items()}.get(name, name)

    def find(self, name: str) -> Plugin:
        """Import and return one plug-in, also if the packages that it needs are not installed.

        Raises:
            UsageError: no plug-in has this name.
        """
        name = self.key(name)
        if name not in self.names():
            typed = [self.spoken.get(known, known) for known in self.names()]
            close = difflib.get_close_matches(name, typed, n=1)
            known = f"did you mean {close[0]}?" if close else f"known: {', '.join(typed)}"
            raise UsageError(f"no {self.kind} is called {name!r}.", hint=known)
        if name in self._added:
            return self._added[name]
        outside = self._outside()
        if name in outside:
            plugin = outside[name].load()
        else:
            module: ModuleType = importlib.import_module(f"{self.package}.{name}")
            plugin = module.PLUGIN
        if not isinstance(plugin, Plugin):
            raise UsageError(f"{self.kind} {name!r} exports no Plugin.")
        return plugin

    def available(self) -> list[Available]:
        """Describe every plug-in, also those that cannot be used here."""
        return [self._describe(self.spoken.get(name, name)) for name in self.names()]

    def _describe(self, name: str) -> Available:
        summary = ""
        try:
            plugin = self.find(name)
            summary = plugin.summary
            self._refuse_missing(name, plugin)
        except MissingPackageError as error:
            return Available(name=name, summary=summary, missing=error.one_line())
        except Exception as error:
            # A plug-in of another package may do anything when imported; the others are fine.
            text = error.one_line() if isinstance(error, CytofmError) else str(error)
            broken = f"{type(error).__name__}: {' '.join(text.split())}"
            return Available(name=name, summary=summary, broken=broken)
        return Available(name=name, summary=summary)

    def _refuse_missing(self, name: str, plugin: Plugin) -> None:
        missing = [need for need in plugin.needs if importlib.util.find_spec(need) is None]
        if missing:
            extra = f"'cytofm[{plugin.extra}]'" if plugin.extra else " ".join(missing)
            raise MissingPackageError(
                f"{self.kind} {name!r} needs {', '.join(missing)}.", hint=f"pip install {extra}"
            )

    def _outside(self) -> dict[str, Any]:
        return {entry.name: entry for entry in entry_points(group=self.group)}


readers = Registry("reader", "cytofm_cli.slides.readers", "cytofm.readers")
detectors = Registry(
    "detector", "cytofm_cli.nuclei.detectors", "cytofm.detectors", {"imported": "import"}
)
encoders = Registry("encoder", "cytofm_cli.encoders.models", "cytofm.encoders")
mil_methods = Registry("MIL method", "cytofm_cli.mil.methods", "cytofm.mil_methods")
pretrain_methods = Registry(
    "pretraining method", "cytofm_cli.pretrain.methods", "cytofm.pretrain_methods"
)
