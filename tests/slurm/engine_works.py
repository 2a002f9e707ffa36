"""What workers of `test_engine` do: they import this file by its name."""

from __future__ import annotations

import faulthandler
import os
import time
from pathlib import Path
from typing import Any

from cytofm_cli.errors import SlideError
from cytofm_cli.work.batch import Loss, Reporter, Status, Task


class Counting:
    """Tells how many items it has done: it stays loaded, so it can."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Do what the payload says."""
        self.n += 1
        match task.payload:
            case "fail":
                raise SlideError(f"{task.path}: damaged.", hint="scan it again.")
            case "bug":
                return "done", {"n": 1 // 0}
            case "crash":
                faulthandler.disable()
                os.abort()
            case "hang":
                time.sleep(3600)
            case "note":
                report.note("look at this")
                report.progress(1, 2)
            case "once":  # its first worker dies with it, as when its node is lost
                mark = Path("tried")
                if not mark.exists():
                    mark.touch()
                    os._exit(1)
        return "done", {"pid": os.getpid(), "of_this_worker": self.n}


def explain(task: Task, loss: Loss) -> SlideError:
    """Say a loss."""
    return SlideError(f"{task.path}: {loss.why}")
