"""`cytofm doctor`: is this installation and machine in order?"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from typing import Any

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


def doctor() -> None:
    """Check this installation and machine: versions, readers, plug-ins, GPU, kernels.

    Examples:

      cytofm doctor

      cytofm doctor --json
    """
    checks = [("cytofm", True, f"{__version__}, Python {sys.version.split()[0]}")]
    checks += [("machine", True, _machine())]
    checks += [_version(name) for name in _PACKAGES]
    checks += [_guard("OpenSlide library", _openslide), _guard("libvips library", _vips)]
    checks += [_guard("torch and torchvision fit", _torchvision), _guard("GPU", _gpu)]
    checks += [_guard("attention kernels", _kernels)]
    for kind in registry.ALL:
        checks += [_plugin(kind, row) for row in kind.available()]
        checks += [(f"{kind.kind} of a name that is taken", True, t) for t in kind.shadowed()]
    for name, fine, text in checks:
        mark = "ok " if fine else "BAD"
        out.data(f"{mark} {name}: {text}", {"check": name, "ok": fine, "text": text})
    bad = [name for name, fine, _ in checks if not fine]
    if bad:
        raise _UnfitError(f"not in order: {', '.join(bad)}.", hint="install cytofm again.")


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


def _plugin(kind: registry.Registry[Any], row: registry.Available) -> Check:
    text = f"not available: {row.missing}" if row.missing else row.broken or row.summary
    return f"{kind.kind} {row.name}", not row.broken, text


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "doctor", doctor)
