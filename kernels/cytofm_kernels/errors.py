"""Errors of the top-h operator; both carry a hint that says what to do."""

from __future__ import annotations


class TopHError(ValueError):
    """The arguments do not describe a top-h attention.

    Args:
        message: what is wrong.
        hint: what to pass instead.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class BackendError(TopHError, RuntimeError):
    """The backend asked for by name cannot serve this call."""
