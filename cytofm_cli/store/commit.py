"""Commit the steps of stores: each becomes visible in one atomic rename.

A step writes into a hidden staging folder beside the store, with its provenance record in
the attributes of the staged group, and is renamed into place when complete. The root then
gets a copy of the record; a process killed between the two leaves a step that is complete
and only missing from the root's list, which the next writer adds (`_update_root`). What was
made from a step goes before the step itself is replaced (`cytofm_cli.store.lineage`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cytofm_cli.config import differences
from cytofm_cli.errors import ConfigMismatchError, CytofmError, TryAgainError
from cytofm_cli.store import arrays, lineage, schema
from cytofm_cli.store.checksum import read_node, read_unchecked, write_node
from cytofm_cli.store.io import Store, open_store, orphans, told_by_groups
from cytofm_cli.store.records import SlideRecord, StepRecord, TileRecord
from cytofm_cli.store.staging import (
    aside_of,
    claim_step,
    commit_claim,
    placed,
    step_claim,
    was_killed,
)
from cytofm_cli.store.zarr3 import write_group
from cytofm_cli.work.claim import claim, refuse_lost
from cytofm_cli.work.files import flush_folder, put_in_place, remove_partials

COMMIT_WAIT_S: Final = 60.0


def is_finished(
    where: Path | Store, step: str, *, config: Mapping[str, Any], input_fingerprint: str
) -> bool:
    """Tell whether a step is done with these settings on this input.

    Args:
        where: the path of a store; or one that was opened just now.
        step: its name.
        config: the settings.
        input_fingerprint: what it reads.

    Raises:
        ConfigMismatchError: it is done with other settings or on another input; names them.
    """
    if isinstance(where, Path) and not where.exists():
        return False
    store = open_store(where) if isinstance(where, Path) else where
    done = store.steps.get(step)
    if done is None:
        return False
    differing = differences(done.config, config)
    if done.input_fingerprint != input_fingerprint or store.why_stale(step) is not None:
        differing.append("the input itself has changed")
    if differing:
        # Only the tile step chooses its folder; the others write into the store they read.
        keep = ", another -o keeps both" if step == schema.TILE_STEP else ""
        raise ConfigMismatchError(
            f"{store.path}: {step} was made with other settings: {'; '.join(differing)}.",
            hint=f"--overwrite makes it anew{keep}.",
        )
    return True


def commit_store(staged: Path, path: Path, *, slide: SlideRecord, record: TileRecord) -> None:
    """Make a new store visible; `staged` holds the nodes of the tile step.

    An older store of the slide is replaced whole: its later steps saw other tiles.

    Raises:
        ClaimHeldError: another process keeps changing the store, or has taken the step over.
        ValueError: an array that the layout does not have.
    """
    path = placed(path)
    arrays.check_staged(staged, schema.TILE_STEP)
    told = replace(record, id=lineage.content_id(staged / "tiles", record)).to_json()
    write_group(staged / "tiles", {schema.ATTRIBUTES_KEY: told})
    content = {
        "schema": schema.SCHEMA_VERSION,
        "slide": slide.to_json(),
        "steps": {schema.TILE_STEP: told},
    }
    write_group(staged, {schema.ATTRIBUTES_KEY: content})
    flush_folder(staged)
    aside = aside_of(path)
    with claim(commit_claim(path), wait_s=COMMIT_WAIT_S):
        refuse_lost(step_claim(path, schema.TILE_STEP))
        put_in_place(staged, path, aside)


def commit_group(staged: Path, path: Path, step: str, record: StepRecord) -> tuple[str, ...]:
    """Make a step's group visible in an existing store, and list it in the root.

    Args:
        staged: folder with the arrays of the step.
        path: the store.
        step: name of the step.
        record: its provenance; without `made_from`, what the store holds now is noted.

    Returns:
        The steps that were made from the former content, and are gone with it.

    Raises:
        TryAgainError: what the step was made from has been replaced meanwhile.
        ClaimHeldError: another process keeps changing the store, or has taken the step over.
        ValueError: an array that the layout does not have.
    """
    path = placed(path)
    arrays.check_staged(staged, step)
    flush_folder(staged)  # all but its record, before others have to wait
    with claim(commit_claim(path), wait_s=COMMIT_WAIT_S):
        refuse_lost(step_claim(path, step))
        store = open_store(path)
        if record.made_from is None:
            parents = lineage.parents_of(store.steps, step, record)
            record = replace(record, made_from=lineage.made_from(store.steps, *parents))
        record = replace(record, id=_id_for(store, step, staged, record))
        _refuse_late(store, step, record)
        write_group(staged, {schema.ATTRIBUTES_KEY: record.to_json()}, flush=True)
        former = store.steps.get(step)
        same = former is not None and former.identity == record.id
        gone = [] if same else lineage.descendants(store.steps, step)
        _replace(staged, path, step, gone)
    return tuple(sorted(gone))


def settle(path: Path, step: str) -> None:
    """Finish a commit that a kill or a full disk has ended, of a step that is there already.

    What it left goes, and the root lists the step. What cannot be written now is left as it is:
    readers find the step without the list.
    """
    path = placed(path)
    if was_killed(path, step) or not _is_listed(path, step):
        slide_id = path.name.removesuffix(schema.STORE_SUFFIX)
        with (
            contextlib.suppress(CytofmError),
            claim_step(path.parent, slide_id, step),
            claim(commit_claim(path)),
        ):
            _update_root(path, step)


def _is_listed(path: Path, step: str) -> bool:
    return step in read_unchecked(path)["attributes"][schema.ATTRIBUTES_KEY]["steps"]


def _id_for(store: Store, step: str, staged: Path, record: StepRecord) -> str:
    """Return the id of a new step: that of the former one if it holds the same."""
    new, former = lineage.content_id(staged, record), store.steps.get(step)
    if former is not None and former.id is None:
        # Of an earlier version: what was made from it knows it by its mark.
        try:
            if lineage.content_id(store.path / step, former) == new:
                return former.identity
        except (OSError, ValueError, KeyError, RuntimeError):
            pass  # damaged: so it is not the same
    return new


def _refuse_late(store: Store, step: str, record: StepRecord) -> None:
    changed = lineage.changed_parent(store.steps, step, record)
    missing = [name for name in record.made_from or () if name not in store.steps]
    if changed is not None or missing:
        raise TryAgainError(
            f"{store.path}: {changed or missing[0]} was replaced while {step} was made from it.",
            hint="run the same command again.",
        )


def _replace(staged: Path, path: Path, step: str, gone: Sequence[str]) -> None:
    """Put a group into place, after those that were made from the former one are gone.

    A kill at any moment leaves the former step, no step, or the new one, and never a step
    beside something else than it was made from.
    """
    target, aside = path / step, aside_of(path, "replaced-step")
    for parent in reversed(target.relative_to(path).parents[:-1]):
        if not (path / parent / "zarr.json").exists():
            write_group(path / parent)
    going = [name for name in (*gone, step) if (path / name).exists()]
    shutil.rmtree(aside, ignore_errors=True)
    if going:
        # The root forgets first: its list never holds a record without data.
        _update_root(path, step, drop=going)
        aside.mkdir()
        for number, name in enumerate(going):
            (path / name).rename(aside / str(number))
    staged.rename(target)
    _update_root(path, step)
    shutil.rmtree(aside, ignore_errors=True)


def _update_root(path: Path, step: str, drop: Sequence[str] = ()) -> None:
    """List the steps that are there, but for those that go; `step`: the one that changes."""
    node = read_node(path)
    content = node["attributes"][schema.ATTRIBUTES_KEY]
    if not drop:
        content["steps"] |= orphans(path, content["steps"], told_by_groups(path))
    for name in drop:
        content["steps"].pop(name, None)
    # Of a killed process, in the store and the groups that the step lies in, all of which this
    # one holds the claim of.
    for place in Path(step).parents:
        remove_partials(path / place)
    write_node(path, node, flush=True)
