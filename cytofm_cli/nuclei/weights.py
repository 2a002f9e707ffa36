"""Whether a detector has the weight file that it needs; nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path

from cytofm_cli.errors import WeightsError


def existing_file(path: Path | None, detector: str, what: str) -> Path:
    """Return the path of a weight file that is there.

    Args:
        path: as the user gave it.
        detector: name of the detector.
        what: the file that it needs.

    Raises:
        WeightsError: none was given, or there is none.
    """
    if path is None:
        raise WeightsError(
            f"detector {detector!r} needs a weight file: {what}.",
            hint="--weights FILE of `cytofm detect`; for `cytofm run`, weights in [detect] of "
            "--config",
        )
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; detector {detector!r} downloads nothing.",
            hint=f"give {what}",
        )
    return path
