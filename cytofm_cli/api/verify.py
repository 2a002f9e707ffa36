"""Stores → what is damaged in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import Paths, words_of
from cytofm_cli.api.inputs import find_stores, store_id, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.errors import StoreError
from cytofm_cli.work.batch import Reporter, Status, Task

_SHOWN: Final = 3


@dataclass(frozen=True)
class VerifyJob:
    """A store to read."""

    slide_id: str
    path: str


def verify(
    stores: Paths,
    *,
    shard: str | None = None,
    workers: int | None = None,
    timeout_s: float = 300.0,
    fork: bool = False,
    listen: Listen | None = None,
) -> Outcomes:
    """Read every chunk of every array of stores, and hold records against arrays.

    Args:
        stores: stores, or folders of stores: one or several.
        shard, workers, timeout_s, fork, listen: see `cytofm_cli.api.cohort.Manner`.

    Returns:
        One outcome a store: `done`, or `failed` with what is damaged. Its facts are the fields of
        `cytofm_cli.store.verify.Verified`: damage, notes, n_arrays, n_chunks, n_unchecked, n_bytes.

    Raises:
        InputError: no stores.
    """
    manner = Manner(
        only_reads=True,
        shard=shard,
        workers=workers,
        timeout_s=timeout_s,
        fork=fork,
        listen=listen,
    )
    paths = take_shard(all_paths := find_stores(words_of(stores)), shard, key=store_id)
    jobs = [VerifyJob(store_id(path), str(path)) for path in paths]
    n_workers, _ = manner.crew(len(jobs))
    return run_cohort("verify", jobs, verify_one, all_paths[0].parent, manner, workers=n_workers)


def verify_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Read one store.

    Raises:
        StoreError: it is damaged; its facts say all that is.
    """
    from cytofm_cli.store.verify import verify_store

    path = Path(task.path)
    verified = verify_store(path, report.progress)
    facts = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(verified).items()}
    for note in verified.notes:
        report.note(f"{path}: {note}")
    if not verified.damage:
        return "done", {"store": str(path), **facts}
    more = len(verified.damage) - _SHOWN
    told = "; ".join(verified.damage[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    error = StoreError(
        f"{path}: is damaged: {told}.",
        hint="copy it again from where it is whole, or make the steps named again (--overwrite).",
    )
    error.facts = {"store": str(path), **facts}
    raise error
