"""What every exporter is asked for, and what it gives.

An exporter is a module in `cytofm_cli/exporters/formats/` that exports `PLUGIN`; `PLUGIN.make` is
called with an `ExportRequest` for each store and returns `Product`s: which files it would write,
and how. `product.make` writes those that are not there or are out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.store.io import Store

Report = Callable[[int, int], None]
Note = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is wanted of one store.

    Attributes:
        store: to export.
        folder: of the export; all files lie below it.
        config: the settings of the command.
        own: the exporter's own settings, where its plug-in has a `config`.
        note: told what the user should know.
        report: told (done, total) of what takes long.
        shared: what `once` keeps: one dict for all exporters of a store.
    """

    store: Store
    folder: Path
    config: ExportConfig
    own: Any = None
    note: Note = lambda _: None
    report: Report = lambda _done, _total: None
    shared: dict[str, Any] = field(default_factory=dict)

    def once(self, what: str, make: Callable[[], T]) -> T:
        """Return what `make` gives; exporters of one store that ask for the same share it."""
        if what not in self.shared:
            self.shared[what] = make()
        shared: T = self.shared[what]
        return shared
