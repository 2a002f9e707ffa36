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
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from cytofm_cli.errors import MissingPackageError, UsageError


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


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind.

    Args:
        kind: what a plug-in is called in messages, e.g. "detector".
        package: dotted name of the package whose modules are the plug-ins.
        group: entry-point group for plug-ins of other distributions.
    """

    kind: str
    package: str
    group: str

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted, without importing them."""
        try:
            spec = importlib.util.find_spec(self.package)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.submodule_search_locations is None:
            return []
        own = {
            module.name
            for module in pkgutil.iter_modules(spec.submodule_search_locations)
            if not module.name.startswith("_")
        }
        return sorted(own | set(self._outside()))

    def load(self, name: str) -> Plugin:
        """Import and return one plug-in.

        Raises:
            UsageError: no plug-in has this name.
            MissingPackageError: a package that it needs is not installed.
        """
        name = name.replace("-", "_")
        if name not in self.names():
            close = difflib.get_close_matches(name, self.names(), n=1)
            known = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.names())}"
            raise UsageError(f"no {self.kind} is called {name!r}.", hint=known)
        outside = self._outside()
        if name in outside:
            plugin = outside[name].load()
        else:
            module: ModuleType = importlib.import_module(f"{self.package}.{name}")
            plugin = module.PLUGIN
        if not isinstance(plugin, Plugin):
            raise UsageError(f"{self.kind} {name!r} exports no Plugin.")
        missing = [need for need in plugin.needs if importlib.util.find_spec(need) is None]
        if missing:
            extra = f"'cytofm[{plugin.extra}]'" if plugin.extra else " ".join(missing)
            raise MissingPackageError(
                f"{self.kind} {name!r} needs {', '.join(missing)}.", hint=f"pip install {extra}"
            )
        return plugin

    def _outside(self) -> dict[str, Any]:
        return {entry.name: entry for entry in entry_points(group=self.group)}


readers = Registry("reader", "cytofm_cli.slides.readers", "cytofm.readers")
detectors = Registry("detector", "cytofm_cli.nuclei.detectors", "cytofm.detectors")
encoders = Registry("encoder", "cytofm_cli.encoders.models", "cytofm.encoders")
mil_methods = Registry("MIL method", "cytofm_cli.mil.methods", "cytofm.mil_methods")
pretrain_methods = Registry(
    "pretraining method", "cytofm_cli.pretrain.methods", "cytofm.pretrain_methods"
)
