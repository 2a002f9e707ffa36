"""Whether a detector has the weight file that it needs, whole; nothing is ever downloaded."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

from cytofm_cli.errors import WeightsError
from cytofm_cli.named_files import absent
from cytofm_cli.work.files import open_plain
from cytofm_cli.work.zips import ZIP_DAMAGE

_ZIP: Final = b"PK\x03\x04"


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
            f"{path}: {absent(path)}; detector {detector!r} downloads nothing.",
            hint=f"give {what}",
        )
    return path


def check_whole(path: Path) -> None:
    """Refuse a file of `torch.save` or TorchScript that is cut, or of which a byte has changed.

    Both are zip archives with a checksum for each tensor, which PyTorch does not look at. The
    older format of `torch.save` has none: what is wrong there the detector finds.

    Raises:
        WeightsError: damaged, or it cannot be read.
    """
    try:
        with open_plain(path) as file:
            if file.read(len(_ZIP)) != _ZIP:
                return
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ZIP_DAMAGE as error:
        raise _damaged(path, "it is cut or damaged") from error
    if broken is not None:
        raise _damaged(path, f"the checksum of {broken!r} does not fit")


def _damaged(path: Path, why: str) -> WeightsError:
    return WeightsError(f"{path}: damaged weight file: {why}.", hint="fetch or copy it again")
