"""Where a step is written until it is complete: claims, hidden folders, what kills left.

Hidden names hold the slide and the step; a long one ends in a hash instead, because a file
system takes 255 bytes and every name that is made from it must fit.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cytofm_cli.errors import CytofmError, InputError
from cytofm_cli.store import schema
from cytofm_cli.work.claim import SUFFIX_BYTES, ClaimHeldError, claim, host_tag
from cytofm_cli.work.files import output_errors, real_place

_NAME_MAX = 255
# What the steps and exports add to a slide's name: at most `.` … `_patches.h5.partial`.
_ADDED_BYTES = 24


def check_slide_id(stores: Path, slide_id: str) -> None:
    """Refuse a slide whose name cannot be part of the names of its files.

    Raises:
        InputError: it is too long for the file system, in bytes, is no UTF-8, or has a slash
            or a leading dot, which would hide its store.
    """
    hint = (
        "give the slide another slide_id in a --manifest (slide_id,path) or the table of --cells."
    )
    try:
        slide_id.encode()
    except UnicodeEncodeError:
        raise InputError(f"{slide_id!a}: a slide's name that is no UTF-8.", hint=hint) from None
    if "/" in slide_id or slide_id.startswith(".") or not slide_id:
        raise InputError(f"{slide_id!r} cannot name a slide: no / and no leading dot.", hint=hint)
    size, most = len(os.fsencode(slide_id)), _name_max(stores) - _ADDED_BYTES
    if size > most:
        raise InputError(
            f"{slide_id[:40]}…: a slide's name of {size} bytes; at most {most} fit here.",
            hint=hint.replace("another", "a shorter"),
        )


def hidden(folder: Path, name: str) -> Path:
    """Return `folder/.name`, with a hash for its end if claims on it would be too long."""
    most = _name_max(folder) - SUFFIX_BYTES
    raw = os.fsencode(f".{name}")
    if len(raw) > most:
        digest = hashlib.sha256(raw).hexdigest()[:16]
        kept = raw[: most - len(digest) - 1].decode("utf-8", "ignore")
        return folder / f"{kept}~{digest}"
    return folder / f".{name}"


def placed(path: Path) -> Path:
    """Return where a store lies: beside that, on the same disk, its steps are made.

    A store may be named by a link, which stays what it is; see `real_place`.
    """
    return real_place(path) if path.is_symlink() else path


def step_claim(path: Path, step: str) -> Path:
    """Return the claim under which a step of a store is made."""
    return _with_suffix(_base_of(placed(path), step), ".claim")


def commit_claim(path: Path) -> Path:
    """Return the claim under which the groups of a store change."""
    return _with_suffix(hidden(path.parent, f"{path.name}.commit"), ".claim")


def aside_of(path: Path, what: str = "replaced") -> Path:
    """Return where a store, or a step of it, goes while another takes its place."""
    return hidden(path.parent, f"{path.name}.{what}")


@contextlib.contextmanager
def claim_step(stores: Path, slide_id: str, step: str) -> Iterator[None]:
    """Hold the right to make one step of one slide; clean up what a killed process left.

    Raises:
        ClaimHeldError: another living process is at it.
        OutputError: the folder cannot be written.
    """
    base = _base(stores, slide_id, step)
    with output_errors(stores):
        stores.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with output_errors(stores):
            stack.enter_context(claim(_with_suffix(base, ".claim")))
            name = glob.escape(base.name)
            for left in base.parent.glob(f"{name}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            for aside in base.parent.glob(f"{name}.claim.*.stale"):
                aside.unlink(missing_ok=True)
            _restore(placed(stores / f"{slide_id}{schema.STORE_SUFFIX}"))
        yield


def was_killed(path: Path, step: str) -> bool:
    """Tell whether something is left of a process that was at a step of a store, or still is."""
    left = (_with_suffix(_base_of(path, step), ".claim"), commit_claim(path))
    return any(leftover.exists() for leftover in (*left, aside_of(path, "replaced-step")))


def tidy(stores: Path, slide_id: str, step: str) -> None:
    """Remove the claim of a process that was killed right after it finished a step."""
    if was_killed(placed(stores / f"{slide_id}{schema.STORE_SUFFIX}"), step):
        with contextlib.suppress(CytofmError), claim_step(stores, slide_id, step):
            pass


@contextlib.contextmanager
def staging(stores: Path, slide_id: str, step: str) -> Iterator[Path]:
    """Give a fresh hidden folder for a step; remove it unless it was committed."""
    folder = _with_suffix(_base(stores, slide_id, step), f".{host_tag()}-{os.getpid()}.partial")
    with output_errors(stores):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _base(stores: Path, slide_id: str, step: str) -> Path:
    return _base_of(placed(stores / f"{slide_id}{schema.STORE_SUFFIX}"), step)


def _base_of(path: Path, step: str) -> Path:
    name = path.name.removesuffix(schema.STORE_SUFFIX)
    return hidden(path.parent, f"{name}.{step.replace('/', '.')}")


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@functools.lru_cache(maxsize=64)  # asked slide by slide, of the same few folders
def _name_max(folder: Path) -> int:
    """Return how many bytes the name of a file may have in a folder that may not exist yet."""
    there = next(
        (place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/")
    )
    try:
        return os.pathconf(there, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return _NAME_MAX


def _restore(path: Path) -> None:
    """Put back a store that a killed `--overwrite` had moved aside; sweep what was replaced."""
    aside, steps, changing = aside_of(path), aside_of(path, "replaced-step"), commit_claim(path)
    if not (aside.exists() or steps.exists() or changing.exists()):
        return
    # A living process may be between its renames: then this is its own affair.
    with contextlib.suppress(ClaimHeldError), claim(changing):
        shutil.rmtree(steps, ignore_errors=True)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(path)
