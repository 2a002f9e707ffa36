"""Tiles and nuclei → an encoder, without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, plugin_settings, words_of
from cytofm_cli.api.inputs import find_stores_and_packs
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.views.config import ViewsConfig

if TYPE_CHECKING:
    from cytofm_cli.pretrain.run import PretrainReport


def pretrain_encoder(
    stores: Paths,
    out: PathLike,
    config: PretrainConfig | None = None,
    *,
    views: ViewsConfig | None = None,
    method_settings: Mapping[str, Any] | None = None,
    slides: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
    **settings: Any,
) -> PretrainReport:
    """Pretrain an encoder on tiles and nuclei, without labels; resumes by itself.

    Args:
        stores: stores, folders of stores, or packs: one or several.
        out: folder of the RUN.
        config: settings as a whole; instead, each may be given by its name (`method="dino"`).
        views: the views; None: those of method and encoder.
        method_settings: settings of the method, by name.
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: begin anew instead of resuming.
        note: told what the caller should know.
        progress: called with (updates done, of how many, loss).
        **settings: fields of `PretrainConfig`.

    Returns:
        `path` of the RUN, the file `encoder`, which `load_encoder` opens, and the `summary`.

    Raises:
        UsageError, InputError: impossible settings; unusable stores.
        ConfigMismatchError: `out` was begun with other settings.
    """
    from cytofm_cli.pretrain.run import pretrain

    config = config_of(PretrainConfig, config, settings, "pretrain_encoder")
    return pretrain(
        config,
        views_of(config.method, PretrainViews(), config.encoder) if views is None else views,
        find_stores_and_packs(words_of(stores)),
        Path(out),
        settings=plugin_settings(method_settings, "method_settings"),
        slides=path_of(slides),
        overwrite=overwrite,
        note=note,
        progress=progress,
    )
