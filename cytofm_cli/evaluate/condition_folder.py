"""The RUN folders of `evaluate robustness` and `evaluate retention`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cytofm_cli.evaluate.run_folder import FEATURES, METRICS, TABLE
from cytofm_cli.runs.folder import CONFIG, Kind, RunReport, holding, is_whole, refuse_changes
from cytofm_cli.runs.record import Record, changes, to_text
from cytofm_cli.work.files import output_errors, real_place, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals

_FILES: Final = frozenset({METRICS, TABLE, "*.svg", "*.csv"})
ROBUSTNESS: Final = Kind(
    "cytofm evaluate robustness", frozenset({"robustness"}), frozenset({FEATURES}), _FILES
)
RETENTION: Final = Kind(
    "cytofm evaluate retention", frozenset({"retention"}), frozenset({FEATURES}), _FILES
)
# What a RUN says: its metrics, and the files that show them, by name.
Results = tuple[dict[str, Any], Mapping[str, str]]


def make_run(
    kind: Kind,
    out: Path,
    record: Record,
    judge: Callable[[Path, StopFlag], Results],
    *,
    overwrite: bool,
) -> RunReport:
    """Make a RUN, or find it done: config.toml, table.md, plots, and last metrics.json.

    Features that were kept stay, so that a run that was stopped goes on.

    Args:
        kind: of which command.
        out: the folder.
        record: sections of its config.toml.
        judge: given the folder of features and a flag that says to stop, returns the results.
        overwrite: make it anew if it was made with other settings.

    Raises:
        ConfigMismatchError: `out` was made with other settings, or is something else.
    """
    out = real_place(out)
    with output_errors(out):
        former = kind.former(out, overwrite=overwrite)
        if former is not None and not overwrite:
            refuse_changes(
                out, changes(former, record), overwrite="replaces it and keeps the features"
            )
            if is_whole(out / TABLE) and is_whole(out / METRICS):
                return RunReport(out, kind.read_json(out, METRICS), skipped=True)
        with holding(out):
            with catch_signals() as stop:
                metrics, files = judge(out / FEATURES, stop)
            out.mkdir(parents=True, exist_ok=True)
            for path in (out / METRICS, *out.glob("*.svg")):
                path.unlink(missing_ok=True)
            write_text(out / CONFIG, to_text(record))
            for name, text in files.items():
                write_text(out / name, text)
            whole = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(out / METRICS, whole)
    return RunReport(out, metrics, skipped=False)
