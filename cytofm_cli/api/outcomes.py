"""What became of the slides of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    SomeSlidesFailedError,
    TryAgainError,
)
from cytofm_cli.work.batch import Outcome, Status


class Outcomes(Sequence[Outcome]):
    """The slides of a step, one `Outcome` each: slide_id, path, status, seconds, facts, error.

    `status` is `done`, `skipped` (was done before), `held` (another process is at it), `refused`
    (was done before with other settings, and is kept) or `failed`.

    Args:
        outcomes: one a slide.
        log: the file that says which slides failed and why; None for a dry run, which writes none.
    """

    def __init__(self, outcomes: Sequence[Outcome], log: Path | None = None) -> None:
        self._outcomes = tuple(outcomes)
        self.log = log

    def __len__(self) -> int:
        return len(self._outcomes)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...

    @overload
    def __getitem__(self, index: slice) -> Outcomes: ...

    def __getitem__(self, index: int | slice) -> Outcome | Outcomes:
        if isinstance(index, slice):
            return Outcomes(self._outcomes[index], self.log)
        return self._outcomes[index]

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._outcomes)

    def __repr__(self) -> str:
        counts = Counter(outcome.status for outcome in self)
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        return f"<Outcomes of {len(self)} slides: {told or 'none'}>"

    @property
    def stores(self) -> list[Path]:
        """Return the stores of the slides that are done, now or before, in the order of slides."""
        return [Path(outcome.facts["store"]) for outcome in self if "store" in outcome.facts]

    @property
    def failed(self) -> list[Outcome]:
        """Return the slides that could not be done."""
        return self.of("failed")

    def of(self, status: Status) -> list[Outcome]:
        """Return the slides of a status."""
        return [outcome for outcome in self if outcome.status == status]

    def raise_failures(self) -> None:
        """Raise if a slide is not done; what is done stays.

        Raises:
            CytofmError: the error of the only slide; or that none of several could be used.
            SomeSlidesFailedError: some failed, the others are done.
            ConfigMismatchError: some are finished with other settings, and kept.
            TryAgainError: some are being done by other processes.
        """
        if len(self) == 1 and self[0].status in ("failed", "refused") and self[0].error:
            raise self[0].error
        errors = [outcome.error for outcome in self.failed if outcome.error is not None]
        refused, held = len(self.of("refused")), len(self.of("held"))
        if errors and len(errors) == len(self):
            raise _AllFailedError(errors, self._where())
        if errors:
            raise SomeSlidesFailedError(
                f"{len(errors)} of {len(self)} slides failed, {self._rest(refused, held)}.",
                hint=self._where(),
            )
        if refused:
            raise ConfigMismatchError(
                f"{refused} of {len(self)} slides are finished with other settings and "
                "kept as they are; see above.",
                hint="--overwrite makes them anew.",
            )
        if held:
            raise TryAgainError(
                f"{held} slides are being done by other processes.", hint="run again later."
            )

    def _where(self) -> str:
        return "the lines above say why." if self.log is None else f"{self.log} says why."

    def _rest(self, refused: int, held: int) -> str:
        """Say what became of the slides that did not fail."""
        if not refused and not held:
            return f"the others are {'planned' if self.log is None else 'done'}"
        told = [f"{refused} are kept with other settings"] if refused else []
        told += [f"{held} are held by other processes"] if held else []
        return " and ".join(told)


class _AllFailedError(CytofmError):
    """Nothing could be done: the exit code is that of the slides' errors if they agree."""

    def __init__(self, errors: Sequence[CytofmError], hint: str) -> None:
        super().__init__(f"none of {len(errors)} slides could be used.", hint=hint)
        codes = {error.exit_code for error in errors}
        self.exit_code = codes.pop() if len(codes) == 1 else 3  # type: ignore[misc]
