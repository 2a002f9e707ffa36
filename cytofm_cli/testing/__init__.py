"""Conformance suites: what every plug-in of a kind must do, for ours and for those of others.

    from cytofm_cli.testing import check
    def test_toy():
        check("detector", "toy")

A plug-in brings samples of itself (`PLUGIN.sample`, see `cytofm_cli.registry.Sample`); one that
brings none fails. Kinds and what the settings and traits of a sample are:

| kind | settings | traits |
|---|---|---|
| reader | `path`: a slide that it reads | `interpolates`: boxes differ a little from the whole |
| detector | of its `config` | `bright`: finds bright nuclei on dark ground; `answers_noise` |
| encoder | arguments of `load_encoder`; `name_or_file` is the plug-in's name | |
| pretraining method | of its `config` | `masks`: its trunk needs patches; `rest`: settings under \
which its target does not move; `idle`: what weights without a gradient may be called |
| MIL method | of its `config` | `preset`: settings that keep its presets small; `idle`: parts \
that get no gradient from a bag of the second of three classes |
| exporter | of [export], or `own`: of its `config` | |

Presets of `cytofm simulate` are no plug-ins: `cytofm_cli.testing.presets.check_preset`.

To show each check as a test of its own, parametrize over `suite(kind).checks`, as cytofm's own
tests do.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Final

from cytofm_cli.testing.suite import Suite

_MODULES: Final = {
    "reader": "readers",
    "detector": "detectors",
    "encoder": "encoders",
    "pretraining method": "pretrain",
    "MIL method": "heads",
    "exporter": "exporters",
}
KINDS: Final = tuple(_MODULES)


def suite(kind: str) -> Suite:
    """Return the suite of a kind of plug-in: one of `KINDS`."""
    module = importlib.import_module(f"cytofm_cli.testing.{_MODULES[kind]}")
    made: Suite = module.SUITE
    return made


def check(kind: str, name: str, folder: Path | None = None) -> None:
    """Run the suite of a kind on one plug-in, under all of its samples.

    Args:
        kind: one of `KINDS`.
        name: of the plug-in.
        folder: for the files of the samples; None: one that is removed at the end.

    Raises:
        AssertionError: it does not do what it must, or brings no sample.
        CytofmError: there is no such plug-in, or a package that it needs is missing.
    """
    if folder is not None:
        suite(kind).run(name, folder)
        return
    with tempfile.TemporaryDirectory() as made:
        suite(kind).run(name, Path(made))
