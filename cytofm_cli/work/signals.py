"""Stop on request: the first signal is remembered, the second Ctrl-C quits at once.

SIGTERM (scancel, time limit), SIGUSR1 and SIGUSR2 (early warnings) and SIGINT set a flag that
long loops look at. What is finished stays; the exit code says what happened: 130 and 143 for
SIGINT and SIGTERM, 75 ("run me again") for the warnings.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import ParamSpec

from cytofm_cli.errors import InterruptedBySignalError, StoppedError, TerminatedError

P = ParamSpec("P")
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Remembers the first stop signal of a `with catch_signals()` block."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def error(self) -> StoppedError:
        """Return the error that ends the command, with the exit code of the signal."""
        message = f"stopped by {self.signal.name if self.signal else 'request'}"
        hint = "the same command goes on where this one stopped."
        kinds: dict[signal.Signals | None, type[StoppedError]] = {
            signal.SIGINT: InterruptedBySignalError,
            signal.SIGTERM: TerminatedError,
        }
        return kinds.get(self.signal, StoppedError)(
            f"{message}; what was finished is kept.", hint=hint
        )


def stopping(progress: Callable[P, None], stop: StopFlag) -> Callable[P, None]:
    """Return `progress` as a function that first raises, once a signal has asked to stop.

    Long loops call it between parts; see `StopFlag.error` for what is raised.
    """

    def tell(*args: P.args, **kwargs: P.kwargs) -> None:
        if stop:
            raise stop.error()
        progress(*args, **kwargs)

    return tell


@contextlib.contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Install the handlers; put the former ones back at the end.

    Only the main thread can have them: in others, as of a notebook, the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        if flag.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal = flag.signal or signal.Signals(number)

    former = {number: signal.signal(number, handler) for number in _HANDLED}
    try:
        yield flag
    finally:
        for number, old in former.items():
            signal.signal(number, old)
