"""What an export is asked for, checked before any store is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cytofm_cli.config import Layer, resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.registry import ExporterPlugin, exporters

if TYPE_CHECKING:
    from cytofm_cli.exporters.product import Product

_OF_ALL = ("to", "slides")  # settings that every exporter takes


@dataclass(frozen=True)
class ExportPlan:
    """Exporters and their settings.

    Attributes:
        config: settings of the export.
        chosen: the exporters, by name, in the order in which they are named.
        own: settings of those that have some of their own.
    """

    config: ExportConfig
    chosen: Mapping[str, ExporterPlugin]
    own: Mapping[str, Any]

    @classmethod
    def of(cls, config: ExportConfig, given: Layer | None = None) -> Self:
        """Check settings, and those that are `given` to an exporter itself.

        Raises:
            UsageError: no such exporter, or a setting that none of them looks at.
        """
        chosen = _chosen(config.to)
        _refuse_unused(config, chosen)
        return cls(config, chosen, _own_settings(chosen, given or Layer()))

    def products(
        self,
        path: Path,
        folder: Path,
        *,
        note: Callable[[str], None] = lambda _: None,
        report: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[Product]:
        """Return the files of a store, and how to make them.

        Args:
            path: the store.
            folder: of the export.
            note: told what the user should know.
            report: told (done, total) of what takes long.

        Raises:
            StoreError: it does not hold what is wanted.
        """
        from cytofm_cli.exporters.base import ExportRequest
        from cytofm_cli.store.io import open_store

        shared: dict[str, Any] = {}
        store = open_store(path)
        return [
            product
            for name, plugin in self.chosen.items()
            for product in plugin.make(
                ExportRequest(
                    store=store,
                    folder=folder,
                    config=self.config,
                    own=self.own.get(name),
                    note=note,
                    report=report,
                    shared=shared,
                )
            )
        ]


def _chosen(to: Sequence[str]) -> dict[str, ExporterPlugin]:
    """Return the exporters that are named, each once, in their order.

    Raises:
        UsageError: there is no such one.
    """
    known = exporters.names()
    for word in to:
        if exporters.key(word) not in known:
            raise UsageError(f"--to {word}: choose {', '.join(exporters.words())}.")
    if not to:
        raise UsageError("--to: nothing is named.", hint=f"choose {', '.join(exporters.words())}")
    return {name: exporters.load(name) for name in dict.fromkeys(map(exporters.key, to))}


def _refuse_unused(config: ExportConfig, chosen: Mapping[str, ExporterPlugin]) -> None:
    """Refuse a setting that no exporter of this call looks at."""
    every = exporters.usable()
    for name, value in vars(config).items():
        if name in _OF_ALL or value is None:
            continue
        takers = [kind for kind, plugin in every.items() if _takes(plugin, name, value)]
        if set(takers) & set(chosen):
            continue
        kinds = f"--to {' or '.join(takers)}"
        for what in dict.fromkeys(what for kind in takers for what in every[kind].what):
            if takers == [kind for kind, plugin in every.items() if what in plugin.what]:
                kinds = f"{what} ({kinds})"
        raise UsageError(
            f"{_typed(name, value)} is for {kinds}, not for --to {','.join(chosen)}.",
            hint="leave it away",
        )


def _takes(plugin: ExporterPlugin, name: str, value: Any) -> bool:
    """Tell whether an exporter looks at a setting; nuclei are cells, whatever the unit."""
    return name in plugin.options and ("bags" in plugin.what or (name, value) != ("unit", "tile"))


def _typed(name: str, value: Any) -> str:
    """Return a setting as it is typed, as far as it matters."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return "--unit tile" if (name, value) == ("unit", "tile") else f"--{name}"


def _own_settings(chosen: Mapping[str, ExporterPlugin], given: Layer) -> dict[str, Any]:
    """Return the exporters' own settings, by exporter.

    Raises:
        UsageError: a setting that none of them has, or that several could mean.
    """
    configs = {name: plugin.config for name, plugin in chosen.items() if plugin.config}
    if given and len(configs) != 1:
        raise UsageError(
            f"--set: {len(configs)} of --to {','.join(chosen)} have settings of their own.",
            hint="one at a time" if configs else "leave it away",
        )
    return {name: resolve(config, name, given) for name, config in configs.items()}
