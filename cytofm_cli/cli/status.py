"""`cytofm status`: how far a cohort is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.api.status import Failure, Running, Status, StepStatus
from cytofm_cli.api.status import status as look
from cytofm_cli.cli.options import ConfigOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.progress import duration, timestamp

_SHOWN = 10  # reasons and running slides; -v shows all


def status(
    stores: Annotated[
        list[str], typer.Argument(help="Stores, folders of stores, or the -o of `run`.")
    ],
    slides: Annotated[
        list[str] | None,
        typer.Option(help="Slides that are to be done: path, folder or glob; repeat for more."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] of the slides to be done.")
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="Look again and again, until nothing is left."),
    ] = None,
    *,
    run: ConfigOptions,
) -> None:
    """Say how far a cohort is: done, running, failed and why, left, time to go.

    From the stores, claims and lists of failures alone: no slide is opened, nothing is written,
    and no scheduler is asked.

    Examples:

      cytofm status stores

      cytofm status out --slides slides/ --watch 30

      cytofm status stores --manifest slides.csv --json
    """
    while True:
        now = look(stores, slides, manifest=manifest)
        if watch is not None and not run.json:
            out.clear_screen()
            out.data(timestamp())
        out.data(list(_lines(now)), dataclasses.asdict(now))
        if watch is None or now.is_finished:
            return
        time.sleep(watch)


def _lines(now: Status) -> Iterator[str]:
    width = max([20, *(len(step.step) for step in now.steps)])
    slides = f"{now.n_slides} slides"
    yield f"{slides:<{width}}     done  running   failed     left   per hour  time to go"
    for step in now.steps:
        yield _step_line(step, width)
    yield from _failures(now.failures)
    yield from _running("running", now.running)
    yield from _running("gone, the next run takes over", now.stale)
    for path, why in now.damaged.items():
        yield f"damaged: {path}: {why.removeprefix(f'{path}: ')}"


def _step_line(step: StepStatus, width: int) -> str:
    counts = "".join(f"{n:>9}" for n in (step.done, step.running, step.failed, step.left))
    per_hour = step.slides_per_hour
    pace = "-" if per_hour is None else f"{per_hour:.0f}" if per_hour >= 100 else f"{per_hour:.3g}"
    to_go = "-" if step.left_s is None else duration(step.left_s)
    stale = f"  ({step.out_of_date} out of date)" if step.out_of_date else ""
    return f"{step.step:<{width}}{counts}{pace:>11}  {to_go}{stale}"


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    """Say each reason once, with the slides that it met."""
    by_reason: dict[str, list[str]] = {}
    for failure in failures:
        reason = f"{failure.command}: {_reason(failure)}"
        by_reason.setdefault(reason, []).append(failure.slide_id)
    most = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    for reason, names in most if out.verbose else most[:_SHOWN]:
        shown = names if out.verbose else names[:3]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        yield f"failed ({len(names)}) {reason} [{', '.join(shown)}{more}]"
    if len(most) > _SHOWN and not out.verbose:
        yield f"and {len(most) - _SHOWN} reasons more: -v"


def _reason(failure: Failure) -> str:
    """Return why, without the path of the slide, so that the same reason is the same text."""
    place, colon, why = failure.error.partition(": ")
    return why if colon and failure.slide_id in place else failure.error


def _running(what: str, processes: Sequence[Running]) -> Iterator[str]:
    for one in processes if out.verbose else processes[:_SHOWN]:
        silent = f"last sign of life {duration(one.silent_s)} ago"
        yield f"{what}: {one.slide_id} {one.step} on {one.host} (process {one.pid}), {silent}"
    if len(processes) > _SHOWN and not out.verbose:
        yield f"{what}: and {len(processes) - _SHOWN} more: -v"


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "status", status)
