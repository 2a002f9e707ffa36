"""Reading bags: from stores, or from files of other MIL code.

Legend: N instances, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cytofm_cli.errors import InputError
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil.bag import Bag, check_bags
from cytofm_cli.mil.bag_table import read_bag_table, table_bags
from cytofm_cli.mil.cache import store_bags
from cytofm_cli.mil.foreign import pt_origin
from cytofm_cli.mil.h5_bags import read_h5
from cytofm_cli.mil.origin import Origin
from cytofm_cli.store import schema
from cytofm_cli.words import named
from cytofm_cli.work.unpickle import load_pickle

if TYPE_CHECKING:
    from cytofm_cli.store.io import Store

# What a folder of the other tools holds: CLAM's two, then TRIDENT's `features_<encoder>`.
SUBFOLDERS = ("h5_files", "pt_files")
SUFFIXES = (".zarr", ".h5", ".pt")


def load_bags(
    source: Path,
    encoder: str | None,
    unit: str,
    cache: Path | None = None,
    *,
    table: Path | None = None,
) -> list[Bag]:
    """Load every bag of a folder, sorted by slide id.

    Args:
        source: folder of stores `<id>.zarr`; or of CLAM, TRIDENT or STAMP `.h5` files, or of
            `.pt` files that each hold one (N, D) tensor; or one such store or file.
        encoder: which embeddings of a store to take; None if it holds only one. For files that
            do not say whose features they hold, it says so.
        unit: "tile" or "cell"; it says so for files of other tools.
        cache: file to put the features into, see `cytofm_cli.mil.cache`; None: in memory.
        table: which cells of the stores each bag has; None: each store is a bag.

    Raises:
        InputError: nothing there, a file that holds something else than `encoder` and `unit`, or
            what `check_bags` refuses.
    """
    paths = find_bags(source, encoder)
    read: Iterator[Bag] = (read_bag(path, encoder, unit) for path in paths)
    if table is not None:
        read = table_bags(paths, table, lambda path: read_bag(path, encoder, unit))
    bags = list(read) if cache is None else store_bags(read, cache)
    check_bags(bags)
    return bags


def bag_names(source: Path, encoder: str | None, table: Path | None) -> list[str]:
    """List the bags of a folder or table, sorted, without reading features."""
    paths = find_bags(source, encoder)
    return [path.stem for path in paths] if table is None else list(read_bag_table(table))


def find_bags(source: Path, encoder: str | None = None) -> list[Path]:
    """List the stores or bag files of a folder, sorted by slide id."""
    if not source.exists():
        raise InputError(f"{source}: no such folder.", hint="give the folder that holds the stores")
    if source.suffix in SUFFIXES:
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: neither a store nor an .h5 or .pt file.")
    for folder in (source, *_inner_folders(source, encoder)):
        there = {
            suffix: [p for p in folder.glob(f"*{suffix}") if not p.name.startswith(".")]
            for suffix in SUFFIXES
        }
        for suffix, paths in there.items():
            if paths:
                _refuse_others(folder, suffix, there)
                return sorted(paths, key=lambda path: path.stem)
    raise InputError(
        f"{source}: holds no <slide>.zarr, .h5 or .pt.",
        hint="run `cytofm tile` and `cytofm embed` first",
    )


def _refuse_others(folder: Path, suffix: str, there: dict[str, list[Path]]) -> None:
    """Refuse a folder with slides that lie there in another format only: they would be left out."""
    taken = {path.stem for path in there[suffix]}
    for other, paths in there.items():
        if left := {path.stem for path in paths} - taken:
            raise InputError(
                f"{folder}: holds {len(taken)} slide(s) as {suffix}, and {len(left)} as {other} "
                f"only: {named(left)}.",
                hint="keep one kind of bags in a folder",
            )


def _inner_folders(source: Path, encoder: str | None) -> list[Path]:
    inner = [source / name for name in SUBFOLDERS if (source / name).is_dir()]
    pattern = f"features_{encoder}" if encoder else "features_*"
    # TRIDENT's job folder, and the folder of `<mag>x_<px>px_<overlap>px_overlap` jobs above it.
    folders = (*source.glob(pattern), *source.glob(f"*_overlap/{pattern}"))
    trident = sorted(path for path in folders if path.is_dir())
    if len(trident) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in trident)
        raise InputError(
            f"{source}: features of several encoders or tile sizes: {names}.",
            hint="give one of these folders, or `--encoder`",
        )
    return inner + trident


def read_bag(path: Path, encoder: str | None, unit: str) -> Bag:
    """Read one store or file; see `load_bags`."""
    if path.suffix == ".zarr":
        return _read_store(path, encoder, unit)
    bag = _read_h5(path) if path.suffix == ".h5" else _read_pt(path)
    origin = bag.origin
    if not origin.encoder and path.parent.name.startswith("features_"):  # TRIDENT's folders
        origin = replace(origin, encoder=path.parent.name.removeprefix("features_"))
    return replace(bag, origin=origins.with_stated(path, origin, encoder=encoder, unit=unit))


def _read_store(path: Path, encoder: str | None, unit: str) -> Bag:
    from cytofm_cli.store.io import open_store

    with open_store(path) as store:
        if origins.is_classes(encoder):
            return _read_classes(path, store, (encoder or "").partition(":")[2] or None, unit)
        bag = store.embeddings(encoder, unit)
        return _bag(path, bag.values, bag.xy_px0, origins.of_store(store, bag.encoder, unit))


def _read_classes(path: Path, store: Store, run: str | None, unit: str) -> Bag:
    """Read class probabilities; a nucleus of which nothing is said is a row of zeros.

    Of one-class the distance from normal cells is read instead, one column.
    """
    if unit != "cell":
        raise InputError(f"{path}: classes are those of cells, not of tiles.", hint="--unit cell")
    run = store.which_classes(run)
    step = schema.classes_step(run)
    store.require_fresh(step)
    record = store.classes_record(run)
    if store.has(f"{step}/score"):
        values_ND = store.read(f"{step}/score")[:, None]
    else:
        values_ND = store.read(f"{step}/probability")
        values_ND = values_ND * (store.read(f"{step}/abstained")[:, None] == 0)
    xy_px0 = np.round(store.nuclei_xy_px0(record.detector)).astype(np.int32)
    bag = _bag(path, values_ND, xy_px0, origins.of_classes(store, run))
    return replace(bag, basis=record.basis)


def _read_h5(path: Path) -> Bag:
    features, xy, origin = read_h5(path)
    return _bag(path, features, xy, origin)


def _read_pt(path: Path) -> Bag:
    import torch

    features = load_pickle(
        path,
        kind=InputError,
        hint="save the (N, D) tensor alone: torch.save(features, path)",
    )
    if not isinstance(features, torch.Tensor):
        raise InputError(f"{path}: holds a {type(features).__name__}, expected one tensor.")
    if features.layout != torch.strided or features.is_complex() or features.is_quantized:
        raise InputError(f"{path}: holds a tensor of {features.dtype}, expected dense numbers.")
    kept = features.dtype if features.dtype == torch.float16 else torch.float32
    return _bag(path, features.detach().to(kept).numpy(), None, pt_origin(path))


def _bag(path: Path, features: object, xy: object, origin: Origin) -> Bag:
    features_ND = np.asarray(features)
    if features_ND.ndim != 2 or not np.issubdtype(features_ND.dtype, np.number):
        raise InputError(
            f"{path}: features are {features_ND.dtype} of shape {features_ND.shape}, "
            "expected numbers (N, D)."
        )
    kept = np.float16 if features_ND.dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):  # `check_bags` refuses what is too large
        features_ND = np.ascontiguousarray(features_ND, dtype=kept)
    xy_px0 = None
    if xy is not None:
        xy = np.asarray(xy)
        if xy.shape != (len(features_ND), 2) or not np.issubdtype(xy.dtype, np.number):
            raise InputError(
                f"{path}: {len(features_ND)} features but coordinates are {xy.dtype} of shape "
                f"{xy.shape}."
            )
        if not (np.abs(xy) < 2**31).all():  # NaN neither
            raise InputError(f"{path}: coordinates are no places on a slide: {xy.min()} and so on.")
        xy_px0 = xy.astype(np.int32)
    return Bag(path.stem, features_ND, xy_px0, origin)
