"""Every error that a user can meet, with its exit code and a hint.

Raise near the cause: `message` says what and where, `hint` says what to type. Only
`cytofm_cli.__main__` turns an error into a line on stderr and an exit code.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import ClassVar, Final

# What lets in: name and password before the host, and the query, where signed URLs have tokens.
_URL: Final = re.compile(
    r"(\b[A-Za-z][A-Za-z0-9+.\-]*://)(?:[^\s/?#\"']*@)?([^\s?#\"']*)(\?[^\s\"']*)?"
)
# Escape sequences move the cursor and name windows; others turn the order of letters around.
_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MOST_LETTERS: Final = 1_500


def without_secrets(text: str) -> str:
    """Return a text whose URLs have neither name and password nor a query."""
    return _URL.sub(r"\1\2", text) if "://" in text else text


def visible(text: str) -> str:
    r"""Return a line in which what a terminal would obey is spelt out: `\x1b`, `\n`, `\u202e`."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def shortened(text: str) -> str:
    """Return a line, made visible, of at most 1 500 letters: a cell of a table may hold millions.

    Its beginning says where, and its end what.
    """
    text = visible(text)
    return text if len(text) <= _MOST_LETTERS else f"{text[:1_000]} … {text[-400:]}"


class CytofmError(Exception):
    """Base of all errors that are not our bugs.

    Args:
        message: one line: what is wrong, and where.
        hint: one line: what the user can do about it.

    Attributes:
        of_all_slides: it would meet every slide of a run, which therefore ends at once.
        facts: what a list of failures says beside it, as JSON values.
    """

    exit_code: ClassVar[int] = 1
    of_all_slides: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = without_secrets(message)
        super().__init__(message)
        self.message = message
        self.hint = hint and without_secrets(hint)
        self.facts: dict[str, object] = {}

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from worker processes to the supervisor by pickle.
        return _rebuild, (type(self), self.message, self.hint, self.of_all_slides)

    def one_line(self) -> str:
        """Return message and hint as the single line that a user reads."""
        text = shortened(" ".join(self.message.split()))
        return f"{text} Hint: {shortened(' '.join(self.hint.split()))}" if self.hint else text


# What code stumbles over that reads a damaged record: of another type or length, without a key.
DAMAGE: Final = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@contextlib.contextmanager
def blaming(make: Callable[[Exception], CytofmError]) -> Iterator[None]:
    """Turn what a damaged record makes of code that reads it into an error that names the file.

    Args:
        make: returns the error; ours, which say more, pass.
    """
    try:
        yield
    except CytofmError:
        raise
    except DAMAGE as error:
        raise make(error) from error


class CytofmWarning(UserWarning):
    """What a caller from Python should look at: doubts about a slide, or why one failed."""


def _rebuild(
    kind: type[CytofmError], message: str, hint: str | None, of_all_slides: bool
) -> CytofmError:
    error = kind(message, hint=hint)
    error.of_all_slides = of_all_slides
    return error


class UsageError(CytofmError, ValueError):
    """The command line or a configuration file asks for something impossible."""

    exit_code = 2


class ConfigMismatchError(UsageError):
    """A finished step was made with other settings than the ones now asked for."""


class MissingPackageError(UsageError, ImportError):
    """An optional package is needed and not installed."""


class OutputError(CytofmError, OSError):
    """The output folder cannot be written."""

    exit_code = 2


class InputError(CytofmError, ValueError):
    """An input cannot be used."""

    exit_code = 3


class SlideError(InputError):
    """A slide cannot be opened or read."""


class MissingMppError(SlideError):
    """The physical resolution of a slide is not known."""


class NoForegroundError(SlideError):
    """No tile of a slide holds anything to look at."""


class SlideTimeoutError(SlideError):
    """A slide made no progress for too long."""


class SlideKilledError(SlideError):
    """What worked on a slide was killed or had too little memory: no fault of the slide."""


class StoreError(InputError):
    """A Zarr store is missing, damaged, of another schema, or lacks a step."""


class WeightsError(InputError):
    """A weight file is missing, unsafe, or does not fit the model."""


class LabelError(InputError):
    """The table of labels cannot be used for the task."""


class TryAgainError(CytofmError):
    """A passing condition: lock held, out of memory, disk full."""

    exit_code = 75


class DiskFullError(TryAgainError, OSError):
    """No space left where the output goes; the next slide would not find any either."""

    of_all_slides = True


class OutOfMemoryError(TryAgainError, MemoryError):
    """The device or the machine has too little memory, even for the smallest batch."""


class SomeSlidesFailedError(CytofmError):
    """Some slides failed and the others are done."""

    exit_code = 4


class StoppedError(CytofmError):
    """A signal asked the command to stop; what was finished is kept."""

    exit_code = 75


class InterruptedBySignalError(StoppedError):
    """Ctrl-C."""

    exit_code = 130


class TerminatedError(StoppedError):
    """SIGTERM."""

    exit_code = 143
