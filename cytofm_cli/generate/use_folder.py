"""Folders of images that a generator made: whole or not at all, and each image says what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.pictures.files import png_bytes, with_text
from cytofm_cli.runs import folder
from cytofm_cli.runs.folder import Kind, refuse_changes
from cytofm_cli.runs.record import Record, changes, to_text
from cytofm_cli.work.files import output_errors, write_bytes, write_text

T = TypeVar("T")
IMAGES: Final = "images"


def make_folder(
    kind: Kind,
    out: Path,
    record: Record,
    compute: Callable[[], T],
    write: Callable[[Path, T], None],
    *,
    overwrite: bool,
) -> T | None:
    """Make a folder, complete or not at all; config.toml is written last.

    Args:
        kind: of which command.
        out: the folder.
        record: sections of its config.toml.
        compute: what takes long; nothing is written before it is done.
        write: writes its result into a hidden folder, which then becomes `out`.
        overwrite: replace what is there.

    Returns:
        What was computed; None: `out` holds it already.

    Raises:
        ConfigMismatchError: `out` was made with other settings, or is something else.
    """
    with output_errors(out):
        former = kind.former(out)
        if former is not None and not overwrite:
            plain = {name: of for name, of in former.items() if name != "made"}
            refuse_changes(out, changes(plain, record), overwrite="replaces it")
            return None
        result = compute()
        with folder.holding(out):
            staging = folder.staging_of(out, record)
            write(staging, result)
            versions = {"cytofm": __version__}
            write_text(staging / folder.CONFIG, to_text({**record, "made": versions}))
            folder.publish(staging, out)
    return result


def made_by(command: str, record: Mapping[str, Mapping[str, Any]], section: str) -> dict[str, Any]:
    """Return what an image says of how it was made."""
    sha256 = record["generator"]["sha256"]
    tool = f"cytofm {__version__} {command}"
    return {"tool": tool, "generator_sha256": sha256, **record[section]}


def png_text(made: Mapping[str, Any], what: str) -> dict[str, str]:
    """Return what a PNG says of itself; `what` it shows comes last."""
    told = ", ".join(f"{key} {value}" for key, value in made.items() if key != "tool")
    return {
        "Software": str(made["tool"]),
        "Synthetic": "true",
        "Comment": "made by a generator, no photograph of a cell",
        "Source": f"{told}, {what}",
    }


def write_images(
    staging: Path,
    images: NDArray[np.uint8],
    made: Mapping[str, Any],
    what: Sequence[str],
) -> list[str]:
    """Write images as PNG under `images/`; return their names in the folder."""
    (staging / IMAGES).mkdir(exist_ok=True)
    files = [f"{IMAGES}/{number:05d}.png" for number in range(len(images))]
    for file, image, said in zip(files, images, what, strict=True):
        write_bytes(staging / file, with_text(png_bytes(image), png_text(made, said)))
    return files
