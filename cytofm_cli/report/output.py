"""Write a page and the pictures beside it, complete or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from cytofm_cli.errors import OutputError
from cytofm_cli.runs.folder import holding, restore
from cytofm_cli.work.files import (
    flush_folder,
    output_errors,
    put_in_place,
    write_bytes,
    write_text,
)

_OURS = re.compile(r"\d{6}\.jpg")


def folder_of(page: Path) -> str:
    """Return the name of the folder beside a page: `report_files` of report.html."""
    return f"{page.stem}_files"


def refuse_existing(page: Path, *, overwrite: bool) -> None:
    """Refuse to write over a page, or beside a folder of its name that is not ours.

    Raises:
        OutputError: something is there that may not be replaced.
    """
    restore(page)  # of a killed command a claim may be left
    if page.is_dir():
        raise OutputError(f"{page}: is a folder.", hint="name a file: -o report.html")
    if page.exists() and not overwrite:
        raise OutputError(
            f"{page}: exists.", hint="`--overwrite` replaces it; or choose another -o"
        )
    folder = page.with_name(folder_of(page))
    if not folder.exists():
        return
    if not folder.is_dir() or not all(_OURS.fullmatch(path.name) for path in folder.iterdir()):
        raise OutputError(
            f"{folder}: exists and holds other things than pictures of a report.",
            hint="choose another -o",
        )
    # Pictures without a page are what a killed command has left: the page is written last.


def write_page(page: Path, html: str, files: Mapping[str, bytes]) -> int:
    """Write a page; return how many bytes it and its pictures have.

    Raises:
        OutputError, DiskFullError: it cannot be written.
    """
    folder = page.with_name(folder_of(page))
    staging = folder.with_name(f".{folder.name}.partial")
    with output_errors(page.parent):
        page.parent.mkdir(parents=True, exist_ok=True)
        with holding(page):
            if files:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
                for name, data in files.items():
                    write_bytes(staging / name, data, flush=False)
                flush_folder(staging)
                put_in_place(staging, folder, folder.with_name(f".{folder.name}.replaced"))
            write_text(page, html)
            if not files and folder.exists():
                shutil.rmtree(folder)
    return page.stat().st_size + sum(map(len, files.values()))
