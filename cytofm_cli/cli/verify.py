"""`cytofm verify`: whether stores are still what was written."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Annotated

import typer

from cytofm_cli.api.cohort import Started
from cytofm_cli.cli.options import OutputOptions, Sharded
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.progress import Progress as Bar
from cytofm_cli.config import option
from cytofm_cli.errors import SomeSlidesFailedError
from cytofm_cli.units import human_bytes
from cytofm_cli.work.batch import Event, Note, Outcome, Progress


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Sharded, OutputOptions):
    """Settings of a command that reads many stores and writes nothing."""

    workers: int | None = option(None, "Slides at a time [default: as fits].", low=1)
    timeout_s: float = option(
        300.0, "Give a slide up after so many seconds without progress.", low=1.0
    )


def verify(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    *,
    run: VerifyOptions,
) -> None:
    """Read every chunk of stores, and say which are damaged.

    Every checksum is checked, chunks of earlier versions without one are decoded, and what the
    records say is held against the arrays. Exit code 4 if a store is damaged.

    Examples:

      cytofm verify stores

      cytofm verify stores --json
    """
    from cytofm_cli.api.verify import verify as run_verify

    with contextlib.ExitStack() as stack:
        outcomes = run_verify(
            stores,
            shard=run.shard,
            workers=run.workers,
            timeout_s=run.timeout_s,
            fork=True,
            listen=_Screen(stack),
        )
    whole = [outcome.facts for outcome in outcomes if outcome.status == "done"]
    chunks, unchecked, size = (
        sum(facts[key] for facts in whole) for key in ("n_chunks", "n_unchecked", "n_bytes")
    )
    bare = f", {unchecked} of them of a version without checksums" if unchecked else ""
    out.note(
        f"verify: {len(whole)} of {len(outcomes)} stores are whole: "
        f"{chunks} chunks{bare}, {human_bytes(size)}"
    )
    if damaged := len(outcomes) - len(whole):
        raise SomeSlidesFailedError(f"{damaged} of {len(outcomes)} stores are damaged; see above.")


class _Screen:
    """Shows stores as they are read: a line for each that is damaged, a path for each other."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._bar = Bar("verify", 0)

    def __call__(self, event: Event | Started) -> None:
        """Show an event."""
        if isinstance(event, Started):
            bar = out.progress_bar("verify", event.n_slides, "stores", "arrays")
            self._bar = self._stack.enter_context(bar)
        elif isinstance(event, Progress):
            self._bar.part(event.slide_id, event.done, event.total)
        elif isinstance(event, Note):
            out.note(event.text)
        else:
            self._bar.finish(event.slide_id)
            self._tell(event)

    def _tell(self, outcome: Outcome) -> None:
        record = {"store": outcome.path, "whole": outcome.status == "done", **outcome.facts}
        if outcome.error is None:
            out.data(outcome.path, record)
            return
        out.error(outcome.error)
        if out.json:
            out.data("", record | {"error": outcome.error.message})


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "verify", verify)
