"""Stores of drawn cells, made once."""

from __future__ import annotations

import pytest

from .drawn_cells import Cohort, make_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_cohort(tmp_path_factory.mktemp("cells"))
