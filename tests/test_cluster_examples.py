"""Examples for clusters: scripts parse, every option is one, workflows run where their tool is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from cytofm_cli.cli.app import COMMANDS, build

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("slurm/*.sh"))
CONTAINERS = EXAMPLES / "containers"
FILES = [
    *SCRIPTS,
    EXAMPLES / "snakemake" / "Snakefile",
    EXAMPLES / "nextflow" / "main.nf",
    CONTAINERS / "Dockerfile",
    CONTAINERS / "cytofm.def",
]
# `cytofm run …`, and what torchrun starts: `-m cytofm_cli pretrain …`, up to the end of the words.
COMMAND = re.compile(
    rf"cytofm(?:_cli)? ((?:mil )?(?:{'|'.join(COMMANDS)}|train))\b((?:[^\n\"|#]|\\\n)*)"
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts__parse_and_ask_to_be_warned_and_requeued(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert re.search(r"^#SBATCH --signal=USR[12]@\d+$", text, re.MULTILINE)
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --open-mode=append\n" in text
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_examples__name_only_options_that_there_are(file: Path) -> None:
    found = COMMAND.findall(file.read_text().replace("cytofm.sif", "cytofm"))
    assert found or file.suffix in ("", ".def"), "no command found"
    for words, rest in found:
        name, _, sub = words.partition(" ")
        command = typer.main.get_command(build([name])).commands[name]  # type: ignore[attr-defined]
        command = command.commands[sub] if sub else command
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest))
        assert named <= known, f"{file.name}: cytofm {words} has no {named - known}"


def test_containers__take_along_what_the_package_is_built_of() -> None:
    docker, apptainer = ((CONTAINERS / name).read_text() for name in ("Dockerfile", "cytofm.def"))
    copied = {
        word
        for line in re.findall(r"^COPY (.*) /src/\S*$", docker, re.MULTILINE)
        for word in line.split()
    }
    listed = set(re.findall(r"^    (\S+) /src/\S+$", apptainer, re.MULTILINE))
    assert copied == listed
    assert all((EXAMPLES.parent / name).exists() for name in copied)
    (base,) = re.findall(r"^FROM (\S+)$", docker, re.MULTILINE)
    assert re.findall(r"^From: (\S+)$", apptainer, re.MULTILINE) == [base]
    wheel = (EXAMPLES.parent / "pyproject.toml").read_text().partition("targets.wheel]")[2]
    packages = re.findall(r'"(\w+)[^"]*"', wheel.partition("\n\n")[0])
    assert set(packages) <= copied


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("snakemake") is None, reason="no snakemake here: uv tool install snakemake"
)
def test_snakemake__makes_stores_and_a_model_and_does_nothing_twice(
    simulated: Path, tmp_path: Path
) -> None:
    tool = tmp_path / "bin" / "cytofm"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cytofm_cli "$@"\n')
    tool.chmod(0o755)
    words = [
        "snakemake", "-s", EXAMPLES / "snakemake" / "Snakefile", "--cores", "2", "--config",
        f"slides={simulated / 'slides'}", f"labels={simulated / 'labels.csv'}", "parts=2",
        "threads=1", "settings=--encoder handcrafted", "training=--folds 2 --epochs 2",
    ]  # fmt: skip

    def run() -> str:
        path = f"{tool.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run()
    assert len(list((tmp_path / "out" / "stores").glob("*.zarr"))) == 8
    assert (tmp_path / "out" / "model" / "metrics.json").exists()
    assert "Nothing to be done" in run()


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("nextflow") is None,
    reason="no nextflow here: it needs Java, and is in no registry",
)
def test_nextflow__makes_stores(simulated: Path, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "cytofm"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cytofm_cli "$@"\n')
    tool.chmod(0o755)
    words = [
        "nextflow", "run", EXAMPLES / "nextflow" / "main.nf", "--slides", simulated / "slides",
        "--out", tmp_path / "out", "--parts", "2", "--settings", "--encoder handcrafted",
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "out" / "stores").glob("*.zarr"))) == 8
