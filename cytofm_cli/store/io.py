"""Open, stage and commit stores: every step becomes visible in one atomic rename.

A step writes into a hidden staging folder beside the store, with its provenance record in
the attributes of the staged group, and is renamed into place when complete. The root then
gets a copy of the record; a process killed between the two leaves a step that is complete
and only missing from the root's list, which the next writer adds (`_roll_forward`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import differences
from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    DiskFullError,
    InputError,
    OutputError,
    StoreError,
)
from cytofm_cli.store import schema
from cytofm_cli.store.claim import claim
from cytofm_cli.store.zarr3 import write_group, write_json

COMMIT_WAIT_S = 60.0
_UNWRITABLE = frozenset(
    {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}
)


@dataclass(frozen=True)
class Store:
    """One slide's store, opened for reading.

    Attributes:
        path: the `.zarr` folder.
        slide: facts of the slide.
        steps: provenance record of each finished step, by name.
    """

    path: Path
    slide: dict[str, Any]
    steps: dict[str, dict[str, Any]]

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.path.name.removesuffix(schema.STORE_SUFFIX)

    def read(self, array: str) -> NDArray[Any]:
        """Read a whole array into memory.

        Raises:
            StoreError: it is not there or damaged.
        """
        import zarr

        try:
            return np.asarray(zarr.open_array(self.path / array, mode="r")[...])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise StoreError(
                f"{self.path}: {array} cannot be read ({type(error).__name__}: {error}).",
                hint="the store is damaged: make the step again with --overwrite.",
            ) from error

    def has(self, array: str) -> bool:
        """Tell whether the store holds an array."""
        return (self.path / array / "zarr.json").is_file()


@dataclass(frozen=True)
class Embeddings:
    """A bag as it lies in a store.

    Attributes:
        values: float (n, d), one row an instance.
        xy_px0: int32 (n, 2), corner of a tile or centre of a cell, level-0 pixels.
        encoder: key of the encoder in the store.
        provenance: record of the step that made it.
    """

    values: NDArray[np.floating[Any]]
    xy_px0: NDArray[np.int32]
    encoder: str
    provenance: dict[str, Any]


def store_path(stores: Path, slide_id: str) -> Path:
    """Return where the store of a slide lies."""
    return stores / f"{slide_id}{schema.STORE_SUFFIX}"


def list_stores(folder: Path) -> list[Path]:
    """Return the stores in a folder, sorted by name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    found = sorted(
        path
        for path in folder.glob(f"*{schema.STORE_SUFFIX}")
        if not path.name.startswith(".") and is_store(path)
    )
    if not found:
        raise InputError(f"{folder}: holds no stores.", hint="make some with `cytofm tile`.")
    return found


def is_store(path: Path) -> bool:
    """Tell whether a folder is one of our stores."""
    return schema.ATTRIBUTES_KEY in _attributes(path)


def open_store(path: Path) -> Store:
    """Open a finished store.

    Raises:
        StoreError: missing, no cytofm store, or of a newer schema.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such store.")
    content = _attributes(path).get(schema.ATTRIBUTES_KEY)
    if not isinstance(content, dict):
        raise StoreError(f"{path}: is no store of cytofm.", hint="make one with `cytofm tile`.")
    version = content.get("schema")
    if version != schema.SCHEMA_VERSION:
        raise StoreError(
            f"{path}: has store schema {version}, this cytofm reads {schema.SCHEMA_VERSION}.",
            hint="update cytofm, or tile the slide again.",
        )
    listed, slide = content.get("steps"), content.get("slide")
    if not isinstance(listed, dict) or not isinstance(slide, dict):
        raise StoreError(f"{path}: its root is damaged.", hint="`cytofm tile --overwrite` it.")
    steps = {**listed, **_orphans(path, listed)}
    there = {name: record for name, record in steps.items() if _has_group(path, name)}
    return Store(path=path, slide=slide, steps=there)


def read_embeddings(path: Path, encoder: str | None, unit: str) -> Embeddings:
    """Read a bag from a store.

    Args:
        path: the store.
        encoder: name of the encoder; None takes the only one there is.
        unit: "tile" or "cell".

    Raises:
        StoreError: no such embedding, or several and none named.
    """
    store = open_store(path)
    step = name_of_embeddings(store, encoder, unit)
    return Embeddings(
        values=store.read(f"{step}/values"),
        xy_px0=store.read(f"{step}/xy_px0"),
        encoder=step.split("/")[1],
        provenance=store.steps[step],
    )


def name_of_embeddings(store: Store, encoder: str | None, unit: str) -> str:
    """Return the embedding step that is meant; None means the only encoder there is.

    Raises:
        StoreError: no such embedding, or several and none named.
    """
    path = store.path
    there = sorted(
        name.split("/")[1]
        for name in store.steps
        if name.startswith("embeddings/") and name.endswith(f"/{unit}")
    )
    if encoder is None:
        if len(there) != 1:
            hint = f"--encoder {there[0]}" if there else "make some with `cytofm embed`."
            found = f"{len(there)} encoders ({', '.join(there)})" if there else "no embeddings"
            raise StoreError(f"{path}: holds {found} for unit {unit}.", hint=hint)
        encoder = there[0]
    step = schema.embedding_step(encoder, unit)
    if step not in store.steps:
        hint = f"it holds {', '.join(there)}." if there else "make them with `cytofm embed`."
        raise StoreError(f"{path}: no {unit} embeddings of encoder {encoder!r}.", hint=hint)
    return step


def is_finished(
    path: Path, step: str, *, config: Mapping[str, Any], input_fingerprint: str
) -> bool:
    """Tell whether a step is done with these settings on this input.

    Raises:
        ConfigMismatchError: it is done with other settings or on another input; names them.
    """
    if not path.exists():
        return False
    done = open_store(path).steps.get(step)
    if done is None:
        return False
    differing = differences(done["config"], config)
    if done["input_fingerprint"] != input_fingerprint:
        differing.append("the input itself has changed")
    if differing:
        raise ConfigMismatchError(
            f"{path}: {step} was made with other settings: {'; '.join(differing)}.",
            hint="--overwrite makes it anew, another -o keeps both.",
        )
    return True


@contextlib.contextmanager
def claim_step(stores: Path, slide_id: str, step: str) -> Iterator[None]:
    """Hold the right to make one step of one slide; clean up what a killed process left.

    Raises:
        ClaimHeldError: another living process is at it.
        OutputError: the folder cannot be written.
    """
    with output_errors(stores):
        stores.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with output_errors(stores):
            stack.enter_context(claim(stores / f"{_hidden(slide_id, step)}.claim"))
            for left in stores.glob(f"{_escape(_hidden(slide_id, step))}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            for aside in stores.glob(f"{_escape(_hidden(slide_id, step))}.claim.*.stale"):
                aside.unlink(missing_ok=True)
            _restore(stores, slide_id)
        yield


def tidy(stores: Path, slide_id: str, step: str) -> None:
    """Remove the claim of a process that was killed right after it finished a step."""
    if (stores / f"{_hidden(slide_id, step)}.claim").exists():
        with contextlib.suppress(CytofmError), claim_step(stores, slide_id, step):
            pass


@contextlib.contextmanager
def staging(stores: Path, slide_id: str, step: str) -> Iterator[Path]:
    """Give a fresh hidden folder for a step; remove it unless it was committed."""
    name = f"{_hidden(slide_id, step)}.{socket.gethostname()}-{os.getpid()}.partial"
    folder = stores / name
    with output_errors(stores):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def commit_store(
    staged: Path, path: Path, *, slide: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Make a new store visible; `staged` holds the nodes of the tile step.

    An older store of the slide is replaced whole: its later steps saw other tiles.
    """
    write_group(staged / "tiles", {schema.ATTRIBUTES_KEY: dict(record)})
    content = {
        "schema": schema.SCHEMA_VERSION,
        "slide": dict(slide),
        "steps": {schema.TILE_STEP: dict(record)},
    }
    write_group(staged, {schema.ATTRIBUTES_KEY: content})
    aside = path.with_name(f".{path.name}.replaced")
    if path.exists():
        path.rename(aside)
    staged.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def commit_group(staged: Path, path: Path, step: str, record: Mapping[str, Any]) -> None:
    """Make a step's group visible in an existing store, and list it in the root."""
    write_group(staged, {schema.ATTRIBUTES_KEY: dict(record)})
    target = path / step
    with claim(path.with_name(f".{path.name}.commit.claim"), wait_s=COMMIT_WAIT_S):
        for parent in reversed(target.relative_to(path).parents[:-1]):
            if not (path / parent / "zarr.json").exists():
                write_group(path / parent)
        if target.exists():
            aside = path.with_name(f".{path.name}.replaced-step")
            shutil.rmtree(aside, ignore_errors=True)
            # The root forgets the step first: a kill from here on leaves "not done", never
            # a record without data.
            _update_root(path, drop=step)
            target.rename(aside)
            staged.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            staged.rename(target)
        _update_root(path)


@contextlib.contextmanager
def output_errors(where: Path) -> Iterator[None]:
    """Turn failures to write into errors that say what and where."""
    try:
        yield
    except CytofmError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{where}: no space left on the disk.",
                hint="make room and run the same command again; finished slides are kept.",
            ) from error
        if error.errno in _UNWRITABLE:
            raise OutputError(
                f"{where}: cannot be written ({error.strerror}).", hint="choose another -o."
            ) from error
        raise


def _hidden(slide_id: str, step: str) -> str:
    return f".{slide_id}.{step.replace('/', '.')}"


def _escape(name: str) -> str:
    import glob

    return glob.escape(name)


def _attributes(path: Path) -> dict[str, Any]:
    try:
        node = json.loads((path / "zarr.json").read_text())
        attributes = node.get("attributes", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _groups(path: Path) -> Iterator[str]:
    for depth in ("nuclei/*", "embeddings/*/*", "attention/*/*"):
        for group in sorted(path.glob(depth)):
            yield group.relative_to(path).as_posix()


def _has_group(path: Path, step: str) -> bool:
    """Tell whether a step's arrays are there: a user may have removed them to save space."""
    group = "tiles" if step == schema.TILE_STEP else step
    return (path / group / "zarr.json").is_file()


def _orphans(path: Path, listed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find steps that are complete and not (or otherwise) listed in the root."""
    found = {}
    for step in _groups(path):
        record = _attributes(path / step).get(schema.ATTRIBUTES_KEY)
        if record is not None and listed.get(step) != record:
            found[step] = record
    return found


def _update_root(path: Path, drop: str | None = None) -> None:
    node = json.loads((path / "zarr.json").read_text())
    content = node["attributes"][schema.ATTRIBUTES_KEY]
    if drop is None:
        content["steps"] |= _orphans(path, content["steps"])
    else:
        content["steps"].pop(drop, None)
    write_json(path / "zarr.json", node)


def _restore(stores: Path, slide_id: str) -> None:
    """Put back a store that a killed `--overwrite` had moved aside and not yet replaced."""
    path = store_path(stores, slide_id)
    aside = path.with_name(f".{path.name}.replaced")
    if not aside.exists():
        return
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(path)
