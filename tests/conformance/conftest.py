"""Runs a suite of `cytofm_cli.testing` on every plug-in, each check as a test of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from cytofm_cli.errors import MissingPackageError
from cytofm_cli.testing import suite
from cytofm_cli.testing.suite import Case

Cases = Callable[[str, str], list[Case]]


@pytest.fixture(scope="package")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    """Return a function that makes the cases of a plug-in, once for all its checks."""
    made: dict[tuple[str, str], list[Case]] = {}

    def cases_of(kind: str, name: str) -> list[Case]:
        if (kind, name) not in made:
            try:
                made[kind, name] = suite(kind).cases(name, tmp_path_factory.mktemp(name))
            except MissingPackageError as error:
                pytest.skip(error.one_line())
        return made[kind, name]

    yield cases_of
    for case in itertools.chain(*made.values()):
        case.close()
