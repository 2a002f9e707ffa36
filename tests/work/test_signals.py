"""The first signal is remembered, the second Ctrl-C quits, and the former handlers come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cytofm_cli.errors import InterruptedBySignalError, StoppedError, TerminatedError
from cytofm_cli.work.signals import StopFlag, catch_signals, stopping

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (signal.SIGINT, InterruptedBySignalError, 130),
        (signal.SIGTERM, TerminatedError, 143),
        (signal.SIGUSR1, StoppedError, 75),
        (signal.SIGUSR2, StoppedError, 75),
    ],
)
def test_catch_signals__tells_which_came(
    number: signal.Signals, kind: type[StoppedError], code: int
) -> None:
    with catch_signals() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
        error = stop.error()
    assert type(error) is kind
    assert error.exit_code == code
    assert number.name in error.message


def test_catch_signals__the_first_counts_and_a_second_ctrl_c_quits() -> None:
    with catch_signals() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal is signal.SIGUSR1
    with pytest.raises(KeyboardInterrupt), catch_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        signal.raise_signal(signal.SIGINT)


def test_catch_signals__former_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in CAUGHT]
    with pytest.raises(RuntimeError), catch_signals():
        assert [signal.getsignal(number) for number in CAUGHT] != before
        raise RuntimeError
    assert [signal.getsignal(number) for number in CAUGHT] == before


def test_catch_signals__in_another_thread_nothing_is_caught() -> None:
    flags: list[StopFlag] = []

    def work() -> None:
        with catch_signals() as stop:
            flags.append(stop)

    with catch_signals() as outer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert outer
    assert len(flags) == 1
    assert not flags[0]


def test_stopping__raises_before_the_next_part_and_passes_the_rest_on() -> None:
    stop, told = StopFlag(), []
    tell = stopping(lambda name, done: told.append((name, done)), stop)
    tell("a", done=1)
    stop.signal = signal.SIGTERM
    with pytest.raises(TerminatedError):
        tell("a", done=2)
    assert told == [("a", 1)]
