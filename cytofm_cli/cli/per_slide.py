"""Show a step over many slides: progress, one line a slide, the sum, the exit code."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cytofm_cli.api.cohort import Started
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.out import out
from cytofm_cli.cli.progress import Progress as Bar
from cytofm_cli.work.batch import Event, Note, Outcome, Progress


def show(command: str, run: RunOptions, step: Callable[..., Outcomes]) -> None:
    """Call a function of the API with the flags of a command, and show what it says.

    Args:
        command: as it is called in what is shown.
        run: the flags.
        step: takes the fields of `cytofm_cli.api.cohort.Manner` as keywords.

    Raises:
        CytofmError: one slide failed of one (its own error), all failed (exit 3), some failed
            (exit 4), some are held by other processes (exit 75), or a signal came.
    """
    with _screen(command, run) as screen:
        outcomes = step(**_flags(run), listen=screen)
    _sum_up(command, outcomes, planned=run.dry_run)
    outcomes.raise_failures()


def _flags(run: RunOptions) -> dict[str, Any]:
    """Return the flags that say how slides are done; this process has no threads yet."""
    names = ("overwrite", "dry_run", "shard", "workers", "threads", "timeout_s", "fail_fast")
    return {**{name: getattr(run, name) for name in names}, "fork": True}


@contextlib.contextmanager
def _screen(command: str, run: RunOptions) -> Iterator[_Screen]:
    with contextlib.ExitStack() as stack:
        yield _Screen(command, run, stack)


class _Screen:
    """Shows the events of a step as they come."""

    def __init__(self, command: str, run: RunOptions, stack: contextlib.ExitStack) -> None:
        self._command, self._run, self._stack = command, run, stack
        self._bar: Bar = Bar(command, 0)
        self._alone = False
        self._said: set[str] = set()  # notes and hints: what is true of all slides, each would say

    def __call__(self, event: Event | Started) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self._begin(event.n_slides)
        elif isinstance(event, Progress):
            self._bar.part(event.slide_id, event.done, event.total)
        elif isinstance(event, Note):
            if event.text not in self._said:
                out.note(event.text)
            self._said.add(event.text)
        else:
            self._bar.finish(event.slide_id)
            _report(event, self._run, self._said, alone=self._alone)

    def _begin(self, n_slides: int) -> None:
        self._stack.close()  # the bar before: slides that were held are looked at again
        if not n_slides:
            out.note(f"{self._command}: no slides in this part")
        self._alone = n_slides == 1
        self._bar = self._stack.enter_context(out.progress_bar(self._command, n_slides))


def _report(outcome: Outcome, run: RunOptions, said: set[str], *, alone: bool) -> None:
    record = {
        "slide_id": outcome.slide_id,
        "path": outcome.path,
        "status": "planned" if run.dry_run and outcome.status == "done" else outcome.status,
        "seconds": round(outcome.seconds, 3),
        **{key: value for key, value in outcome.facts.items() if key != "traceback"},
    }
    if outcome.status == "held":
        out.detail(f"{outcome.slide_id}: another process is at it")
        return
    if outcome.error is not None:
        if not alone:  # the only slide's error is raised, and printed, at the end
            out.error(outcome.error, hint=outcome.error.hint not in said)
            said.add(outcome.error.hint or "")
        if out.verbose > 1 and "traceback" in outcome.facts:
            out.note(outcome.facts["traceback"])
        record |= {"error": outcome.error.message, "hint": outcome.error.hint}
        if out.json:
            out.data("", record)
        return
    if outcome.status == "skipped":
        out.detail(f"{outcome.slide_id}: done before, skipped")
    elif not alone and (told := _holdings([outcome])):
        out.note(f"{outcome.slide_id}: {told}")
    out.data(str(outcome.facts.get("store", outcome.path)), record)


def _sum_up(command: str, outcomes: Outcomes, *, planned: bool) -> None:
    """Say how many slides ended how; the only slide's error says it all."""
    if len(outcomes) == 1 and outcomes[0].status in ("failed", "refused") and outcomes[0].error:
        return
    counts: Counter[str] = Counter(outcome.status for outcome in outcomes)
    words = {
        "done": "planned" if planned else "done",
        "skipped": "skipped (done before)",
        "held": "held by other processes",
        "refused": "kept with other settings",
        "failed": "failed",
    }
    told = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
    if told:
        out.note(f"{command}: {', '.join(told)}{_sums(outcomes)}")


def _sums(outcomes: Sequence[Outcome]) -> str:
    """Add up what the slides hold: tiles, nuclei, rows of bags."""
    tiles = [outcome.facts["n_tiles"] for outcome in outcomes if "n_tiles" in outcome.facts]
    told = [f"{sum(tiles)} tiles"] if tiles else []
    if held := _holdings(outcomes):
        told.append(held)
    return f": {', '.join(told)}" if told else ""


def _holdings(outcomes: Sequence[Outcome]) -> str:
    """Say how many nuclei or rows a step has put where; "" if it made neither."""
    facts = [outcome.facts for outcome in outcomes if {"step", "n"} <= outcome.facts.keys()]
    if not facts:
        return ""
    kind = str(facts[0]["step"]).partition("/")[0]
    what = "nuclei" if kind == "nuclei" else f"rows of {facts[0].get('dim', '?')} numbers"
    return f"{sum(fact['n'] for fact in facts)} {what} in {facts[0]['step']}"
