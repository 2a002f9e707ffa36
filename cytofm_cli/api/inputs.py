"""From what the user typed to a sorted list of slides: paths, globs, folders, manifest, stdin."""

from __future__ import annotations

import difflib
import glob
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.registry import readers
from cytofm_cli.slides import folders, ngff
from cytofm_cli.slides.folders import slide_id_of
from cytofm_cli.store import schema
from cytofm_cli.store.io import is_store
from cytofm_cli.store.pack_file import is_pack
from cytofm_cli.tables import read_table
from cytofm_cli.units import is_plausible_mpp
from cytofm_cli.work.shard import parts, resolve_shard

_ID_NAMES = ("slide_id", "slide", "slide_name", "image_id")
_PATH_NAMES = ("path", "file", "filename", "file_name", "file_path", "slide_path")

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class SlideRef:
    """One slide to work on.

    Attributes:
        slide_id: name of its store; from the given path, not the resolved one, because
            workflow engines stage inputs as links.
        path: path or fsspec URL as given.
        mpp: µm/px stated by the manifest, None if not stated.
    """

    slide_id: str
    path: str
    mpp: float | None = None


def find_slides(
    inputs: Sequence[str],
    manifest: Path | None = None,
    *,
    warn: Callable[[str], None] = lambda _: None,
) -> list[SlideRef]:
    """List the slides named by paths, globs, folders, `-` (stdin) and a manifest, sorted by id.

    Args:
        inputs: the words.
        manifest: table of slides.
        warn: told what is odd about the manifest.

    Raises:
        InputError: nothing found, a duplicate slide id, or a manifest that cannot be used.
    """
    refs = list_slides(inputs)
    if manifest is not None:
        refs.extend(read_manifest(manifest, warn=warn))
    if not refs:
        where = ", ".join([*inputs, *([str(manifest)] if manifest else [])]) or "no input given"
        raise InputError(f"{where}: no slides found.", hint=_why_none(inputs))
    _refuse_duplicates(refs)
    return sorted(refs)


def _why_none(inputs: Sequence[str]) -> str:
    """Return the hint for inputs that hold no slide."""
    for word in inputs:
        folder = Path(word)
        inside = sorted(folder.glob("*.zarr")) if folder.is_dir() else []
        store = next((path for path in (folder, *inside) if is_store(path)), None)
        if store is not None:
            return f"{store} is a store that `cytofm tile` made: name the slide it was made of"
    return f"known suffixes: {' '.join(sorted(folders.readable_suffixes()))}"


def list_slides(inputs: Sequence[str]) -> list[SlideRef]:
    """List the slides named by paths, globs, folders and `-`; a path that is given twice once.

    Several may have one id.
    """
    paths = expand_paths(inputs, find_in_folder=lambda folder: folders.find_slides(str(folder)))
    once = {path if "://" in path else str(Path(path).absolute()): path for path in reversed(paths)}
    return [_ref(path) for path in folders.join_series([*reversed(once.values())])]


def check_reader(name: str) -> None:
    """Refuse, before any slide, a reader that is not known or not installed.

    Raises:
        UsageError: it is not.
    """
    if name != "auto":
        readers.load(name)


def find_stores(inputs: Sequence[str]) -> list[Path]:
    """List the stores named by paths, globs, folders of stores and `-`, sorted.

    A damaged one among others is listed: opening it says what is wrong, and the others are done.

    Raises:
        InputError: nothing found, a path that is not there, or no path that is a store.
    """
    paths = [Path(path) for path in expand_paths(inputs, find_in_folder=_stores_in_folder)]
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such store.")
    if paths and not any(is_store(path) for path in paths):
        path = paths[0]
        raise InputError(f"{path}: is no store of cytofm.", hint="make one with `cytofm tile`.")
    if not paths:
        raise InputError(f"{', '.join(inputs)}: no stores found.", hint="see `cytofm tile`.")
    return sorted(set(paths))


def find_stores_and_packs(inputs: Sequence[str]) -> list[Path]:
    """List stores as `find_stores` does, and packs, which are named by their files.

    Raises:
        InputError: nothing found, or a path that is neither.
    """
    packs = [Path(word) for word in inputs if word != "-" and is_pack(Path(word))]
    others = [word for word in inputs if word == "-" or Path(word) not in packs]
    return [*sorted(set(packs)), *(find_stores(others) if others or not packs else [])]


def are_stores(inputs: Sequence[str]) -> bool:
    """Tell whether the inputs name stores rather than slides.

    Raises:
        UsageError: some do and some do not.
        InputError: one is not there: it is neither, and a step must not be chosen by a typing slip.
    """
    for word in inputs:
        refuse_missing(word)
    kinds = {_names_stores(Path(word)) for word in inputs if word != "-"}
    if len(kinds) > 1:
        raise UsageError(
            "stores and slides in one command.", hint="run it once for each; both go to one -o."
        )
    return kinds == {True}


def refuse_missing(word: str) -> None:
    """Refuse a path that is not there, with the name that was probably meant.

    Raises:
        InputError: no such file or folder; URLs, globs and `-` are not looked at.
    """
    path = Path(word)
    if word == "-" or "://" in word or path.exists() or glob.has_magic(word):
        return
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else "check the path."
    raise InputError(f"{word}: no such file or folder.", hint=hint)


def _names_stores(path: Path) -> bool:
    if path.name.endswith(schema.STORE_SUFFIX):
        return not ngff.is_image(path)
    return path.is_dir() and any(is_store(child) for child in path.glob(f"*{schema.STORE_SUFFIX}"))


def expand_paths(
    inputs: Sequence[str], *, find_in_folder: Callable[[Path], list[str]]
) -> list[str]:
    """Expand `-`, globs and folders; keep other words as they are."""
    paths: list[str] = []
    for word in inputs:
        if word == "-":
            paths.extend(_from_stdin())
        elif "://" in word:
            paths.append(word)
        elif Path(word).is_dir():
            paths.extend(find_in_folder(Path(word)))
        elif not Path(word).exists() and glob.has_magic(word):
            paths.extend(sorted(glob.glob(word, recursive=True)))
        else:
            paths.append(word)
    return paths


def read_manifest(path: Path, *, warn: Callable[[str], None] = lambda _: None) -> list[SlideRef]:
    """Read `slide_id,path[,mpp]`; relative paths start at the manifest's folder.

    Raises:
        InputError: unreadable, a column missing, an empty field, an impossible mpp.
    """
    table = read_table(path, (*_ID_NAMES, *_PATH_NAMES, "mpp"))
    for note in table.notes:
        warn(note)
    hint = "first line: slide_id,path,mpp"
    ids, paths = (table.columns[table.need(*of, hint=hint)] for of in (_ID_NAMES, _PATH_NAMES))
    stated = table.find("mpp")
    mpps = table.numbers(stated[0], default=math.nan) if stated else [math.nan] * len(table)
    return [
        _manifest_ref(path.parent, table.place(row), *of)
        for row, of in enumerate(zip(ids, paths, mpps, strict=True))
    ]


def take_shard(items: Sequence[T], shard: str | None, *, key: Callable[[T], str]) -> list[T]:
    """Return the i-th of n parts, for `shard` = "i/n".

    By a hash of the slide's name, not by its place in the list: array tasks that look at a
    folder while others still write into it see different lists, and must agree all the same.

    Args:
        items: slides or stores.
        shard: "i/n", "slurm" in a task of a Slurm array, or None for everything.

    Raises:
        UsageError: see `cytofm_cli.work.shard.resolve_shard`.
        key: name of the slide of an item.
    """
    shard = resolve_shard(shard)
    if shard is None:
        return list(items)
    part, n_parts = parts(shard)
    return [
        item
        for item in items
        if zlib.crc32(key(item).encode("utf-8", "surrogateescape")) % n_parts == part
    ]


def store_id(path: Path) -> str:
    """Return the name of the slide of a store."""
    return path.name.removesuffix(schema.STORE_SUFFIX)


def _ref(path: str) -> SlideRef:
    return SlideRef(slide_id=slide_id_of(path), path=path)


def _manifest_ref(folder: Path, where: str, slide_id: str, path: str, mpp: float) -> SlideRef:
    if not slide_id or not path:
        raise InputError(f"{where}: slide_id and path must not be empty.")
    if "/" in slide_id or slide_id.startswith("."):
        raise InputError(
            f"{where}: {slide_id!r} cannot name a slide.", hint="no / and no leading dot."
        )
    if "://" not in path:
        path = str(folder / path)
    if math.isnan(mpp):
        return SlideRef(slide_id, path)
    if not is_plausible_mpp(mpp):
        raise InputError(f"{where}: mpp {mpp:g} is not between 0.05 and 5 µm/px.")
    return SlideRef(slide_id, path, mpp)


def _stores_in_folder(folder: Path) -> list[str]:
    if folder.name.endswith(schema.STORE_SUFFIX) or (folder / "zarr.json").exists():
        return [str(folder)]
    return [
        str(path)
        for path in sorted(folder.glob(f"*{schema.STORE_SUFFIX}"))
        if not path.name.startswith(".") and not ngff.is_image(path)
    ]


def _from_stdin() -> Iterable[str]:
    text = sys.stdin.read()
    separator = "\0" if "\0" in text else "\n"
    return [line.strip() for line in text.split(separator) if line.strip()]


def _refuse_duplicates(refs: Sequence[SlideRef]) -> None:
    seen: dict[str, str] = {}
    for ref in refs:
        if ref.slide_id in seen:
            raise InputError(
                f"two slides are called {ref.slide_id!r}: {seen[ref.slide_id]} and {ref.path}.",
                hint="give them different ids in a manifest (slide_id,path).",
            )
        seen[ref.slide_id] = ref.path


def refuse_namesakes(stores: Sequence[Path], *, hint: str) -> None:
    """Refuse stores of the same name from several folders: what is made of them has one place.

    Args:
        stores: paths.
        hint: what to do instead.

    Raises:
        UsageError: there are some.
    """
    seen: dict[str, Path] = {}
    for path in stores:
        other = seen.setdefault(store_id(path), path)
        if other != path:
            raise UsageError(
                f"{other} and {path} have the same name, and so have their files.", hint=hint
            )
