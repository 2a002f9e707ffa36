"""`generate counterfactual` and `restain`: what a dry run refuses, and that examples are whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cytofm_cli.cli import generate_uses


@pytest.mark.parametrize("words", [["counterfactual", "--score", "s"], ["restain", "--stain", "b"]])
def test_dry_run__refuses_what_is_no_generator(here, tmp_path: Path, words: list[str]) -> None:
    command, *options = words
    run = tmp_path / "none"
    done = here("generate", command, run, *options, "--like", "a:0", "-o", "x", "--dry-run")
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {run}: not a finished RUN of `cytofm generate train`")


def test_examples__name_the_cell_of_a_counterfactual() -> None:
    examples = re.findall(r"--like (\S+)", str(generate_uses.counterfactual.__doc__))
    assert examples and all(re.fullmatch(r"\S+:\d+", example) for example in examples)
