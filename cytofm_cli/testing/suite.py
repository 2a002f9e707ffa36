"""How a conformance suite runs: samples of a plug-in, and checks of what they make."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cytofm_cli.config import Settings
from cytofm_cli.registry import Plugin, Registry, Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A plug-in under one of its samples.

    Attributes:
        name: of the plug-in.
        plugin: the plug-in.
        sample: how it is run.
        first: it is the plug-in's first sample; for checks that need no other.
        folder: for files of the checks.
        thing: what the suite made of it: see there.
    """

    name: str
    plugin: Any
    sample: Sample
    first: bool
    folder: Path
    thing: Any

    def close(self) -> None:
        """Let go of what holds a file."""
        if hasattr(self.thing, "close"):
            self.thing.close()


Check = Callable[[Case], None]


@dataclass(frozen=True, eq=False)
class Suite:
    """The checks of one kind of plug-in.

    Args:
        registry: of the kind.
        prepare: makes what the checks look at, given name, plug-in, sample and an empty folder.
    """

    registry: Registry[Any]
    prepare: Callable[[str, Any, Sample, Path], Any]
    checks: list[Check] = field(default_factory=list)

    def check(self, function: Check) -> Check:
        """Add a check."""
        self.checks.append(function)
        return function

    def cases(self, name: str, folder: Path) -> list[Case]:
        """Make what the checks look at, one case a sample.

        Raises:
            AssertionError: the plug-in brings no sample, or says nothing of itself.
            CytofmError: there is no such plug-in, or a package that it needs is missing.
        """
        plugin = self.registry.load(name)
        whole = f"{self.registry.kind} {name!r}"
        assert plugin.summary.strip(), f"{whole} has no summary"
        if plugin.config is not None:
            assert issubclass(plugin.config, Settings), f"the settings of {whole} are no Settings"
            plugin.config()
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        samples = samples_of(whole, plugin, folder / "samples")
        cases = []
        for number, sample in enumerate(samples):
            own = folder / str(number)
            own.mkdir(exist_ok=True)
            thing = self.prepare(name, plugin, sample, own)
            cases.append(
                Case(
                    name=name,
                    plugin=plugin,
                    sample=sample,
                    first=number == 0,
                    folder=own,
                    thing=thing,
                )
            )
        return cases

    def run(self, name: str, folder: Path) -> None:
        """Run all checks on one plug-in.

        Raises:
            AssertionError: says which check failed, under which settings.
        """
        cases = self.cases(name, folder)
        try:
            for case in cases:
                for check in self.checks:
                    run_check(check, case)
        finally:
            for case in cases:
                case.close()


def run_check(check: Check, case: Case) -> None:
    """Run one check.

    Raises:
        AssertionError: says which failed, under which settings.
    """
    try:
        check(case)
    except Exception as error:
        what = f"{check.__name__}, {case.name} with {dict(case.sample.settings)}"
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def samples_of(whole: str, plugin: Plugin, folder: Path) -> Sequence[Sample]:
    """Return the samples that a plug-in brings.

    Raises:
        AssertionError: it brings none.
    """
    sample = plugin.sample
    if isinstance(sample, str):
        module, _, function = sample.partition(":")
        sample = getattr(importlib.import_module(module), function)
    samples = [] if sample is None else list(sample(folder))
    assert samples, f"{whole} brings no sample of itself: give its PLUGIN a `sample`"
    return samples


def refuses(
    error: type[Exception], says: str, call: Callable[..., object], *arguments: Any
) -> None:
    """Assert that a call raises an error whose text holds the pattern `says`.

    Raises:
        AssertionError: it raises none, or says something else.
    """
    try:
        call(*arguments)
    except error as raised:
        assert re.search(says, str(raised)), f"{raised} does not say {says!r}"
    else:
        raise AssertionError(f"no {error.__name__} for {arguments!r}"[:300])
