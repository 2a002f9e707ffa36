"""Run payloads on the scheduler of a file; print each event as a line of JSON."""

from __future__ import annotations

import contextlib
import json
import sys

from engine_works import Counting, explain

from cytofm_cli.work.batch import Note, Outcome, Progress, Task
from cytofm_cli.work.engine import run_on
from cytofm_cli.work.joining import join


def main(where: str, stall_s: str, *payloads: str) -> None:
    tasks = [Task(f"{n}{payload}", f"{n}", payload) for n, payload in enumerate(payloads)]
    events = run_on(
        lambda: join(where, workers=None, threads=None, warn=print),
        Counting(), tasks, workers=None, threads=None, stall_s=float(stall_s), explain=explain,
    )  # fmt: skip
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Outcome):
                error = event.error.message if event.error else None
                told = {"name": event.slide_id, "status": event.status, "error": error}
                print(json.dumps(told | event.facts))
            elif isinstance(event, Note):
                print(json.dumps({"note": event.text}))
            elif isinstance(event, Progress):
                print(json.dumps({"progress": [event.done, event.total]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
