"""A task of a Slurm array knows its part, and an array with gaps is refused."""

from __future__ import annotations

import pytest

from cytofm_cli.api.cohort import Manner
from cytofm_cli.errors import UsageError
from cytofm_cli.work.shard import resolve_shard


def of_array(monkeypatch: pytest.MonkeyPatch, **variables: int) -> None:
    for name in ("ID", "COUNT", "MIN", "MAX", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({"ID": 0, "COUNT": 4, "MIN": 0, "MAX": 3, "STEP": 1}, "0/4"),
        ({"ID": 3, "COUNT": 4, "MIN": 0, "MAX": 3, "STEP": 1}, "3/4"),
        ({"ID": 7, "COUNT": 4, "MIN": 5, "MAX": 8, "STEP": 1}, "2/4"),  # --array=5-8
        ({"ID": 11, "COUNT": 3, "MIN": 1, "MAX": 11, "STEP": 5}, "2/3"),  # --array=1-11:5
        ({"ID": 9, "COUNT": 1, "MIN": 9, "MAX": 9, "STEP": 1}, "0/1"),
        ({"ID": 2, "COUNT": 3}, "2/3"),
    ],
)
def test_slurm__counts_from_the_first_task_in_steps(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, int], shard: str
) -> None:
    of_array(monkeypatch, **variables)
    assert resolve_shard("slurm") == shard
    assert Manner(shard="slurm").shard == shard  # so failures and scores of parts have its name


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "no task of a Slurm array"),
        ({"ID": 7, "COUNT": 3, "MIN": 1, "MAX": 7, "STEP": 1}, "has gaps"),  # --array=1,3,7
        ({"ID": 1, "COUNT": 3, "MIN": 1, "MAX": 7, "STEP": 1}, "has gaps"),  # its first is no 0/3
        ({"ID": 4, "COUNT": 3, "MIN": 1, "MAX": 11, "STEP": 5}, "has gaps"),
    ],
)
def test_slurm__what_tells_no_part_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, int], said: str
) -> None:
    of_array(monkeypatch, **variables)
    with pytest.raises(UsageError, match=said):
        resolve_shard("slurm")


@pytest.mark.parametrize("shard", ["3/3", "slurm ", "Slurm", "1", "-1/2", "0/0", "²/3", "1/2\n"])
def test_resolve_shard__impossible_parts_are_refused(shard: str) -> None:
    with pytest.raises(UsageError, match="must be i/n"):
        resolve_shard(shard)
