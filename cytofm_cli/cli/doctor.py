"""`cytofm doctor`: is this installation and machine in order?"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cytofm_cli import __version__, registry
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import CytofmError

_PACKAGES = (
    "torch torchvision timm triton zarr numcodecs imagecodecs openslide-python openslide-bin "
    "tiffslide pyvips pyvips-binary safetensors numpy scipy h5py typer rich"
).split()
Check = tuple[str, bool, str]


class _UnfitError(CytofmError):
    """A check that every installation must pass failed."""

    exit_code = 1


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="Also try a folder in which stores are to lie.")
    ] = None,
) -> None:
    """Check this installation and machine: versions, readers, codecs, plug-ins, GPU, kernels.

    With a folder also its disk: write access, room for bytes and files, clock, renames, claims.

    Examples:

      cytofm doctor

      cytofm doctor /scratch/project/stores

      cytofm doctor --json
    """
    checks = [("cytofm", True, f"{__version__}, Python {sys.version.split()[0]}")]
    checks += [("machine", True, _machine())]
    checks += [_version(name) for name in _PACKAGES]
    checks += [_guard("OpenSlide library", _openslide), _guard("libvips library", _vips)]
    checks += [_guard("torch and torchvision fit", _torchvision), _guard("GPU", _gpu)]
    checks += [_guard("attention kernels", _kernels), _guard("codecs of stores", _store_codecs)]
    checks += [_guard("codecs of slides", _slide_codecs), *_job()]
    for kind in registry.ALL:
        checks += [_plugin(kind, row) for row in kind.available()]
        checks += [(f"{kind.kind} of a name that is taken", True, t) for t in kind.shadowed()]
    checks += _disk(folder) if folder is not None else ()
    for name, fine, text in checks:
        mark = "ok " if fine else "BAD"
        out.data(f"{mark} {name}: {text}", {"check": name, "ok": fine, "text": text})
    bad = [name for name, fine, _ in checks if not fine]
    if bad:
        raise _UnfitError(f"not in order: {', '.join(bad)}.", hint=_hint(bad, folder))


def _hint(bad: list[str], folder: Path | None) -> str:
    ours = [name for name in bad if not name.startswith(f"{folder}: ")]
    return "install cytofm again." if ours else "keep stores in a folder of another file system."


def _machine() -> str:
    from cytofm_cli.work.cpus import cpu_count

    return f"{platform.system()} {platform.machine()}, {cpu_count()} processors allowed"


def _version(package: str) -> Check:
    try:
        return package, True, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        optional = package == "triton"
        return package, optional, "not installed" + (" (GPU kernels need it)" if optional else "")


def _guard(name: str, check: Callable[[], str]) -> Check:
    try:
        return name, True, check()
    except Exception as error:
        return name, False, f"{type(error).__name__}: {error}"


def _openslide() -> str:
    return str(importlib.import_module("openslide").__library_version__)


def _vips() -> str:
    pyvips = importlib.import_module("pyvips")
    return ".".join(str(pyvips.version(part)) for part in range(3))


def _torchvision() -> str:
    importlib.import_module("torchvision.ops")
    return "yes"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; everything runs on the CPU"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _kernels() -> str:
    choice = importlib.import_module("cytofm_kernels").explain()
    return f"{choice.backend} ({choice.reason})"


def _store_codecs() -> str:
    """Encode and decode a picture with each codec that stores are written with."""
    import numpy as np

    from cytofm_cli.store import zarr3

    grey = np.full((16, 16, 3), 200, np.uint8)
    if zarr3.zstd_decode(zarr3.zstd_encode(grey.tobytes()), grey.nbytes) != grey.tobytes():
        raise ValueError("zstd does not give back what it took")
    if np.abs(zarr3.jpeg_decode(zarr3.jpeg_encode(grey, 95)).astype(int) - grey).max() > 2:
        raise ValueError("JPEG does not give back what it took")
    return "zstd, JPEG"


def _slide_codecs() -> str:
    """Name the codecs in which tiles of slides may lie that can be decoded here."""
    imagecodecs = importlib.import_module("imagecodecs")
    names = "JPEG JPEG2K JPEGXL JPEGXR LZW DEFLATE ZSTD WEBP LERC".split()
    there = [name for name in names if getattr(getattr(imagecodecs, name, None), "available", 0)]
    missing = [name for name in names if name not in there]
    if "JPEG" not in there:
        raise ValueError("JPEG is missing")
    return ", ".join(there) + (f"; not here: {', '.join(missing)}" if missing else "")


def _job() -> Iterator[Check]:
    """Say what a scheduler gave this process, if one did."""
    names = ("JOB_ID", "ARRAY_TASK_ID", "CPUS_PER_TASK", "MEM_PER_NODE", "RESTART_COUNT")
    told = [
        f"{name}={os.environ[f'SLURM_{name}']}" for name in names if f"SLURM_{name}" in os.environ
    ]
    if told:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        yield "Slurm job", True, f"{', '.join(told)}; CUDA_VISIBLE_DEVICES {gpus or 'empty'}"


def _disk(folder: Path) -> Iterator[Check]:
    from cytofm_cli.work.disk import try_folder

    if not folder.is_dir():
        yield f"{folder}: write access", False, "no such folder"
        return
    try:
        for trial in try_folder(folder):
            yield f"{folder}: {trial.name}", trial.fine, trial.text
    except CytofmError as error:
        yield f"{folder}: write access", False, error.message


def _plugin(kind: registry.Registry[Any], row: registry.Available) -> Check:
    text = f"not available: {row.missing}" if row.missing else row.broken or row.summary
    return f"{kind.kind} {row.name}", not row.broken, text


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "doctor", doctor)
