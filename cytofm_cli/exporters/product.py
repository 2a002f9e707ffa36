"""Files made of stores: written by rename, and known again by a record beside them.

`<folder>/.cytofm/<file>.json` says with which settings and from which steps a file was made, so
the same export goes on where it stopped and makes anew what is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cytofm_cli.config import differences, digest
from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.store.records import StepRecord
from cytofm_cli.work.files import read_plain, write_json

RECORDS: Final = ".cytofm"
Status = Literal["written", "skipped"]


@dataclass(frozen=True)
class Product:
    """Files that belong together, and how to make them.

    Attributes:
        files: what `write` makes, all below the folder of the export; a folder counts as one.
        settings: what else would have made other files of these names.
        steps: provenance records of the steps that they are made from.
        write: makes them.
    """

    files: Sequence[Path]
    settings: Mapping[str, Any]
    steps: Sequence[StepRecord]
    write: Callable[[], object]


def make(product: Product, folder: Path, *, overwrite: bool = False) -> Status:
    """Write a product unless it is there already, of the same settings and steps.

    Args:
        product: what to make.
        folder: of the export; the records lie in it.
        overwrite: make it in any case.

    Raises:
        ConfigMismatchError: a file of that name was made with other settings, or by others.
        OutputError: the folder cannot be written.
    """
    if status_of(product, folder, overwrite=overwrite) == "skipped":
        return "skipped"
    record = {"settings": dict(product.settings), "source": _source_of(product)}
    for file in product.files:  # killed between a file and its record, the file is still ours
        if not _record_of(file, folder).exists():
            write_json(_record_of(file, folder), record | {"bytes": None})
    product.write()
    for file in product.files:
        write_json(_record_of(file, folder), record | {"bytes": size_of(file)})
    return "written"


def status_of(product: Product, folder: Path, *, overwrite: bool = False) -> Status:
    """Say what `make` would do.

    Raises:
        ConfigMismatchError: a file of that name was made with other settings, or by others.
    """
    source = _source_of(product)
    if overwrite:
        return "written"
    current = [_is_current(file, folder, product, source) for file in product.files]
    return "skipped" if all(current) else "written"


def files_of(products: Sequence[Product], statuses: Sequence[str]) -> list[dict[str, str]]:
    """Say of each file what came of it, as commands print it: `{"file": …, "status": …}`."""
    return [
        {"file": str(file), "status": status}
        for product, status in zip(products, statuses, strict=True)
        for file in product.files
    ]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _source_of(product: Product) -> str:
    return digest({"steps": [step.to_json() for step in product.steps]})


def _record_of(file: Path, folder: Path) -> Path:
    return folder / RECORDS / f"{file.relative_to(folder).as_posix().replace('/', '~')}.json"


def _is_current(file: Path, folder: Path, product: Product, source: str) -> bool:
    if not file.exists():
        return False
    try:
        record = json.loads(read_plain(_record_of(file, folder)))
        settings, size, made_from = record["settings"], record["bytes"], record["source"]
    except FileNotFoundError:
        raise ConfigMismatchError(
            f"{file}: is there, and no export of cytofm has written it.",
            hint="--overwrite replaces it, another -o keeps it.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a damaged record: the file is made anew
    differing = differences(settings, product.settings)
    if differing:
        raise ConfigMismatchError(
            f"{file}: was exported with other settings: {'; '.join(differing)}.",
            hint="--overwrite makes it anew, another -o keeps both.",
        )
    return bool(made_from == source and size == size_of(file))
