"""Bags: the embeddings of one slide, from stores or from files of other MIL code.

Legend: N instances, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil.origin import UNKNOWN, Origin
from cytofm_cli.words import named
from cytofm_cli.work.unpickle import load_pickle

if TYPE_CHECKING:
    import h5py

FEATURE_KEYS = ("features", "feats")  # CLAM and TRIDENT; STAMP
# What a folder of the other tools holds: CLAM's two, then TRIDENT's `features_<encoder>`.
SUBFOLDERS = ("h5_files", "pt_files")
SUFFIXES = (".zarr", ".h5", ".pt")
# A head multiplies features, the gradient of a product of two grows with the third power, and
# Adam squares it: up to 1e6 the sixth power (1e36) stays below float32's 3.4e38. No encoder gives
# as much; damaged files do.
LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Bag:
    """The instances of one slide.

    Attributes:
        slide_id: name of the slide.
        features_ND: float16 or float32 (N, D), finite, N ≥ 1; may be mapped from a file.
        xy_px0: int32 (N, 2), level-0 pixels (x, y), or None where the file has none.
        origin: what made the features from what, as far as the file says.
    """

    slide_id: str
    features_ND: NDArray[np.float16] | NDArray[np.float32]
    xy_px0: NDArray[np.int32] | None = None
    origin: Origin = UNKNOWN

    @property
    def encoder(self) -> str:
        """Return what made the features; "" if nothing says."""
        return self.origin.encoder

    def __reduce__(self) -> tuple[object, ...]:
        """Send a mapped bag to a worker process as the place in its file."""
        features = self.features_ND
        if not isinstance(features, np.memmap):
            return Bag, (self.slide_id, features, self.xy_px0, self.origin)
        place = (features.filename, features.offset, features.shape, features.dtype.str)
        return _mapped_bag, (self.slide_id, place, self.xy_px0, self.origin)


def map_features(path: Path, start: int, shape: tuple[int, ...], dtype: str) -> Any:
    """Map features from a file; writing to the array changes memory, never the file."""
    return np.memmap(path, dtype=dtype, mode="c", offset=start, shape=shape)


def _mapped_bag(slide_id: str, place: tuple[Any, ...], xy_px0: Any, origin: Origin) -> Bag:
    return Bag(slide_id, map_features(*place), xy_px0, origin)


def load_bags(source: Path, encoder: str | None, unit: str, cache: Path | None = None) -> list[Bag]:
    """Load every bag of a folder, sorted by slide id.

    Args:
        source: folder of stores `<id>.zarr`; or of CLAM, TRIDENT or STAMP `.h5` files, or of
            `.pt` files that each hold one (N, D) tensor; or one such store or file.
        encoder: which embeddings of a store to take; None if it holds only one. For files that
            do not say whose features they hold, it says so.
        unit: "tile" or "cell"; it says so for files of other tools.
        cache: file to put the features into, see `cytofm_cli.mil.cache`; None: in memory.

    Raises:
        InputError: nothing there, a file that holds something else than `encoder` and `unit`, or
            what `check_bags` refuses.
    """
    paths = find_bags(source, encoder)
    read = (_read(path, encoder, unit) for path in paths)
    if cache is None:
        bags = list(read)
    else:
        from cytofm_cli.mil.cache import store_bags

        bags = store_bags(read, cache)
    check_bags(bags)
    return bags


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
        for suffix, found in there.items():
            if found:
                _refuse_others(folder, suffix, there)
                return sorted(found, key=lambda path: path.stem)
    raise InputError(
        f"{source}: holds no <slide>.zarr, .h5 or .pt.",
        hint="run `cytofm tile` and `cytofm embed` first",
    )


def check_bags(bags: Sequence[Bag]) -> None:
    """Refuse bags that cannot be trained on or scored.

    Raises:
        InputError: empty bag, features that are NaN, infinite or beyond `LARGEST`, mixed widths,
            doubled ids.
    """
    ids = [bag.slide_id for bag in bags]
    _refuse({i for i in ids if ids.count(i) > 1} if len(set(ids)) < len(ids) else (), "come twice")
    _refuse(
        [bag.slide_id for bag in bags if len(bag.features_ND) == 0],
        "have an empty bag (no instances)",
        "leave these slides out, or lower `--min-foreground` in `cytofm tile`",
    )
    _refuse(
        [bag.slide_id for bag in bags if not np.isfinite(bag.features_ND).all()],
        "have NaN or infinite features",
        "embed these slides again with `--overwrite`",
    )
    beyond = {bag.slide_id: size for bag in bags if (size := largest(bag)) > LARGEST}
    _refuse(
        beyond,
        f"have features beyond ±{LARGEST:g} (up to {max(beyond.values(), default=0):.3g}), which "
        "float32 cannot multiply",
        "a damaged file? Embed these slides again, or scale the features of all slides",
    )
    first: dict[int, str] = {}
    for bag in bags:
        first.setdefault(bag.features_ND.shape[1], bag.slide_id)
    if len(first) > 1:
        (a, slide_a), (b, slide_b) = list(first.items())[:2]
        raise InputError(
            f"bags do not fit together: {slide_a} is {a}, {slide_b} is {b} (features wide).",
            hint="choose one encoder with `--encoder`, or use separate folders",
        )


def largest(bag: Bag) -> float:
    """Return a bound on the magnitude of a bag's features: exact for float32."""
    x_ND = bag.features_ND
    if x_ND.dtype == np.float16:  # never beyond LARGEST, and NumPy is slow at them
        return float(np.finfo(np.float16).max)
    return max(float(x_ND.max()), -float(x_ND.min())) if x_ND.size else 0.0


def notes(bags: Iterable[Bag]) -> list[str]:
    """Say which bags cannot be told from failed embeddings."""
    alike = [bag.slide_id for bag in bags if _is_constant(bag.features_ND)]
    if not alike:
        return []
    return [f"{len(alike)} slide(s) hold one number everywhere, as failed ones do: {named(alike)}"]


def _is_constant(x_ND: NDArray[Any]) -> bool:
    first = x_ND[0, 0]
    return x_ND.size > 1 and bool((x_ND[0] == first).all()) and bool((x_ND == first).all())


def fingerprint(bags: Iterable[Bag]) -> str:
    """Return a hash of ids and features, to know whether a run saw the same input."""
    state = hashlib.sha256()
    for bag in bags:
        half = "float16\0" if bag.features_ND.dtype == np.float16 else ""
        state.update(f"{bag.slide_id}\0{bag.features_ND.shape}\0{half}".encode())
        state.update(np.ascontiguousarray(bag.features_ND).view(np.uint8).data)
    return state.hexdigest()[:16]


def _refuse(ids: Iterable[str], what: str, hint: str | None = None) -> None:
    ids = list(ids)
    if ids:
        raise InputError(f"{len(ids)} slide(s) {what}: {named(ids)}.", hint=hint)


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
    found = (*source.glob(pattern), *source.glob(f"*_overlap/{pattern}"))
    trident = sorted(path for path in found if path.is_dir())
    if len(trident) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in trident)
        raise InputError(
            f"{source}: features of several encoders or tile sizes: {names}.",
            hint="give one of these folders, or `--encoder`",
        )
    return inner + trident


def _read(path: Path, encoder: str | None, unit: str) -> Bag:
    if path.suffix == ".zarr":
        return _read_store(path, encoder, unit)
    bag = _read_h5(path) if path.suffix == ".h5" else _read_pt(path)
    origin = bag.origin
    if not origin.encoder and path.parent.name.startswith("features_"):  # TRIDENT's folders
        origin = replace(origin, encoder=path.parent.name.removeprefix("features_"))
    return replace(bag, origin=origins.with_stated(path, origin, encoder=encoder, unit=unit))


def _read_store(path: Path, encoder: str | None, unit: str) -> Bag:
    from cytofm_cli.store import io

    found = io.read_embeddings(path, encoder, unit)
    origin = origins.of_store(io.open_store(path).steps, found.encoder, unit)
    return _bag(path, found.values, found.xy_px0, origin)


def _read_h5(path: Path) -> Bag:
    import h5py

    from cytofm_cli.mil.foreign import h5_origin

    try:
        with h5py.File(path) as file:
            key = next((key for key in FEATURE_KEYS if key in file), None)
            if key is None:
                raise InputError(f"{path}: no dataset `features` (found: {', '.join(file)}).")
            features = _dataset(path, file, key)[()]
            # STAMP's coordinates are micrometres, not level-0 pixels: left out.
            in_um = str(file.attrs.get("unit", "")) == "um"
            xy = _dataset(path, file, "coords")[()] if "coords" in file and not in_um else None
            origin = h5_origin(file, key)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error}).") from error
    if xy is not None and np.ndim(xy) == 2:
        xy = xy[:, :2]  # some tools add the level or the size
    return _bag(path, features, xy, origin)


def _dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    import h5py

    found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{path}: `{key}` is a {type(found).__name__.lower()}, no dataset.")
    return found


def _read_pt(path: Path) -> Bag:
    import torch

    from cytofm_cli.mil.foreign import pt_origin

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
        xy_px0 = xy.astype(np.int32)
    return Bag(path.stem, features_ND, xy_px0, origin)
