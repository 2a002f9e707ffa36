"""Stores → files of other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cytofm_cli.api.given import PathLike, Paths, config_of, plugin_settings, words_of
from cytofm_cli.api.inputs import find_stores
from cytofm_cli.exporters.config import ExportConfig


def export(
    stores: Paths,
    out: PathLike,
    to: str | Sequence[str] | None = None,
    config: ExportConfig | None = None,
    *,
    exporter_settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> list[Path]:
    """Write bags as h5 or pt files, nuclei as GeoJSON or CSV; files that are up to date stay.

    Args:
        stores: stores, or folders of stores: one or several.
        out: folder for the files.
        to: kinds of files: h5, pt, geojson, csv, or a plug-in's; one or several; None: h5.
        config: settings as a whole; instead, each may be given by its name
            (`layout="clam"`, `unit="cell"`).
        exporter_settings: settings of the exporter itself, by name.
        overwrite: make finished files anew, also with other settings.
        **settings: fields of `ExportConfig`.

    Returns:
        The files, in the order of the stores.

    Raises:
        UsageError: no such kind of file, or a setting that has no effect on it.
        CytofmError: the first store that cannot be exported.
    """
    from cytofm_cli.exporters.plan import ExportPlan
    from cytofm_cli.exporters.product import make

    if to is not None:
        settings = {**settings, "to": tuple(words_of(to))}
    config = config_of(ExportConfig, config, settings, "export")
    plan = ExportPlan.of(config, plugin_settings(exporter_settings, "exporter_settings"))
    files: list[Path] = []
    for store in find_stores(words_of(stores)):
        for product in plan.products(store, Path(out)):
            make(product, Path(out), overwrite=overwrite)
            files += product.files
    return files
