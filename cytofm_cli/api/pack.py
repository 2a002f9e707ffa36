"""Stores → one file that pretraining reads on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import find_stores
from cytofm_cli.pretrain.config import PackConfig

if TYPE_CHECKING:
    from cytofm_cli.pretrain.packing import PackReport


def pack(
    stores: Paths,
    out: PathLike,
    config: PackConfig | None = None,
    *,
    slides: PathLike | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> PackReport:
    """Write the tiles or cells of stores, with their nuclei, into one file for `pretrain_encoder`.

    Args:
        stores: stores, or folders of stores: one or several.
        out: the file.
        config: settings as a whole; instead, each may be given by its name (`unit="cell"`).
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: replace a file that is there.
        progress: called with (images written, of how many).
        **settings: fields of `PackConfig`.

    Returns:
        `path`, `facts` of what it holds and `notes`.

    Raises:
        OutputError: `out` is there already.
        InputError, StoreError: unusable stores, a table of groups that does not fit.
    """
    from cytofm_cli.pretrain import packing

    return packing.pack(
        config_of(PackConfig, config, settings, "pack"),
        find_stores(words_of(stores)),
        Path(out),
        slides=path_of(slides),
        overwrite=overwrite,
        progress=progress,
    )
