"""A RUN whose files are damaged is one error that names it, whatever they hold."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cytofm_cli.errors import CytofmError, InputError
from cytofm_cli.mil.run_folder import MANIFEST, METRICS
from cytofm_cli.report.answers import read_run
from cytofm_cli.report.config import ReportConfig
from cytofm_cli.report.report import report_page

WRONG = (None, [], {}, "x", -1, [[]])


def mutants(value: Any) -> Iterator[Any]:
    """Yield copies of a JSON value with one part of it lost, or of another kind."""
    yield from WRONG
    keys = sorted(value) if isinstance(value, dict) else range(min(2, len(value)))
    for key in keys if isinstance(value, dict | list) else ():
        if isinstance(value, dict):
            yield {other: of for other, of in value.items() if other != key}
        for part in mutants(value[key]) if isinstance(value[key], dict | list) else WRONG:
            changed = copy.copy(value)
            changed[key] = part
            yield changed


@pytest.mark.parametrize("name", [METRICS, MANIFEST, "config.toml", "splits.csv"])
def test_read_run__damage_is_told_with_the_run(trained, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    file = run / name
    if file.suffix == ".json":
        whole = json.loads(file.read_text())
        texts = [json.dumps(mutant) for mutant in mutants(whole)]
    else:
        lines = file.read_text().splitlines(keepends=True)
        texts = ["".join(lines[:at] + lines[at + 1 :]) for at in range(len(lines))]
    texts += ["", "{", "\0", file.read_text()[:-20]]
    refused = 0
    for text in texts:
        file.write_text(text)
        try:
            read_run(run)
        except CytofmError as error:
            assert str(run) in error.message
            assert error.exit_code in (2, 3)
            refused += 1
    assert refused >= 4


def test_page__whatever_metrics_hold_is_shown_or_refused_by_name(trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    whole = json.loads((run / METRICS).read_text())
    refused = 0
    for mutant in list(mutants(whole))[:: len(whole)]:
        (run / METRICS).write_text(json.dumps(mutant))
        try:
            report_page([read_run(run)], {}, ReportConfig(), "pictures")
        except CytofmError as error:
            assert str(run) in error.message
            refused += 1
    assert refused >= 4
    (run / METRICS).write_text(json.dumps({**whole, "unit": None}))
    with pytest.raises(InputError, match="its unit is None"):
        read_run(run)
    whole["auc"]["value"] = {}
    (run / METRICS).write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        report_page([read_run(run)], {}, ReportConfig(), "pictures")
