"""Show a step over many slides: progress, one line a slide, the sum, the exit code."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cytofm_cli.api.cohort import Started
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.cli.options import SlideOptions
from cytofm_cli.cli.out import out
from cytofm_cli.cli.progress import Progress as Bar
from cytofm_cli.work.batch import Event, Note, Outcome, Progress
from cytofm_cli.work.scratch import temporary_in


class Sums(Protocol):
    """Says in a line what became of all slides; "" for nothing to say."""

    def __call__(self, outcomes: Outcomes, *, planned: bool) -> str:
        """Return the line."""
        ...


class Line(Protocol):
    """Says in a line what became of one slide; "" for nothing to say."""

    def __call__(self, outcome: Outcome, *, planned: bool) -> str:
        """Return the line, without the name of the slide."""
        ...


def show(
    command: str,
    run: SlideOptions,
    step: Callable[..., Outcomes],
    *,
    items: str = "slides",
    parts: str = "tiles",
    sums: Sums | None = None,
    line: Line | None = None,
) -> None:
    """Call a function of the API with the flags of a command, and show what it says.

    Args:
        command: as it is called in what is shown.
        run: the flags.
        step: takes the fields of `cytofm_cli.api.cohort.Manner` as keywords.
        items, parts: what it works on, and what they consist of, in the progress display.
        sums: what is said at the end; None: how many slides ended how, and what they hold.
        line: what is said of a slide that is done; None: what it holds.

    Raises:
        CytofmError: one slide failed of one (its own error), all failed (exit 3), some failed
            (exit 4), some are held by other processes (exit 75), or a signal came.
    """
    with temporary_in(run.scratch), contextlib.ExitStack() as stack:
        outcomes = step(**_flags(run), listen=_Screen(command, run, stack, items, parts, line))
    if not _is_told_by_its_error(outcomes):
        told = (sums or _sum_up)(outcomes, planned=run.dry_run)
        if told:
            out.note(f"{command}: {told}")
    outcomes.raise_failures()


def _flags(run: SlideOptions) -> dict[str, Any]:
    """Return the flags that say how slides are done; this process has no threads yet."""
    names = ("overwrite", "dry_run", "shard", "workers", "threads", "timeout_s", "fail_fast")
    more = [name for name in ("on", "gpus") if hasattr(run, name)]
    return {**{name: getattr(run, name) for name in (*names, *more)}, "fork": True}


class _Screen:
    """Shows the events of a step as they come."""

    def __init__(
        self,
        command: str,
        run: SlideOptions,
        stack: contextlib.ExitStack,
        items: str,
        parts: str,
        line: Line | None = None,
    ) -> None:
        self._command, self._run, self._stack = command, run, stack
        self._items, self._parts, self._line = items, parts, line or _line
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
            _report(event, self._run, self._said, self._line, alone=self._alone)

    def _begin(self, n_slides: int) -> None:
        self._stack.close()  # the bar before: slides that were held are looked at again
        if not n_slides:
            out.note(f"{self._command}: no {self._items} in this part")
        self._alone = n_slides == 1
        self._bar = self._stack.enter_context(
            out.progress_bar(self._command, n_slides, self._items, self._parts)
        )


class Counting:
    """Shows how far the slides of a step are; what they lack is told at the end, by its caller."""

    def __init__(self, label: str, stack: contextlib.ExitStack) -> None:
        self._label, self._stack = label, stack
        self._bar = Bar(label, 0)

    def __call__(self, event: Event | Started) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self._stack.close()
            bar = out.progress_bar(self._label, event.n_slides)
            self._bar = self._stack.enter_context(bar)
        elif isinstance(event, Outcome):
            self._bar.finish(event.slide_id)


def _report(
    outcome: Outcome, run: SlideOptions, said: set[str], line: Line, *, alone: bool
) -> None:
    record = {
        "slide_id": outcome.slide_id,
        "path": outcome.path,
        "status": "planned" if run.dry_run and outcome.status == "done" else outcome.status,
        "seconds": round(outcome.seconds, 3),
        **{k: value for k, value in outcome.facts.items() if k not in ("traceback", "files")},
    }
    if outcome.status == "held":
        out.detail(f"{outcome.slide_id}: another process is at it")
        return
    if outcome.error is not None:
        if not alone:  # the only slide's error is raised, and printed, at the end
            out.error(outcome.error, hint=outcome.error.hint not in said)
            said.add(outcome.error.hint or "")
        if out.verbose > 1 and "traceback" in outcome.facts:
            for row in str(outcome.facts["traceback"]).splitlines():
                out.note(row)
        record |= {"error": outcome.error.message, "hint": outcome.error.hint}
        if out.json:
            out.data("", record)
        return
    if outcome.status == "skipped":
        out.detail(f"{outcome.slide_id}: done before, skipped")
    elif not alone and (told := line(outcome, planned=run.dry_run)):
        out.note(f"{outcome.slide_id}: {told}")
    if "files" not in outcome.facts:
        out.data(str(outcome.facts.get("store", outcome.path)), record)
    for made in outcome.facts.get("files", ()):
        planned = run.dry_run and made["status"] == "written"
        out.data(made["file"], record | made | ({"status": "planned"} if planned else {}))


def _is_told_by_its_error(outcomes: Outcomes) -> bool:
    """Tell whether the error of the only slide, which is printed at the end, says it all."""
    return len(outcomes) == 1 and outcomes[0].status in ("failed", "refused")


def _line(outcome: Outcome, *, planned: bool) -> str:
    return _holdings([outcome])


def _sum_up(outcomes: Outcomes, *, planned: bool) -> str:
    """Say how many slides ended how, and what they hold."""
    counts: Counter[str] = Counter(outcome.status for outcome in outcomes)
    words = {
        "done": "planned" if planned else "done",
        "skipped": "skipped (done before)",
        "held": "held by other processes",
        "refused": "kept with other settings",
        "failed": "failed",
    }
    told = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
    return f"{', '.join(told)}{_sums(outcomes)}" if told else ""


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
    rows = f"rows of {facts[0].get('dim', '?')} numbers"
    what = "nuclei" if kind in ("nuclei", "classes") else rows
    return f"{sum(fact['n'] for fact in facts)} {what} in {facts[0]['step']}"
