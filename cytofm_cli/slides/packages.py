"""Packages of others that read slides: one that is too old or does not load is named."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from cytofm_cli.errors import MissingPackageError

# Options of pip.
_UPGRADE: Final = "--upgrade"
_AGAIN: Final = "--force-reinstall"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that a reader of slides imports when it is first needed.

    Attributes:
        module: what is imported.
        project: its name in the index of packages.
        at_least: the oldest version whose interface is the one that is used.
        install: the command that installs it.
        libraries: what to do where its own libraries are not found.
    """

    module: str
    project: str
    at_least: str
    install: str
    libraries: str = ""

    def load(self) -> ModuleType:
        """Import it.

        Raises:
            MissingPackageError: not installed, too old, or it fails when it is imported, as with
                a library that does not load.
        """
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            raise MissingPackageError(f"{self.project} is not installed.", hint=self.install)
        try:
            version = importlib.metadata.version(self.project)
        except importlib.metadata.PackageNotFoundError:
            version = self.at_least  # a copy without its record
        if _numbers(version) < _numbers(self.at_least):
            raise MissingPackageError(
                f"{self.project} {version} is too old, {self.at_least} is needed.",
                hint=self._pip(_UPGRADE),
            )
        try:
            return importlib.import_module(self.module)
        except Exception as error:  # packages with libraries of their own may do anything
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise MissingPackageError(
                f"{self.project} {version} cannot be loaded ({said}).",
                hint=self.libraries or self._pip(_AGAIN),
            ) from error

    def _pip(self, option: str) -> str:
        return self.install.replace("pip install", f"pip install {option}")


def load_first(packages: tuple[Package, ...]) -> ModuleType:
    """Import the first of several packages that can be.

    Raises:
        MissingPackageError: none can; it says of each why, and the hint is that of the first
            that is installed, else of the first.
    """
    failed: list[MissingPackageError] = []
    for package in packages:
        try:
            return package.load()
        except MissingPackageError as error:
            failed.append(error)
    told = [error for error in failed if "is not installed" not in error.message] or failed
    reasons = "; ".join(error.message.rstrip(".") for error in failed)
    raise MissingPackageError(f"{reasons}.", hint=told[0].hint)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
